package endpoint

import (
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"

	"weft/router/link"
	"weft/router/routertest"
)

// attachBeside adds an interface to a container that has another network too, as `weft attach`
// does.
func attachBeside(t *testing.T, c routertest.Namespace, ifname string, n byte, isDefault bool) string {
	t.Helper()
	e := Endpoint{HostLink: HostLink("c", ifname)}
	in, err := Open(c.Path(), ifname)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if err := in.Create(e.HostLink); err != nil {
		t.Fatal(err)
	}
	cfg := Config{
		Addr4: netip.AddrFrom4([4]byte{10, 32, 0, n}), Addr6: netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x32, 15: n}),
		HostMAC: PairOf(e.HostLink).HostMAC, MTU: 1400, Beside: true,
		Routes: []netip.Prefix{netip.MustParsePrefix("10.32.0.0/12"), netip.MustParsePrefix("fd32::/96")},
	}
	if isDefault {
		cfg.Routes = append(cfg.Routes, netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0"))
	}
	for range 2 {
		if err := in.Configure(cfg); err != nil {
			t.Fatal(err)
		}
	}
	l, err := netlink.LinkByName(e.HostLink)
	if err == nil {
		err = netlink.LinkSetUp(l)
	}
	if err != nil {
		t.Fatal(err)
	}
	return e.HostLink
}

// addDockerNetwork gives a container a network as Docker makes it: a link with a default route.
func addDockerNetwork(t *testing.T, c routertest.Namespace) {
	t.Helper()
	c.Do(func() {
		la := netlink.NewLinkAttrs()
		la.Name = "eth0"
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: la, PeerName: "bridge"}); err != nil {
			t.Fatal(err)
		}
		socket, err := link.OpenSocket()
		if err != nil {
			t.Fatal(err)
		}
		defer socket.Close()
		eth0, _ := socket.Index("eth0")
		peer, _ := socket.Index("bridge")
		if err := socket.Do(
			link.Up(loopback, 0), link.Up(peer, 0), link.Address(eth0, netip.MustParsePrefix("172.17.0.2/16"), netlink.SCOPE_UNIVERSE),
			link.Address(eth0, netip.MustParsePrefix("fd17::2/64"), netlink.SCOPE_UNIVERSE), link.Up(eth0, 0),
			link.Route(netip.MustParsePrefix("0.0.0.0/0"), link.Via{Index: eth0, Gateway: netip.MustParseAddr("172.17.0.1")}),
			link.Route(netip.MustParsePrefix("::/0"), link.Via{Index: eth0, Gateway: netip.MustParseAddr("fd17::1")}),
		); err != nil {
			t.Fatal(err)
		}
	})
}

// routeOf returns the interface by which a container sends to an address, and the source address
// that the kernel chooses, or the error. from is empty if the program leaves the source to the
// kernel.
func routeOf(c routertest.Namespace, to, from string) (out string) {
	c.Do(func() {
		routes, err := netlink.RouteGetWithOptions(net.ParseIP(to), &netlink.RouteGetOptions{SrcAddr: net.ParseIP(from)})
		if err != nil {
			out = err.Error()
			return
		}
		l, err := netlink.LinkByIndex(routes[0].LinkIndex)
		if err != nil {
			out = err.Error()
			return
		}
		out = l.Attrs().Name
		if from == "" {
			out += " " + routes[0].Src.String()
		}
	})
	return out
}

// The default route of `weft attach --default` applies while its link exists, to packets whose source is
// no address of the other network. The other network's routes never change.
func TestRoutesOfAnotherNetworkStay(t *testing.T) {
	host, c := routertest.New(t), routertest.New(t)
	addDockerNetwork(t, c)
	expect := func(when string, routes map[[2]string]string) {
		t.Helper()
		for w, want := range routes {
			if got := routeOf(c, w[0], w[1]); got != want {
				t.Errorf("%s: packets from %q to %s leave by %q; want %q", when, w[1], w[0], got, want)
			}
		}
	}
	before := map[[2]string]string{
		{"192.0.2.1", ""}: "eth0 172.17.0.2", {"2001:db8::1", ""}: "eth0 fd17::2",
		{"10.40.0.1", ""}: "eth0 172.17.0.2", {"172.17.0.9", ""}: "eth0 172.17.0.2",
	}
	expect("before attaching", before)
	published := map[[2]string]string{ // the replies of published ports
		{"192.0.2.1", "172.17.0.2"}: "eth0", {"2001:db8::1", "fd17::2"}: "eth0",
		{"172.17.0.9", ""}: "eth0 172.17.0.2", {"fd17::9", ""}: "eth0 fd17::2",
	}
	outgoing := func(ifname, addr4, addr6 string) map[[2]string]string {
		return map[[2]string]string{
			{"192.0.2.1", ""}: ifname + " " + addr4, {"2001:db8::1", ""}: ifname + " " + addr6,
			{"10.40.0.1", ""}: ifname + " " + addr4, {"fd32::40", ""}: ifname + " " + addr6,
			{"192.0.2.1", addr4}: ifname, {"2001:db8::1", addr6}: ifname,
		}
	}
	host.Do(func() {
		for range 2 { // a second call must have the same result
			first := attachBeside(t, c, "ethwe", 5, true)
			expect("attached", published)
			expect("attached", outgoing("ethwe", "10.32.0.5", "fd32::5"))
			second := attachBeside(t, c, "ethwe2", 6, true)
			expect("attached twice", published)
			expect("attached twice", outgoing("ethwe2", "10.32.0.6", "fd32::6"))
			if err := Delete(second); err != nil {
				t.Fatal(err)
			}
			expect("the second link is detached", outgoing("ethwe", "10.32.0.5", "fd32::5"))
			if err := Delete(first); err != nil {
				t.Fatal(err)
			}
			expect("both links are detached", before)
		}
		attachBeside(t, c, "ethwe", 5, false)
		second := attachBeside(t, c, "ethwe2", 6, false)
		if err := Delete(second); err != nil {
			t.Fatal(err)
		}
		expect("attached without --default", map[[2]string]string{
			{"192.0.2.1", ""}: "eth0 172.17.0.2", {"2001:db8::1", ""}: "eth0 fd17::2",
			{"10.40.0.1", ""}: "ethwe 10.32.0.5", {"fd32::40", ""}: "ethwe fd32::5",
		})
	})
	c.Do(func() {
		rules, err := netlink.RuleList(netlink.FAMILY_ALL)
		rules = slices.DeleteFunc(rules, func(r netlink.Rule) bool { return r.Priority != rulesPriority && r.Priority != rulesPriority+1 })
		if err != nil || len(rules) != 3+2 { // IPv4 needs one more rule than IPv6
			t.Errorf("after several attachments there are %d rules, %v; want 5: %v", len(rules), err, rules)
		}
	})
}
