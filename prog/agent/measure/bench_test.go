package measure

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft/mesh/path"
	"weft/mesh/peer"
	"weft/mesh/topology"
	"weft/prog/agent/agenttest"
	"weft/prog/agent/live"
	"weft/prog/agent/underlay"
	"weft/prog/agent/view"
	"weft/router/link"
	"weft/router/nft"
	"weft/router/policy"
	"weft/router/probe"
	"weft/router/routertest"
	"weft/router/wg"
)

// peersIn is the environment variable that makes the test binary the other end of BenchmarkAtRest: the path
// of that end's network namespace.
const peersIn = "WEFT_BENCH_PEERS_IN"

func TestMain(m *testing.M) {
	if ns := os.Getenv(peersIn); ns != "" {
		if err := answerForPeers(ns); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	routertest.Main(m)
}

// counting counts what a Conn sends.
type counting struct {
	*probe.Conn
	sent, bytes atomic.Int64
}

func (c *counting) Send(to, from netip.AddrPort, payload []byte, size int) error {
	c.sent.Add(1)
	c.bytes.Add(int64(max(size, len(payload)+28)))
	return c.Conn.Send(to, from, payload, size)
}

const (
	peers = 1000
	port  = 6784
)

// member is a host of the benchmark; 0 is the one that is measured.
type member struct {
	id     peer.ID
	key    *ecdh.PrivateKey
	public [32]byte
}

// memberOf returns a host, the same in both processes.
func memberOf(i int) (m member) {
	seed := sha256.Sum256([]byte{byte(i >> 8), byte(i)})
	m.key, _ = ecdh.X25519().NewPrivateKey(seed[:])
	m.public = [32]byte(m.key.PublicKey().Bytes())
	sum := sha256.Sum256(m.public[:])
	copy(m.id[:], sum[:])
	return m
}

// BenchmarkAtRest measures what a host with 1,000 peers spends at rest, over a veth pair. Another process has
// the addresses of all peers, and answers for each. The kernel's work for a packet counts for its sender.
// It runs for real time: 20 s to begin, 60 s that count.
//
//	go test -run '^$' -bench AtRest -benchtime 1x ./prog/agent/measure
func BenchmarkAtRest(b *testing.B) {
	left, right := routertest.New(b), routertest.New(b)
	connect(b, left, right)
	var kernel nft.Kernel
	b.Cleanup(kernel.Close)
	var conn *counting
	left.Do(func() {
		guard := nft.Guard{Universe: agenttest.Universe(), Port: port}
		for k := range peers {
			guard.Hosts.Peers = append(guard.Hosts.Peers, policy.Service{Addr: address(k), Protocol: unix.IPPROTO_UDP, Port: port})
		}
		if err := kernel.Apply(nft.Build(guard)); err != nil {
			b.Fatal(err)
		}
		c, err := probe.Open(probe.Config{Port: port})
		if err != nil {
			b.Fatal(err)
		}
		conn = &counting{Conn: c}
	})
	other := exec.Command("/proc/self/exe")
	other.Env, other.Stderr = append(os.Environ(), peersIn+"="+right.Path()), os.Stderr
	if err := other.Start(); err != nil {
		b.Fatal(err)
	}
	defer func() {
		_ = other.Process.Kill()
		_ = other.Wait()
	}()
	own := memberOf(0)
	v := agenttest.View()
	v.Reach = map[peer.ID]topology.Reach{}
	var tunnels []topology.Tunnel
	for i := range peers {
		m, at := memberOf(i+1), netip.AddrPortFrom(address(i), port)
		tunnels = append(tunnels, topology.Tunnel{Peer: m.id, PublicKey: m.public, Endpoint: at, Record: []netip.AddrPort{at}, Route: 1500})
		v.Reach[m.id] = topology.Reached
	}
	seen := &live.Value[*view.View]{}
	seen.Set(v)
	m, err := New(Config{
		Self: own.id, PrivateKey: [32]byte(own.key.Bytes()), View: seen, Host: &live.Value[underlay.Host]{}, Tunnels: func() []topology.Tunnel { return tunnels },
		Open: func() (Conn, error) { return conn, nil }, Bytes: link.TunnelBytes,
		Observe: func() (wg.Observed, error) { return wg.Observed{}, nil }, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		b.Fatal(err)
	}
	ctx, stop := context.WithCancel(b.Context())
	var all sync.WaitGroup
	all.Go(func() { _ = m.Run(ctx) })
	defer all.Wait()
	defer stop()
	for b.Loop() {
		time.Sleep(20 * time.Second)
		const measured = 60 * time.Second
		before, sent, bytes := used(b), conn.sent.Load(), conn.bytes.Load()
		time.Sleep(measured)
		b.ReportMetric(float64(used(b)-before)/float64(measured)*100, "cpu-%")
		b.ReportMetric(float64(conn.bytes.Load()-bytes)/measured.Seconds()/1000, "kB/s")
		b.ReportMetric(float64(conn.sent.Load()-sent)/measured.Seconds(), "probes/s")
		for i := range peers {
			if p, _ := m.Path(memberOf(i + 1).id); p.State != path.Direct {
				b.Errorf("the path to peer %d is %+v; want direct", i, p)
			}
		}
	}
}

// address returns the address of a peer.
func address(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 201, byte(i >> 8), byte(i)}) }

// connect joins two namespaces by a veth pair. The right one has all addresses of 10.201.0.0/16. No limit of
// the rules is in the way: all peers share one source here.
func connect(b *testing.B, left, right routertest.Namespace) {
	b.Helper()
	run := func(ns routertest.Namespace, command ...string) {
		b.Helper()
		ns.Do(func() {
			if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
				b.Fatalf("%v: %v: %s", command, err, out)
			}
		})
	}
	run(left, "ip", "link", "add", "under", "type", "veth", "peer", "name", "under", "netns", right.Path())
	run(left, "ip", "addr", "add", "10.200.0.1/15", "dev", "under")
	run(right, "ip", "addr", "add", "10.201.0.0/15", "dev", "under")
	for _, ns := range []routertest.Namespace{left, right} {
		run(ns, "ip", "link", "set", "under", "up")
	}
	run(right, "ip", "route", "add", "local", "10.201.0.0/16", "dev", "under")
	run(left, "ip", "route", "add", "10.201.0.0/16", "via", "10.201.0.0", "dev", "under", "onlink")
	rules := fmt.Sprintf("table inet unlimited { chain probes { type filter hook input priority 200; udp dport 6784 @th,64,24 %#x log group %d snaplen %d; }; }", path.Magic[:], probe.Group, probe.Snapshot)
	run(right, "nft", rules)
}

// answerForPeers answers for all peers in a network namespace, and asks as they do, until it is killed.
func answerForPeers(namespace string) error {
	runtime.LockOSThread()
	ns, err := os.Open(namespace)
	if err != nil {
		return err
	}
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return err
	}
	conn, err := probe.Open(probe.Config{Port: port})
	if err != nil {
		return err
	}
	runtime.UnlockOSThread()
	to, others := memberOf(0), map[netip.Addr]*path.Prober{}
	for i := range peers {
		m := memberOf(i + 1)
		shared, err := m.key.ECDH(to.key.PublicKey())
		if err != nil {
			return err
		}
		key, err := path.NewKey(shared, m.public, to.public)
		if err != nil {
			return err
		}
		p := path.New(path.Config{Self: m.id, Random: rand.Reader})
		p.Configure(time.Now(), []path.Remote{{ID: to.id, Key: key, Addrs: []netip.AddrPort{netip.MustParseAddrPort("10.200.0.1:6784")}}}, false)
		others[address(i)] = p
	}
	var mu sync.Mutex
	go func() { // ends with the process
		for {
			mu.Lock()
			for addr, p := range others {
				for _, s := range p.Due(time.Now()) {
					_ = conn.Send(s.To, netip.AddrPortFrom(addr, 0), s.Payload, s.Size)
				}
			}
			mu.Unlock()
			time.Sleep(20 * time.Millisecond)
		}
	}()
	return conn.Receive(context.Background(), func(d probe.Datagram) {
		mu.Lock()
		defer mu.Unlock()
		if p := others[d.To.Addr()]; p != nil {
			if s, ok := p.Receive(time.Now(), path.Arrival{From: d.From, To: d.To, Payload: d.Payload, Size: d.Size}); ok {
				_ = conn.Send(s.To, netip.AddrPortFrom(s.From, s.Port), s.Payload, s.Size)
			}
		}
	})
}

// used returns the processor time of this process in nanoseconds.
func used(b *testing.B) int64 {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return unix.TimevalToNsec(u.Utime) + unix.TimevalToNsec(u.Stime)
}
