package router

import (
	"bytes"
	"context"
	"net/netip"
	"testing"
	"time"

	"weft/mesh/path"
	"weft/router/probe"
)

// Probes travel between the ports of two userspace WireGuards, and the tunnel goes on carrying
// packets. Probes through the tunnel, to the node address, do not count.
func TestProbesPassBesideTheTunnel(t *testing.T) {
	h1, h2, c1, c2, e1, e2 := twoHosts(t)
	expectCall(t, c1, e2.Addr4, e1.Addr4.String()) // the tunnel is up
	ctx, stop := context.WithCancel(t.Context())
	arrived := make(chan probe.Datagram, 10_000)
	var conns []*probe.Conn
	ended := make(chan error, 2)
	for _, h := range []*host{h1, h2} {
		h.ns.Do(func() {
			c, err := probe.Open(probe.Config{Port: h.config.Port})
			if err != nil {
				t.Fatal(err)
			}
			conns = append(conns, c)
			t.Cleanup(func() { c.Close() })
		})
	}
	for _, c := range conns {
		go func() {
			ended <- c.Receive(ctx, func(d probe.Datagram) {
				d.Payload = bytes.Clone(d.Payload)
				arrived <- d
			})
		}()
	}
	send := func(c *probe.Conn, to, text string, size int) {
		t.Helper()
		if err := c.Send(netip.MustParseAddrPort(to), netip.AddrPort{}, append(path.Magic[:], text...), size); err != nil {
			t.Fatal(err)
		}
	}
	expect := func(from, text string) {
		t.Helper()
		select {
		case d := <-arrived:
			if d.From.String() != from || string(bytes.TrimRight(d.Payload[len(path.Magic):], "\x00")) != text {
				t.Errorf("a probe came from %v with %q, want %s and %q", d.From, d.Payload, from, text)
			}
		case <-time.After(patience):
			t.Fatalf("the probe %q did not arrive from %s", text, from)
		}
	}
	for range 5 {
		send(conns[0], universe.Addr4(h2.config.Node).String()+":6784", "through the tunnel", 0)
		for range 10 {
			send(conns[0], "192.0.2.2:6784", "there", 1500)
			expect("192.0.2.1:6784", "there")
			send(conns[1], "[2001:db8::1]:6784", "back", 0)
			expect("[2001:db8::2]:6784", "back")
		}
		expectCall(t, c1, e2.Addr4, e1.Addr4.String())
		expectCall(t, c2, e1.Addr6, e2.Addr6.String())
	}
	stop()
	for range conns {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	if n := len(arrived); n > 0 {
		t.Errorf("%d probes came through the tunnel or twice; want none", n)
	}
}
