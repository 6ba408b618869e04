package e2e

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"weft/mesh/meshtest/eventually"
	"weft/prog/lab"
	"weft/prog/lab/labtest"
)

// datagrams is how many datagrams knock sends to a port.
const datagrams = 3

// knock sends to ports over UDP and TCP, and prints the ports to which TCP connects. args are
// ADDR:PORT...
func knock(args []string) error {
	var all sync.WaitGroup
	for _, at := range args {
		all.Go(func() {
			if c, err := net.Dial("udp", at); err == nil {
				for range datagrams {
					_, _ = c.Write([]byte(marker))
				}
				c.Close()
			}
			if c, err := net.DialTimeout("tcp", at, 700*time.Millisecond); err == nil {
				fmt.Println(at)
				_, _ = c.Write([]byte(marker))
				c.Close()
			}
		})
	}
	all.Wait()
	return nil
}

// at combines addresses with ports.
func at(list []netip.Addr, ports ...uint16) (out []string) {
	for _, a := range list {
		for _, port := range ports {
			out = append(out, netip.AddrPortFrom(a, port).String())
		}
	}
	return out
}

var droppedUDP = regexp.MustCompile(`udp dport @\S+ counter packets (\d+) `)

// dropped returns how many datagrams a chain of Weft's nftables table on a host has dropped.
func dropped(t *testing.T, l *lab.Lab, host, chain string) (n int) {
	t.Helper()
	for _, m := range droppedUDP.FindAllStringSubmatch(run(t, l, host, "nft", "list", "chain", "inet", "weft", chain), -1) {
		one, err := strconv.Atoi(m[1])
		if err != nil {
			t.Fatal(err)
		}
		n += one
	}
	return n
}

// A container reaches neither gossip nor WireGuard of any peer, at any address, so it cannot make its
// host look like an attacker. It does reach the same ports of other machines, and hosts reach each
// other.
func TestContainersCannotReachAgents(t *testing.T) {
	labtest.Need(t, "nft", "nftables")
	l := labtest.New(t, lab.Options{Hosts: 3, Containers: 1, Bare: true})
	launchFounder(t, l)
	if _, err := l.Exec(t.Context(), "h2", strings.NewReader(token(t, l)), "weft", "launch", "--token", "-", "192.0.2.1"); err != nil {
		t.Fatal(err)
	}
	for _, c := range []string{"h1/c1", "h2/c1"} {
		if _, err := l.Plug(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	h1, h2 := report(t, l, "h1").Router, report(t, l, "h2").Router
	eventually.True(t, 20*time.Second, "h1 knows h2's node address, and reaches it", func() bool {
		_, err := l.Exec(t.Context(), "h1", nil, "weft", "probe", "icmp", "--count", "1", h2.Node[0].String())
		return err == nil && strings.Contains(run(t, l, "h1", "nft", "list", "set", "inet", "weft", "peers6"), h2.Node[1].String())
	})
	capture, err := l.Capture(t.Context(), marker)
	if err != nil {
		t.Fatal(err)
	}
	own := slices.Concat(h1.Underlay, h1.Node, []netip.Addr{netip.MustParseAddr("169.254.1.1"), netip.MustParseAddr("fe80::1%eth0")})
	other := slices.Concat(h2.Underlay, h2.Node)
	if len(own) != 6 || len(other) != 4 {
		t.Fatalf("want two addresses of each host: got %v of h1, %v of h2", own, other)
	}
	for chain, addrs := range map[string][]netip.Addr{"from-endpoint-to-host": own, "to-hosts": other} {
		before, ports := dropped(t, l, "h1", chain), at(addrs, 6783, 6784)
		if out := run(t, l, "h1/c1", toolArgs(t, "knock", ports...)...); out != "" {
			t.Errorf("a container connects to %s, want no connection", out)
		}
		if n := dropped(t, l, "h1", chain) - before; n != datagrams*len(ports) {
			t.Errorf("of %d datagrams to %v, the nftables rules dropped %d, want all", datagrams*len(ports), ports, n)
		}
	}
	run(t, l, "h1/c1", append([]string{"weft", "probe", "icmp", "--marker", marker}, addrs(t, l, "h2/c1")...)...)
	silent(t, capture)
	for _, h := range []string{"h1", "h2"} {
		if r := report(t, l, h); len(r.Rejections) > 0 {
			t.Errorf("%s rejected %v; want no rejections", h, r.Rejections)
		}
	}
	if out := run(t, l, "h1", toolArgs(t, "knock", at(other, 6783)...)...); strings.Count(out, "\n") != len(other) {
		t.Errorf("h1 itself connects to %[2]s of h2's addresses %[1]v; want all", other, out)
	}
	if _, err := l.Background(context.WithoutCancel(t.Context()), "h3", "listening", "weft", "probe", "listen", "--tcp", "6783", "--udp", "6783"); err != nil {
		t.Fatal(err)
	}
	for _, proto := range []string{"tcp", "udp"} {
		run(t, l, "h1/c1", "weft", "probe", proto, "--port", "6783", "--count", "1", "192.0.2.3", "2001:db8::3")
	}
}
