package probe

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/netip"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"weft/prog/words"
)

const (
	protoICMP   = 1
	protoICMPv6 = 58
)

// echo holds the ICMP socket and ids for one address.
type echo struct {
	conn  *icmp.PacketConn
	dst   *net.IPAddr
	id    int
	proto int
	kind  icmp.Type // ICMP type of echo requests
	reply icmp.Type
	cfg   Config
}

func (e *echo) send(seq uint32) error {
	msg := icmp.Message{Type: e.kind, Body: &icmp.Echo{
		ID: e.id, Seq: int(uint16(seq)), Data: payload(seq, e.cfg.Size, e.cfg.Marker),
	}}
	data, err := msg.Marshal(nil) // the kernel fills in ICMPv6 checksums
	if err != nil {
		return err
	}
	_, err = e.conn.WriteTo(data, e.dst)
	return err
}

// receive returns the payload of the next packet, or nil if it is no answer to this probe: a raw
// socket receives all ICMP.
func (e *echo) receive(buf []byte) ([]byte, error) {
	n, from, err := e.conn.ReadFrom(buf)
	if err != nil {
		return nil, err
	}
	if src, ok := from.(*net.IPAddr); !ok || !src.IP.Equal(e.dst.IP) {
		return nil, nil
	}
	msg, err := icmp.ParseMessage(e.proto, buf[:n])
	if err != nil || msg.Type != e.reply {
		return nil, nil
	}
	body, ok := msg.Body.(*icmp.Echo)
	if !ok || body.ID != e.id {
		return nil, nil
	}
	return body.Data, nil
}

func (e *echo) conversation() conversation {
	return conversation{send: e.send, receive: e.receive, deadline: e.conn.SetReadDeadline, close: e.conn.Close}
}

// ICMP sends echo requests to one address.
func ICMP(ctx context.Context, addr netip.Addr, cfg Config) (Result, error) {
	e := &echo{
		dst: &net.IPAddr{IP: addr.AsSlice(), Zone: addr.Zone()}, cfg: cfg, id: 1 + rand.IntN(0xffff),
		proto: protoICMP, kind: ipv4.ICMPTypeEcho, reply: ipv4.ICMPTypeEchoReply,
	}
	network, local := "ip4:icmp", "0.0.0.0"
	if addr.Is6() {
		e.proto, e.kind, e.reply = protoICMPv6, ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply
		network, local = "ip6:ipv6-icmp", "::"
	}
	var err error
	if e.conn, err = icmp.ListenPacket(network, local); errors.Is(err, fs.ErrPermission) {
		return Result{}, errors.New("probe: ICMP needs root (CAP_NET_RAW): run it as root, or use `weft probe tcp`")
	} else if err != nil {
		return Result{}, fmt.Errorf("probe: ICMP to %v: %s", addr, words.Cause(err))
	}
	return converse(ctx, newTally("icmp", addr), cfg, e.conversation())
}

// intact reports whether an answer has the payload that was sent.
func intact(got []byte, seq uint32, cfg Config) bool {
	return bytes.Equal(got, payload(seq, cfg.Size, cfg.Marker))
}
