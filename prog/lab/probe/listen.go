package probe

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"golang.org/x/sync/errgroup"
)

// The first byte of a TCP connection selects one of these modes of weft probe listen.
const (
	modeEcho = 'E' // send back all bytes
	modeSink = 'S' // at the end, send the number of received bytes (8 bytes, big endian)
)

// ListenReady is the line on stderr with which weft probe listen announces that it serves.
const ListenReady = "listening"

// Listen answers probes on a TCP and a UDP port (0: none) until ctx ends. It calls ready once both
// serve.
func Listen(ctx context.Context, tcp, udp uint16, ready func()) error {
	group, ctx := errgroup.WithContext(ctx)
	if tcp != 0 {
		ln, err := net.ListenTCP("tcp", &net.TCPAddr{Port: int(tcp)})
		if err != nil {
			return fmt.Errorf("probe: %w", err)
		}
		context.AfterFunc(ctx, func() { _ = ln.Close() })
		group.Go(func() error { return serveTCP(ctx, ln) })
	}
	if udp != 0 {
		conn, err := net.ListenUDP("udp", &net.UDPAddr{Port: int(udp)})
		if err != nil {
			return fmt.Errorf("probe: %w", err)
		}
		context.AfterFunc(ctx, func() { _ = conn.Close() })
		group.Go(func() error { return serveUDP(conn) })
	}
	group.Go(func() error { <-ctx.Done(); return nil })
	ready()
	return group.Wait()
}

func serveTCP(ctx context.Context, ln *net.TCPListener) error {
	var serving sync.WaitGroup
	defer serving.Wait()
	for {
		conn, err := ln.AcceptTCP()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("probe: %w", err)
		}
		serving.Go(func() {
			defer conn.Close()
			defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
			serveStream(conn)
		})
	}
}

// serveStream ignores errors: the client counts losses.
func serveStream(conn *net.TCPConn) {
	var mode [1]byte
	if _, err := io.ReadFull(conn, mode[:]); err != nil {
		return
	}
	if mode[0] != modeSink {
		// Hide ReaderFrom and WriterTo: on one socket, io.Copy would splice in the kernel, which can
		// delay small messages.
		_, _ = io.CopyBuffer(struct{ io.Writer }{conn}, struct{ io.Reader }{conn}, make([]byte, 64<<10))
		return
	}
	n, _ := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{conn}, make([]byte, 1<<20))
	_ = binary.Write(conn, binary.BigEndian, n)
}

func serveUDP(conn *net.UDPConn) error {
	buf := make([]byte, 1<<16)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err == nil {
			_, _ = conn.WriteToUDPAddrPort(buf[:n], from) // the error is ignored: the client counts lost answers
		}
	}
}
