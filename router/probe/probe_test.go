package probe_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/ipam/slot"
	"weft/mesh/path"
	"weft/router/nft"
	"weft/router/policy"
	"weft/router/probe"
	"weft/router/routertest"
)

func TestMain(m *testing.M) { routertest.Main(m) }

const port = 6784

var universe = slot.Universe{V4: slot.DefaultV4, V6: netip.MustParsePrefix("fd01:2:3:4::/96")}

// host is a network namespace with the guard, a Conn and a UDP socket that holds WireGuard's port.
type host struct {
	t      testing.TB
	ns     routertest.Namespace
	conn   *probe.Conn
	kernel *nft.Kernel
	got    chan probe.Datagram
	holder net.PacketConn
}

// openHost returns a host that does not receive yet.
func openHost(t testing.TB) *host {
	t.Helper()
	h := &host{t: t, ns: routertest.New(t), kernel: &nft.Kernel{}, got: make(chan probe.Datagram, 1<<15)}
	t.Cleanup(h.kernel.Close)
	h.guard(nft.Hosts{})
	h.ns.Do(func() {
		var err error
		if h.holder, err = net.ListenPacket("udp", fmt.Sprintf(":%d", port)); err != nil {
			t.Fatal(err)
		}
		if h.conn, err = probe.Open(probe.Config{Port: port}); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() {
		h.holder.Close()
		h.conn.Close()
	})
	return h
}

func newHost(t testing.TB) *host {
	t.Helper()
	h := openHost(t)
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	conn := h.conn
	go func() {
		ended <- conn.Receive(ctx, func(d probe.Datagram) {
			d.Payload = bytes.Clone(d.Payload)
			h.got <- d
		})
	}()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil && conn == h.conn {
			t.Errorf("Receive returned the error %v, want none after its context ended", err)
		}
	})
	return h
}

// guard loads Weft's table, as the agent does.
func (h *host) guard(peers nft.Hosts) {
	h.t.Helper()
	h.ns.Do(func() {
		if err := h.kernel.Apply(nft.Build(nft.Guard{Universe: universe, Port: port, Hosts: peers})); err != nil {
			h.t.Fatal(err)
		}
	})
}

func payload(s string) []byte { return append(path.Magic[:], s...) }

func (h *host) send(to, from string, text string, size int) {
	h.t.Helper()
	if err := h.trySend(to, from, payload(text), size); err != nil {
		h.t.Fatalf("sending %q: %v", text, err)
	}
}

func (h *host) trySend(to, from string, b []byte, size int) error {
	var source netip.Addr
	if from != "" {
		source = netip.MustParseAddr(from)
	}
	return h.conn.Send(netip.AddrPortFrom(netip.MustParseAddr(to), port), netip.AddrPortFrom(source, 0), b, size)
}

// next returns the next probe that arrives.
func (h *host) next() probe.Datagram {
	h.t.Helper()
	select {
	case d := <-h.got:
		return d
	case <-time.After(20 * time.Second):
		h.t.Fatal("no probe arrived in 20 s, want one")
		panic("not reached")
	}
}

// expect fails unless the next probe has the given text. So no probe before it has arrived.
func (h *host) expect(text string) probe.Datagram {
	h.t.Helper()
	d := h.next()
	if got := string(bytes.TrimRight(d.Payload, "\x00")); got != string(payload(text)) {
		h.t.Fatalf("the next probe that arrived is %q, want %q", got, payload(text))
	}
	return d
}

// connect joins two namespaces by a veth pair. Each end gets its name and its addresses.
func connect(t testing.TB, a, b routertest.Namespace, mtu int, nameA, nameB string, addrsA, addrsB []string) {
	t.Helper()
	for _, ns := range []routertest.Namespace{a, b} { // otherwise IPv6 waits a second
		run(t, ns, "sysctl", "-q", "-w", "net.ipv6.conf.default.accept_dad=0")
	}
	a.Do(func() {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = nameA, mtu
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: nameB, PeerMTU: uint32(mtu), PeerNamespace: netlink.NsFd(b.Fd())}); err != nil {
			t.Fatal(err)
		}
	})
	for _, end := range []struct {
		ns    routertest.Namespace
		name  string
		addrs []string
	}{{a, nameA, addrsA}, {b, nameB, addrsB}} {
		for _, addr := range end.addrs {
			run(t, end.ns, "ip", "addr", "add", addr, "dev", end.name, "nodad")
		}
		run(t, end.ns, "ip", "link", "set", end.name, "up")
	}
}

func run(t testing.TB, ns routertest.Namespace, command ...string) {
	t.Helper()
	ns.Do(func() {
		if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", command, err, out)
		}
	})
}

func loadRules(t testing.TB, ns routertest.Namespace, rules string) {
	t.Helper()
	program, err := exec.LookPath("nft")
	if err != nil {
		t.Skip("nft is not installed: run apt-get install nftables")
	}
	ns.Do(func() {
		cmd := exec.Command(program, "-f", "-")
		cmd.Stdin = strings.NewReader(rules)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("loading rules with nft: %v: %s", err, out)
		}
	})
}

// These are the addresses of two neighbours: a has two of each family.
var (
	addrsA = []string{"192.0.2.1/24", "192.0.2.11/24", "2001:db8::1/64", "2001:db8::11/64"}
	addrsB = []string{"192.0.2.2/24", "2001:db8::2/64"}
)

var families = []struct{ name, a, other, b string }{
	{"IPv4", "192.0.2.1", "192.0.2.11", "192.0.2.2"},
	{"IPv6", "2001:db8::1", "2001:db8::11", "2001:db8::2"},
}

func neighbours(t testing.TB, mtu int) (a, b *host) {
	t.Helper()
	a, b = newHost(t), newHost(t)
	connect(t, a.ns, b.ns, mtu, "under", "under", addrsA, addrsB)
	return a, b
}

// A probe leaves from WireGuard's port, which another socket holds. The same packet reaches the socket
// that holds the port at the other host, so its checksum is right.
func TestProbesTravelBetweenTheTunnelsPorts(t *testing.T) {
	t.Parallel()
	a, b := neighbours(t, 1500)
	for _, f := range families {
		for _, from := range []string{"", f.other, f.a} {
			for _, text := range []string{"odd", "even", "", strings.Repeat("long", 100)} {
				size := 28
				if f.name == "IPv6" {
					size = 48
				}
				a.send(f.b, from, text, 0)
				d := b.next()
				want := payload(text)
				if d.Size != size+len(want) || !bytes.Equal(d.Payload, want[:min(len(want), probe.MaxPayload)]) {
					t.Errorf("%s: the probe has %d bytes and the payload %q, want %d bytes and the beginning of %q", f.name, d.Size, d.Payload, size+len(want), want)
				}
				if from != "" && d.From.Addr() != netip.MustParseAddr(from) || d.From.Port() != port {
					t.Errorf("%s: the probe came from %v, want address %q and port %d", f.name, d.From, from, port)
				}
				if d.To != netip.AddrPortFrom(netip.MustParseAddr(f.b), port) {
					t.Errorf("%s: the probe came to %v, want %s and port %d", f.name, d.To, f.b, port)
				}
				held := make([]byte, 2048)
				_ = b.holder.SetReadDeadline(time.Now().Add(10 * time.Second))
				if n, _, err := b.holder.ReadFrom(held); err != nil || !bytes.Equal(held[:n], want) {
					t.Errorf("%s: the socket at the port got %q and the error %v, want %q", f.name, held[:n], err, want)
				}
			}
		}
	}
}

// Only what firewalls would let through to the tunnel arrives.
func TestAFirewallThatDropsTheTunnelDropsProbes(t *testing.T) {
	t.Parallel()
	a, b := neighbours(t, 1500)
	for _, f := range families {
		a.send(f.b, "", "resolves the neighbour", 0)
		b.expect("resolves the neighbour")
		for where, h := range map[string]*host{"input": b, "output": a} {
			loadRules(t, h.ns, fmt.Sprintf("table inet other { chain filter { type filter hook %s priority 0; udp dport %d drop; }; }", where, port))
			err := a.trySend(f.b, "", payload("dropped"), 0)
			if (err != nil) != (where == "output") {
				t.Errorf("%s: sending through a firewall in the %s hook: error %v, want one only if the own host drops", f.name, where, err)
			}
			run(t, h.ns, "nft", "delete", "table", "inet", "other")
			a.send(f.b, "", "passes", 0)
			b.expect("passes")
		}
	}
}

func TestOtherDatagramsAreNotDelivered(t *testing.T) {
	t.Parallel()
	a, b := neighbours(t, 1500)
	for _, f := range families {
		for _, other := range []string{"", "w", "\x04\x00\x00\x00data", "weeu", "Weft", "xweft"} {
			if err := a.trySend(f.b, "", []byte(other), 0); err != nil {
				t.Fatal(err)
			}
		}
		a.send(f.b, "", "probe", 0)
		b.expect("probe")
	}
}

// One source cannot use up what the other sources need.
func TestAFloodFromOneSourceIsLimited(t *testing.T) {
	t.Parallel()
	a, b := neighbours(t, 1500)
	for _, f := range families {
		start := time.Now()
		for range 2000 {
			a.send(f.b, f.a, "flood", 0)
		}
		a.send(f.b, f.other, "quiet", 0)
		n := 0
		for ; ; n++ {
			if d := b.next(); string(d.Payload) == string(payload("quiet")) {
				break
			}
		}
		if most := 101 + int(50*time.Since(start).Seconds()); n < 50 || n > most {
			t.Errorf("%s: %d probes of a flood arrived, want 50 to %d", f.name, n, most)
		}
	}
}

// Forged source addresses fill the kernel's memory of sources. A known peer still gets through.
func TestForgedSourcesDoNotSilenceAPeer(t *testing.T) {
	t.Parallel()
	a, b := neighbours(t, 1500)
	run(t, a.ns, "ip", "route", "add", "local", "198.18.0.0/15", "dev", "lo")
	run(t, b.ns, "ip", "route", "add", "198.18.0.0/15", "via", "192.0.2.1")
	b.guard(nft.Hosts{Peers: []policy.Service{{Addr: netip.MustParseAddr("192.0.2.11"), Protocol: policy.UDP, Port: port}}})
	forged := netip.MustParseAddr("198.18.0.0")
	to := netip.MustParseAddrPort(fmt.Sprintf("192.0.2.2:%d", port))
	arrived := func() (n int) {
		for ; len(b.got) > 0; n++ {
			<-b.got
		}
		return n
	}
	n, start := 0, time.Now()
	for i := range 18_000 {
		forged = forged.Next()
		if err := a.conn.Send(to, netip.AddrPortFrom(forged, 0), payload("forged"), 0); err != nil {
			t.Fatalf("forged probe %d: %v", i, err)
		}
	}
	for i := range 10 {
		a.send("192.0.2.2", "192.0.2.11", fmt.Sprint("peer", i), 0)
		for string(b.next().Payload) != string(payload(fmt.Sprint("peer", i))) {
			n++
		}
	}
	n += arrived()
	if most := 1000 + int(1000*time.Since(start).Seconds()) + 1; n > most {
		t.Errorf("%d forged probes arrived, want at most %d", n, most)
	}
}

// The kernel merges datagrams of a flow that arrive together, if the socket at the port asks for it, as
// wireguard-go does. All probes arrive nevertheless, among the packets of WireGuard.
func TestProbesThatArriveTogetherAreNotMerged(t *testing.T) {
	t.Parallel()
	a, b := neighbours(t, 1500)
	if _, err := exec.LookPath("ethtool"); err != nil {
		t.Skip("ethtool is not installed: run apt-get install ethtool")
	}
	run(t, b.ns, "ethtool", "-K", "under", "gro", "on")
	run(t, a.ns, "ethtool", "-K", "under", "tso", "off") // else a veth pair merges nothing
	raw, err := b.holder.(*net.UDPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	_ = raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_GRO, 1) })
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		// Packets wait until the neighbour's link address is known, and then leave together.
		loadRules(t, b.ns, "table arp silent { chain in { type filter hook input priority 0; drop; }; }; table ip6 silent { chain in { type filter hook input priority 0; icmpv6 type nd-neighbor-solicit drop; }; }")
		for i := range 40 {
			a.send(f.b, "", fmt.Sprintf("%03d", i), 200)
			if _, err := a.holder.WriteTo(make([]byte, 172), net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(f.b), port))); err != nil {
				t.Fatal(err)
			}
		}
		run(t, b.ns, "nft", "delete", "table", "arp", "silent")
		run(t, b.ns, "nft", "delete", "table", "ip6", "silent")
		for i := range 40 {
			b.expect(fmt.Sprintf("%03d", i))
		}
	}
}

// The log group has one reader, and a host without IPv6 still probes over IPv4.
func TestOpenAndClose(t *testing.T) {
	t.Parallel()
	a, b := neighbours(t, 1500)
	a.ns.Do(func() {
		if _, err := probe.Open(probe.Config{Port: port}); err == nil || !strings.Contains(err.Error(), "weft stop") {
			t.Errorf("opening a second time: error %v, want one that names weft stop", err)
		}
	})
	if err := a.conn.Close(); err != nil {
		t.Fatal(err)
	}
	if err := a.trySend("192.0.2.2", "", payload("closed"), 0); !errors.Is(err, net.ErrClosed) {
		t.Errorf("sending after Close: error %v, want net.ErrClosed", err)
	}
	run(t, a.ns, "sysctl", "-q", "-w", "net.ipv6.conf.all.disable_ipv6=1")
	a.ns.Do(func() {
		var err error
		if a.conn, err = probe.Open(probe.Config{Port: port}); err != nil {
			t.Fatalf("opening without IPv6: %v", err)
		}
	})
	if err := a.trySend("2001:db8::2", "", payload("unreachable"), 0); err == nil {
		t.Error("sending over IPv6 on a host without it: no error, want one")
	}
	a.send("192.0.2.2", "", "over IPv4", 0)
	b.expect("over IPv4")
	for what, err := range map[string]error{
		"an invalid address":    a.conn.Send(netip.AddrPort{}, netip.AddrPort{}, payload(""), 0),
		"a source of IPv6":      a.trySend("192.0.2.2", "2001:db8::1", payload(""), 0),
		"a source of elsewhere": a.trySend("192.0.2.2", "192.0.2.99", payload(""), 0),
		"a size too small":      a.trySend("192.0.2.2", "", payload("payload"), 30),
		"a size too large":      a.trySend("192.0.2.2", "", payload("payload"), 1<<17),
	} {
		if err == nil {
			t.Errorf("sending with %s: no error, want one", what)
		}
	}
}
