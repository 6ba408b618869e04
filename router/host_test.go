package router

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/ipam/slot"
	"weft/mesh/topology"
	"weft/router/datapath"
	"weft/router/endpoint"
	"weft/router/link"
	"weft/router/nft"
	"weft/router/routertest"
)

// These tests run two hosts, each a process in its own namespaces, joined by a veth pair:
//
//	c1 -- weft-… [ h1 ] weft ==tunnel== weft [ h2 ] weft-… -- c2
//	              under  192.0.2.1 --- 192.0.2.2  under
//
// The test binary is every program: the test itself, the agent of a host (hostMain), and
// `weft datapath`, which the agent starts as usual.
const hostEnv = "WEFT_ROUTER_TEST_HOST"

func TestMain(m *testing.M) {
	switch {
	case len(os.Args) == 2 && os.Args[1] == "datapath":
		exitWith(datapathMain())
	case os.Getenv(hostEnv) != "":
		exitWith(hostMain())
	}
	routertest.Main(m)
}

func exitWith(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func datapathMain() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	return datapath.Run(ctx, datapath.Config{Log: slog.New(slog.NewTextHandler(os.Stderr, nil))})
}

// request is a command of the test to a host, which answers with one line: "ok" or the error.
type request struct {
	Config   *Config            // the host applies this configuration now and every 100 ms
	Endpoint *endpoint.Endpoint // the endpoint to attach
	Observe  bool               // the host answers with the kind of its device
	Remove   bool               // the host removes all that Weft has made
}

func hostMain() error {
	// The UAPI socket has a fixed path, so each host needs its own /run. /var/run is a link to
	// /run.
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, ""); err != nil {
		return err
	}
	os.Unsetenv(hostEnv)
	watch, err := link.OpenWatch()
	if err != nil {
		return err
	}
	r := New(Options{Log: slog.New(slog.DiscardHandler), Watch: watch, StartDatapath: func(ctx context.Context) error {
		return datapath.Start(ctx, "/proc/self/exe", "/run/datapath.log")
	}})
	defer r.Close()
	if err := r.Enforce(nft.Policy{}); err != nil {
		return err
	}
	ctx := context.Background()
	requests := make(chan request)
	go func() {
		defer close(requests)
		for in := json.NewDecoder(os.Stdin); ; {
			var o request
			if in.Decode(&o) != nil {
				return
			}
			requests <- o
		}
	}()
	fmt.Println("ok")
	var current *Config
	tick := time.NewTicker(100 * time.Millisecond)
	for {
		select {
		case o, open := <-requests:
			if !open {
				return Remove(ctx)
			}
			if o.Config != nil || o.Remove {
				current = o.Config
			}
			fmt.Println(handle(ctx, r, o))
		case <-tick.C:
			if current != nil {
				_ = r.Apply(ctx, *current) // an error is repaired by a later attempt
			}
		}
	}
}

func handle(ctx context.Context, r *Router, o request) string {
	var err error
	switch {
	case o.Config != nil:
		err = r.Apply(ctx, *o.Config)
	case o.Endpoint != nil:
		err = r.Plug(ctx, *o.Endpoint)
	case o.Remove:
		r.Close()
		err = Remove(ctx)
	case o.Observe:
		var seen Observed
		if seen, err = r.Observe(); err == nil {
			return seen.Kind
		}
	}
	if err != nil {
		return strings.ReplaceAll(err.Error(), "\n", " ")
	}
	return "ok"
}

// host is the test's handle on a host.
type host struct {
	t       *testing.T
	ns      routertest.Namespace
	cmd     *exec.Cmd
	in      *json.Encoder
	answers chan string
	config  Config
}

var universe = slot.Universe{V4: slot.DefaultV4, V6: netip.MustParsePrefix("fd01:2:3:4::/96")}

func startHost(t *testing.T, n byte) *host {
	t.Helper()
	h := &host{t: t, cmd: exec.Command("/proc/self/exe"), answers: make(chan string, 8)}
	h.cmd.Env = append(os.Environ(), hostEnv+"=1")
	h.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID}
	h.cmd.Stderr = os.Stderr
	in, err := h.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := h.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := h.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // ends the host's PID namespace, and the datapath with it
		in.Close()
		h.cmd.Process.Kill()
		_ = h.cmd.Wait()
	})
	h.in = json.NewEncoder(in)
	go func() {
		defer close(h.answers)
		var line []byte
		for b := make([]byte, 4096); ; {
			n, err := out.Read(b)
			if err != nil {
				return
			}
			line = append(line, b[:n]...)
			for i := bytes.IndexByte(line, '\n'); i >= 0; i = bytes.IndexByte(line, '\n') {
				h.answers <- string(line[:i])
				line = line[i+1:]
			}
		}
	}()
	if got := <-h.answers; got != "ok" {
		t.Fatalf("host %d did not start: it answered %q, want ok", n, got)
	}
	h.ns = routertest.Of(t, h.cmd.Process.Pid)
	key := privateKey(t, n)
	h.config = Config{
		Universe: universe, Node: slot.Slot(uint32(n)<<16 + 1), PrivateKey: [32]byte(key.Bytes()), Port: 6784, MTU: 1420,
		Own: []slot.Range{{Start: slot.Slot(uint32(n) << 16), End: uint64(n+1) << 16}}, IPv6: true,
	}
	return h
}

func privateKey(t *testing.T, n byte) *ecdh.PrivateKey {
	t.Helper()
	key, err := ecdh.X25519().NewPrivateKey(bytes.Repeat([]byte{n}, 32))
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// ask sends a request and returns the answer.
func (h *host) ask(o request) string {
	h.t.Helper()
	if err := h.in.Encode(o); err != nil {
		h.t.Fatal(err)
	}
	select {
	case a := <-h.answers:
		return a
	case <-time.After(20 * time.Second):
		h.t.Fatal("the host did not answer within 20 s, want an answer")
		return ""
	}
}

func (h *host) must(o request) {
	h.t.Helper()
	if a := h.ask(o); a != "ok" {
		h.t.Fatalf("the host answered %s; want ok", a)
	}
}

// tunnelTo configures the tunnel to the other host, as mesh/topology would.
func (h *host) tunnelTo(o *host, n byte) {
	t := topology.Tunnel{
		PublicKey: [32]byte(privateKey(h.t, n).PublicKey().Bytes()), PresharedKey: [32]byte{7},
		Endpoint: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, n}), 6784),
	}
	for _, r := range o.config.Own {
		t.AllowedIPs = append(t.AllowedIPs, universe.Prefixes(r)...)
	}
	h.config.Tunnels = []topology.Tunnel{t}
}

// join connects two hosts by an underlay.
func join(t *testing.T, a, b *host) {
	t.Helper()
	a.ns.Do(func() {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "under"
		veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "under", PeerNamespace: netlink.NsFd(b.ns.Fd())}
		if err := netlink.LinkAdd(veth); err != nil {
			t.Fatal(err)
		}
	})
	for i, h := range []*host{a, b} {
		h.ns.Do(func() {
			l, err := netlink.LinkByName("under")
			if err != nil {
				t.Fatal(err)
			}
			lo, err := netlink.LinkByName("lo")
			if err != nil {
				t.Fatal(err)
			}
			addr, _ := netlink.ParseAddr(fmt.Sprintf("192.0.2.%d/24", i+1))
			addr6, _ := netlink.ParseAddr(fmt.Sprintf("2001:db8::%d/64", i+1))
			addr6.Flags = unix.IFA_F_NODAD
			// Each host gets a default route, through which plaintext packets would leave.
			route := &netlink.Route{LinkIndex: l.Attrs().Index, Gw: net.IPv4(192, 0, 2, byte(2-i))}
			route6 := &netlink.Route{LinkIndex: l.Attrs().Index, Gw: net.ParseIP(fmt.Sprintf("2001:db8::%d", 2-i))}
			err = errors.Join(netlink.AddrAdd(l, addr), netlink.AddrAdd(l, addr6), netlink.LinkSetUp(l), netlink.LinkSetUp(lo),
				netlink.RouteAdd(route), netlink.RouteAdd(route6))
			if err != nil {
				t.Fatal(err)
			}
		})
	}
}

// attach makes a container on h at a slot, and returns its namespace and its endpoint.
func (h *host) attach(s slot.Slot) (routertest.Namespace, endpoint.Endpoint) {
	h.t.Helper()
	c := routertest.New(h.t)
	e := endpoint.Endpoint{
		HostLink: endpoint.HostLink(fmt.Sprint(s), "eth0"), MTU: h.config.MTU,
		Addr4: universe.Addr4(s), Addr6: universe.Addr6(s),
	}
	h.ns.Do(func() {
		in, err := endpoint.Open(c.Path(), "eth0")
		if err != nil {
			h.t.Fatal(err)
		}
		defer in.Close()
		if err := in.Create(e.HostLink); err != nil {
			h.t.Fatal(err)
		}
		pair := endpoint.PairOf(e.HostLink)
		e.ContainerMAC = pair.ContainerMAC
		all := []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}
		err = in.Configure(endpoint.Config{Addr4: e.Addr4, Addr6: e.Addr6, HostMAC: pair.HostMAC, MTU: e.MTU, Routes: all})
		if err != nil {
			h.t.Fatal(err)
		}
		if err := endpoint.Check(e.HostLink, c.Path(), "eth0", []netip.Addr{e.Addr4, e.Addr6}); err != nil {
			h.t.Error(err)
		}
	})
	h.must(request{Endpoint: &e})
	h.config.Endpoints = append(h.config.Endpoints, e)
	h.must(request{Config: &h.config})
	return c, e
}

// echo answers UDP datagrams on port 7 of a namespace until the test ends. An answer starts with
// the source address.
func echo(t *testing.T, ns routertest.Namespace) {
	t.Helper()
	var c net.PacketConn
	ns.Do(func() {
		var err error
		if c, err = net.ListenPacket("udp", ":7"); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() { c.Close() })
	go func() {
		for b := make([]byte, 1<<16); ; {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = c.WriteTo(append([]byte(from.(*net.UDPAddr).IP.String()+" "), b[:n]...), from)
		}
	}()
}

const marker = "weft-payload-marker"

// call sends the marker to the echo server until an answer arrives. It returns the source address
// that the server saw, or nothing if no answer arrives in time.
func call(t *testing.T, ns routertest.Namespace, to netip.Addr, patience time.Duration) (seen string) {
	t.Helper()
	ns.Do(func() {
		c, err := net.Dial("udp", netip.AddrPortFrom(to, 7).String())
		if err != nil {
			return
		}
		defer c.Close()
		for end := time.Now().Add(patience); time.Now().Before(end); {
			_, _ = c.Write([]byte(marker))
			_ = c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
			b := make([]byte, 2048)
			if n, err := c.Read(b); err == nil {
				seen, _, _ = strings.Cut(string(b[:n]), " ")
				return
			}
			time.Sleep(5 * time.Millisecond)
		}
	})
	return seen
}

// sniff counts the packets on a host's underlay that contain the marker or overlay addresses, until
// the test ends.
func sniff(t *testing.T, h *host) *atomic.Int64 {
	t.Helper()
	var leaks atomic.Int64
	fd := -1
	h.ns.Do(func() {
		l, err := netlink.LinkByName("under")
		if err != nil {
			t.Fatal(err)
		}
		const all = unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, all); err != nil {
			t.Fatal(err)
		}
		timeout := unix.Timeval{Usec: 50_000}
		err = errors.Join(unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: l.Attrs().Index}),
			unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout))
		if err != nil {
			t.Fatal(err)
		}
	})
	stop, done := make(chan struct{}), make(chan struct{})
	t.Cleanup(func() { close(stop); <-done; unix.Close(fd) })
	go func() {
		defer close(done)
		for b := make([]byte, 65536); ; {
			select {
			case <-stop:
				return
			default:
			}
			n, _, err := unix.Recvfrom(fd, b, 0)
			if err == nil && leak(b[:n]) {
				leaks.Add(1)
			}
		}
	}()
	return &leaks
}

func leak(p []byte) bool {
	inside := func(b []byte) bool {
		a, _ := netip.AddrFromSlice(b)
		return universe.V4.Contains(a) || universe.V6.Contains(a)
	}
	switch {
	case bytes.Contains(p, []byte(marker)):
		return true
	case len(p) >= 20 && p[0]>>4 == 4:
		return inside(p[12:16]) || inside(p[16:20])
	case len(p) >= 40 && p[0]>>4 == 6:
		return inside(p[8:24]) || inside(p[24:40])
	}
	return false
}
