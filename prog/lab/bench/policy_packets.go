package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"weft/router/endpoint"
	"weft/router/link"
	"weft/router/nft"
	"weft/router/policy"
)

const (
	packetHosts = 10                     // number of hosts with Weft, one after the other
	packetTurns = 2                      // measurements of each case on each host
	packetTime  = 150 * time.Millisecond // duration of a measurement, after the same time to warm up
	packetMTU   = 1420
	// packetPatience is how long a packet may take. After that it counts as dropped.
	packetPatience = 500 * time.Millisecond
)

// space is a network namespace of this program.
type space struct{ netns.NsHandle }

// newSpace creates a namespace whose lo is up.
func newSpace() (space, error) {
	ns, err := newNetns()
	if err != nil {
		return space{}, err
	}
	s := space{ns}
	return s, s.do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
}

func (s space) close() { _ = s.NsHandle.Close() }

// path returns a path with which other processes can open the namespace.
func (s space) path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(s.NsHandle)) }

// do runs f on a thread in the namespace. Sockets that f opens stay in it, and programs that f starts
// run in it.
func (s space) do(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // the thread is never unlocked, so it ends with the goroutine
		if err := netns.Set(s.NsHandle); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

// path is two endpoints and the host between them, set up as the agent and weft-cni do.
//
//	from  eth0 ── weft-…  host  weft-… ── eth0  to
type path struct {
	host         space
	of           [2]policy.Endpoint
	ends         [2]space
	links        [2]string // names of the endpoints' links on the host
	sockets      [2]int
	enforcer     enforcer
	destinations *netlink.Handle
	closed       bool
}

func newPath(ends [2]policy.Endpoint) (p *path, err error) {
	p = &path{of: ends}
	if p.host, err = newSpace(); err != nil {
		return nil, err
	}
	err = p.host.do(func() error {
		node := netip.PrefixFrom(clusterUniverse.Addr4(1), 32)
		lo, err := netlink.LinkByName("lo")
		if err == nil {
			err = netlink.AddrAdd(lo, &netlink.Addr{IPNet: link.IPNet(node)})
		}
		if err == nil {
			err = link.WriteSysctl("1", "ipv4", "ip_forward")
		}
		if err != nil {
			return err
		}
		p.destinations, err = link.Handle()
		return err
	})
	for i, e := range ends {
		if err == nil {
			err = p.attach(i, e)
		}
	}
	if err != nil {
		return nil, err
	}
	for i, e := range ends {
		if p.sockets[i], err = p.socket(i, e, clusterPort, ends[1-i]); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// attach makes one endpoint.
func (p *path) attach(i int, e policy.Endpoint) (err error) {
	if p.ends[i], err = newSpace(); err != nil {
		return err
	}
	p.links[i] = endpoint.HostLink(e.ID, "eth0")
	pair := endpoint.PairOf(p.links[i])
	return p.host.do(func() error {
		c, err := endpoint.Open(p.ends[i].path(), "eth0")
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.Create(p.links[i]); err != nil {
			return err
		}
		err = c.Configure(endpoint.Config{
			Addr4: e.Addrs[0], HostMAC: pair.HostMAC, MTU: packetMTU, Routes: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")},
		})
		if err != nil {
			return err
		}
		return endpoint.Plug(endpoint.Endpoint{
			HostLink: p.links[i], ContainerMAC: pair.ContainerMAC, Addr4: e.Addrs[0], MTU: packetMTU,
		}, clusterUniverse.Addr4(1), netip.Addr{})
	})
}

// socket returns a socket of one endpoint, connected to the same port of the other endpoint.
func (p *path) socket(i int, own policy.Endpoint, port int, other policy.Endpoint) (fd int, err error) {
	err = p.ends[i].do(func() (err error) {
		if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		patience := unix.NsecToTimeval(int64(packetPatience))
		return errors.Join(
			unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &patience),
			unix.Bind(fd, &unix.SockaddrInet4{Port: port, Addr: own.Addrs[0].As4()}),
			unix.Connect(fd, &unix.SockaddrInet4{Port: port, Addr: other.Addrs[0].As4()}))
	})
	return fd, err
}

// forbids reports whether the host drops a packet to a port that no policy allows. Without this check,
// rules that allow everything would be measured as fast rules.
func (p *path) forbids() (bool, error) {
	from, err := p.socket(0, p.of[0], clusterPort+1, p.of[1])
	if err != nil {
		return false, err
	}
	defer unix.Close(from)
	to, err := p.socket(1, p.of[1], clusterPort+1, p.of[0])
	if err != nil {
		return false, err
	}
	defer unix.Close(to)
	packet := make([]byte, 16)
	if _, err := unix.Write(from, packet); err != nil {
		return false, err
	}
	_, err = unix.Read(to, packet)
	if errors.Is(err, unix.EAGAIN) {
		return true, nil
	}
	return false, err
}

// close removes the path once, even if several cases share the path.
func (p *path) close() {
	if p.closed {
		return
	}
	p.closed = true
	p.enforcer.kernel.Close()
	p.destinations.Close()
	for i := range p.ends {
		_ = unix.Close(p.sockets[i])
		p.ends[i].close()
	}
	p.host.close()
}

// rate returns how many packets per second the host forwards. The sender's system call carries each
// packet through the whole host. Packets are counted at the link to the receiver, which need not read
// them: packets that exceed its buffer were forwarded too.
func (p *path) rate() (float64, error) {
	if err := p.answered(); err != nil {
		return 0, err
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before, err := p.forwarded()
	if err != nil {
		return 0, err
	}
	packet := make([]byte, 16)
	start := time.Now()
	sent := 0
	for time.Since(start) < packetTime {
		for range 64 {
			if _, err := unix.Write(p.sockets[0], packet); err != nil {
				return 0, fmt.Errorf("send: %w", err)
			}
			sent++
		}
	}
	seconds := time.Since(start).Seconds()
	after, err := p.forwarded()
	if err != nil {
		return 0, err
	}
	if after-before < uint64(sent)*9/10 {
		return 0, fmt.Errorf("sent %d packets, but only %d were forwarded", sent, after-before)
	}
	return float64(after-before) / seconds, nil
}

// answered sends a packet back and forth, so that the connection is established. iptables rules
// accept established connections first, which is their best case.
func (p *path) answered() error {
	packet := make([]byte, 16)
	for { // drain packets of the last measurement
		if _, _, err := unix.Recvfrom(p.sockets[1], packet, unix.MSG_DONTWAIT); err != nil {
			break
		}
	}
	for _, way := range [][2]int{{0, 1}, {1, 0}} {
		if _, err := unix.Write(p.sockets[way[0]], packet); err != nil {
			return fmt.Errorf("send: %w", err)
		}
		if _, err := unix.Read(p.sockets[way[1]], packet); err != nil {
			return fmt.Errorf("the first packet was not forwarded: %w", err)
		}
	}
	return nil
}

func (p *path) forwarded() (uint64, error) {
	l, err := p.destinations.LinkByName(p.links[1])
	if err != nil {
		return 0, err
	}
	return l.Attrs().Statistics.TxPackets, nil
}

// packetCase is one combination of a cluster and a way to enforce its policies on a host.
type packetCase struct {
	cluster *cluster
	way     string // "": nothing enforces policies; "weft"; or a backend of iptables
	path    *path
	program nft.Program // the nftables program, if way is "weft"
	kube    *kubeRouter
	loaded  float64 // load time in seconds
	rates   samples
	byHost  samples // mean rate on each host, if way is not a backend of iptables
}

// setUp makes the host of an iptables case, and loads its rules.
func (c *packetCase) setUp(ctx context.Context) error {
	ends, err := pair(c.cluster)
	if err != nil {
		return err
	}
	if c.path, err = newPath(ends); err != nil {
		return err
	}
	c.kube = &kubeRouter{c.cluster, c.way, 0}
	if c.loaded, err = timed(func() error { return c.kube.sync(ctx, c.path.host) }); err != nil {
		return err
	}
	return c.check()
}

// ourCases returns a case without rules, a case of Weft for each cluster, and a second case for the last
// cluster: the difference of two equal cases is the noise.
func ourCases(clusters ...*cluster) []*packetCase {
	cases := []*packetCase{{cluster: clusters[len(clusters)-1]}}
	for _, c := range append(clusters, clusters[len(clusters)-1]) {
		cases = append(cases, &packetCase{cluster: c, way: "weft", program: clusterProgram(c)})
	}
	return cases
}

// moveIn makes a host without rules, and a host that all cases of Weft share, one after the other. A new
// host can be a tenth faster or slower, depending on its memory's location.
func moveIn(ends [2]policy.Endpoint, ours []*packetCase) error {
	bare, err := newPath(ends)
	if err != nil {
		return err
	}
	ours[0].path = bare
	host, err := newPath(ends)
	if err != nil {
		return err
	}
	for _, c := range ours[1:] {
		c.path = host
	}
	return host.enforcer.open(host.host)
}

func clusterProgram(c *cluster) nft.Program {
	var b nft.Builder
	p := newCompiler(c).Program()
	return b.Build(clusterConfig(&p))
}

// destroyed is how long the kernel may take to free objects of the previous program.
const destroyed = 100 * time.Millisecond

// takeTurn loads the program of a case of Weft on the host that these cases share.
func (c *packetCase) takeTurn() error {
	if c.way != "weft" {
		return nil
	}
	err := c.path.enforcer.kernel.Apply(c.program)
	time.Sleep(destroyed)
	return err
}

// check returns an error unless the host enforces the policies of the cluster.
func (c *packetCase) check() error {
	forbidden, err := c.path.forbids()
	if err == nil && forbidden != (len(c.cluster.policies) > 0) {
		err = fmt.Errorf("a packet that no policy allows: dropped %v, want %v", forbidden, !forbidden)
	}
	return err
}

func (c *packetCase) close() {
	if c.path != nil {
		c.path.close()
	}
}

// turn measures the case once.
func (c *packetCase) turn() error {
	if err := c.takeTurn(); err != nil {
		return err
	}
	if _, err := c.path.rate(); err != nil {
		return err
	}
	rate, err := c.path.rate()
	c.rates.add(rate / 1000)
	return err
}

// policyPackets measures small packets between two endpoints of a host, for all cases in random order.
// It repeats the cases of Weft on several hosts. theirs are the iptables cases with all policies.
func policyPackets(ctx context.Context, whole *cluster, theirs []*packetCase) (err error) {
	none, few := newCluster(0), newCluster(10)
	ours := ourCases(whole, few, none)
	var others []*packetCase
	defer func() {
		for _, c := range slices.Concat(ours, others) {
			c.close()
		}
	}()
	for _, c := range []*cluster{none, few} {
		for _, t := range theirs {
			one := &packetCase{cluster: c, way: t.way}
			others = append(others, one)
			if err := one.setUp(ctx); err != nil {
				return fmt.Errorf("%d policies, %q: %w", len(c.policies), one.way, err)
			}
		}
	}
	ends, err := pair(whole, few, none)
	if err != nil {
		return err
	}
	runtime.GC()
	for range packetHosts {
		if err := onHost(ends, ours, slices.Concat(others, theirs)); err != nil {
			return err
		}
	}
	printPackets(ours, slices.Concat(others, theirs))
	return nil
}

// onHost measures the cases of Weft on a new host, mixed with the iptables cases on their own hosts.
func onHost(ends [2]policy.Endpoint, ours, theirs []*packetCase) error {
	if err := moveIn(ends, ours); err != nil {
		return err
	}
	all := slices.Concat(ours, theirs)
	for turn := range packetTurns {
		rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		for _, c := range all {
			err := c.turn()
			if err == nil && turn == 0 {
				err = c.check()
			}
			if err != nil {
				return fmt.Errorf("%d policies, %q: %w", len(c.cluster.policies), c.way, err)
			}
		}
	}
	for _, c := range ours {
		c.byHost.add(c.rates[len(c.rates)-packetTurns:].mean())
		c.close()
	}
	return nil
}

// printPackets prints Weft's cases in the order of ourCases.
func printPackets(ours, theirs []*packetCase) {
	bare, whole, few, none, again := ours[0], ours[1], ours[2], ours[3], ours[4]
	var rows []comparison
	for _, o := range []*packetCase{none, few, whole} {
		for _, c := range theirs {
			if len(c.cluster.policies) == len(o.cluster.policies) {
				rows = append(rows, comparison{what: fmt.Sprintf("%d policies; iptables-%s", len(o.cluster.policies), c.way), ours: o.rates, theirs: c.rates})
			}
		}
	}
	printComparisons(os.Stdout, "Policies: small packets between two endpoints of one host", "thousands a second", policyComparedTo, rows...)
	printPairs(os.Stdout, fmt.Sprintf("Policies: rate of packets under more policies, relative to fewer, on each of %d hosts", packetHosts),
		pairs{"no policies, relative to no policies (noise)", again.byHost, none.byHost, false},
		pairs{"10 policies, relative to none", few.byHost, none.byHost, true},
		pairs{fmt.Sprintf("%d policies, relative to 10", clusterPolicies), whole.byHost, few.byHost, true},
		pairs{fmt.Sprintf("%d policies, relative to none", clusterPolicies), whole.byHost, none.byHost, true})
	printComparisons(os.Stdout, "Policies: packets, compared with a host without any rules", "thousands a second", "no rules",
		comparison{what: "0 policies: the guard alone", ours: none.rates, theirs: bare.rates},
		comparison{what: fmt.Sprintf("%d policies", clusterPolicies), ours: whole.rates, theirs: bare.rates})
}
