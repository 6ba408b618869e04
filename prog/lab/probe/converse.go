package probe

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"weft/prog/words"
)

// conversation is a way to send numbered messages and receive the answers. receive returns nil for
// packets that are no answer. An error for which ended reports false is the loss of one message;
// any other error ends the conversation. send and receive run concurrently.
type conversation struct {
	send     func(seq uint32) error
	receive  func(buf []byte) ([]byte, error)
	deadline func(time.Time) error
	close    func() error
}

// converse sends cfg.Count messages and collects the answers until all are received or late.
func converse(ctx context.Context, t *tally, cfg Config, c conversation) (Result, error) {
	var mu sync.Mutex // guards t
	var sending sync.WaitGroup
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = c.deadline(time.Now()) })()

	sending.Go(func() {
		if !sendAll(ctx, &mu, t, cfg, c) {
			_ = c.deadline(time.Now()) // a deadline now ends receive
			return
		}
		mu.Lock()
		defer mu.Unlock()
		t.over = true
		wait := cfg.Timeout
		if t.done() {
			wait = 0
		}
		_ = c.deadline(time.Now().Add(wait))
	})

	buf := make([]byte, 1<<16)
	for {
		data, err := c.receive(buf)
		now := time.Now()
		mu.Lock()
		over := collect(t, cfg, data, err, now)
		mu.Unlock()
		if over {
			break
		}
	}
	cancel()
	sending.Wait()
	return t.result(), c.close()
}

// sendAll sends the messages one after the other, and reports whether it sent all.
func sendAll(ctx context.Context, mu *sync.Mutex, t *tally, cfg Config, c conversation) bool {
	tick := time.NewTicker(cfg.Interval)
	defer tick.Stop()
	for seq := range uint32(cfg.Count) {
		if seq > 0 {
			select {
			case <-tick.C:
			case <-cfg.Until:
				return true
			case <-ctx.Done():
				return false
			}
		}
		mu.Lock()
		t.send(seq, time.Now())
		mu.Unlock()
		err := c.send(seq)
		if err == nil {
			continue
		}
		mu.Lock()
		if ended(err) {
			t.res.Error = err.Error()
			mu.Unlock()
			return false
		}
		t.res.Unsent = err.Error() // the message was not sent, and counts as lost
		mu.Unlock()
	}
	return true
}

// collect handles one answer or error, and reports whether no more answers can come.
func collect(t *tally, cfg Config, data []byte, err error, now time.Time) bool {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return true
	case err != nil && ended(err):
		t.res.Error = err.Error()
		return true
	case err != nil || data == nil: // an error such as "port unreachable" only loses one message
		return false
	case len(data) < headerSize:
		t.res.Corrupt++
		return false
	}
	seq := binary.BigEndian.Uint32(data)
	if !intact(data, seq, cfg) {
		t.res.Corrupt++
		return false
	}
	t.receive(seq, now, cfg.Timeout)
	return t.over && t.done()
}

// ended reports whether no answers can come after an error. Other errors only lose one message.
func ended(err error) bool {
	for _, passing := range []error{
		unix.ECONNREFUSED, unix.EHOSTUNREACH, unix.ENETUNREACH, unix.EPERM, unix.EACCES, unix.ENOBUFS, unix.EAGAIN, unix.EMSGSIZE,
	} {
		if errors.Is(err, passing) {
			return false
		}
	}
	return true
}

// UDP sends datagrams to weft probe listen.
func UDP(ctx context.Context, addr netip.Addr, cfg Config) (Result, error) {
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, cfg.Port)))
	if err != nil {
		return Result{}, fmt.Errorf("probe: %v, UDP port %d: %s", addr, cfg.Port, words.Cause(err))
	}
	return converse(ctx, newTally("udp", addr), cfg, conversation{
		send: func(seq uint32) error {
			_, err := conn.Write(payload(seq, cfg.Size, cfg.Marker))
			return err
		},
		receive: func(buf []byte) ([]byte, error) {
			n, err := conn.Read(buf)
			return buf[:n], err
		},
		deadline: conn.SetReadDeadline, close: conn.Close,
	})
}

// TCP sends messages on one connection to weft probe listen. A late message counts as lost, although
// TCP delivers it eventually. A reset ends the probe.
func TCP(ctx context.Context, addr netip.Addr, cfg Config) (Result, error) {
	conn, err := dialTCP(ctx, addr, cfg, modeEcho)
	if err != nil {
		return Result{}, err
	}
	size := len(payload(0, cfg.Size, ""))
	return converse(ctx, newTally("tcp", addr), cfg, conversation{
		send: func(seq uint32) error {
			_, err := conn.Write(payload(seq, cfg.Size, cfg.Marker))
			return streamError(err)
		},
		receive: func(buf []byte) ([]byte, error) {
			_, err := io.ReadFull(conn, buf[:size])
			return buf[:size], streamError(err)
		},
		deadline: conn.SetReadDeadline, close: conn.Close,
	})
}

// streamError hides the wrapped error, which could look like a datagram's temporary error: any error
// ends a stream.
func streamError(err error) error {
	if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	return errors.New(err.Error())
}

func dialTCP(ctx context.Context, addr netip.Addr, cfg Config, mode byte) (*net.TCPConn, error) {
	dialer := net.Dialer{Timeout: 5 * time.Second}
	conn, err := dialer.DialContext(ctx, "tcp", net.JoinHostPort(addr.String(), strconv.Itoa(int(cfg.Port))))
	if err != nil {
		return nil, fmt.Errorf("probe: %v, TCP port %d: %s: is `weft probe listen --tcp %d` running there?", addr, cfg.Port, words.Cause(err), cfg.Port)
	}
	if _, err := conn.Write([]byte{mode}); err != nil {
		return nil, errors.Join(fmt.Errorf("probe: %w", err), conn.Close())
	}
	return conn.(*net.TCPConn), nil
}

// BulkResult is the throughput of one TCP stream.
type BulkResult struct {
	Addr    netip.Addr `json:"addr"`
	Bytes   int64      `json:"bytes"` // number of bytes that the receiver counted
	Seconds float64    `json:"seconds"`
	Gbits   float64    `json:"gbitPerSecond"`
}

// Bulk sends as fast as one TCP stream can for a duration, and returns the receiver's count.
func Bulk(ctx context.Context, addr netip.Addr, cfg Config, d time.Duration) (BulkResult, error) {
	conn, err := dialTCP(ctx, addr, cfg, modeSink)
	if err != nil {
		return BulkResult{}, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now()) })()
	start := time.Now()
	if err := conn.SetDeadline(start.Add(d + 30*time.Second)); err != nil {
		return BulkResult{}, err
	}
	for chunk := payload(0, 256<<10, cfg.Marker); time.Since(start) < d; {
		if _, err := conn.Write(chunk); err != nil {
			return BulkResult{}, fmt.Errorf("probe: %w", err)
		}
	}
	if err := conn.CloseWrite(); err != nil {
		return BulkResult{}, err
	}
	var count int64
	if err := binary.Read(conn, binary.BigEndian, &count); err != nil {
		return BulkResult{}, fmt.Errorf("probe: the receiver sent no count: %w", err)
	}
	seconds := time.Since(start).Seconds()
	return BulkResult{Addr: addr, Bytes: count, Seconds: seconds, Gbits: float64(count) * 8 / seconds / 1e9}, nil
}
