package check

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/sys/unix"

	"weft/router/packet"
)

// Echo requests are repeated, since a single packet may be lost.
const (
	attempts = 3
	patience = time.Second // for each attempt
)

// ping sends an echo request with a payload of a size, which is not fragmented, until its answer comes.
func ping(ctx context.Context, to netip.Addr, size int) error {
	network := "ip4:icmp"
	if to.Is6() {
		network = "ip6:ipv6-icmp"
	}
	protocol, request, reply := packet.EchoTypes(to.Is4())
	conn, err := (&net.ListenConfig{Control: whole(to.Is6())}).ListenPacket(ctx, network, "")
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	id := 1 + rand.IntN(0xffff)
	for seq := range attempts {
		data, err := (&icmp.Message{Type: request, Body: &icmp.Echo{ID: id, Seq: seq, Data: make([]byte, size)}}).Marshal(nil) // the kernel fills in the checksum of ICMPv6
		if err != nil {
			return err
		}
		if _, err := conn.WriteTo(data, &net.IPAddr{IP: to.AsSlice()}); err != nil {
			return err
		}
		if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
			return err
		}
		if answered(conn, to, protocol, reply, id, size) {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return fmt.Errorf("no answer to %d echo requests", attempts)
}

// answered waits for the answer to any of the requests: a raw socket receives all ICMP.
func answered(conn net.PacketConn, to netip.Addr, protocol int, reply icmp.Type, id, size int) bool {
	buf := make([]byte, size+128)
	for {
		n, from, err := conn.ReadFrom(buf)
		if err != nil {
			return false
		}
		src, ok := from.(*net.IPAddr)
		msg, err := icmp.ParseMessage(protocol, buf[:n])
		if !ok || err != nil || msg.Type != reply || !src.IP.Equal(to.AsSlice()) {
			continue
		}
		if body, ok := msg.Body.(*icmp.Echo); ok && body.ID == id && len(body.Data) == size {
			return true
		}
	}
}

// whole makes the kernel send packets of a socket in one piece, or refuse them.
func whole(v6 bool) func(string, string, syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) (err error) {
		if e := c.Control(func(fd uintptr) {
			if v6 {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO)
			} else {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
			}
		}); e != nil {
			return e
		}
		return err
	}
}
