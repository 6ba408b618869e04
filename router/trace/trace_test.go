package trace

import (
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"weft/mesh/meshtest/eventually"
	"weft/router/endpoint"
	"weft/router/policy"
	"weft/router/routertest"
)

func TestMain(m *testing.M) { routertest.Main(m) }

// hostLink is the host's end of the container's link in these tests.
const hostLink = "weft-0123456789"

// container attaches a container to a host, and routes its addresses as the agent does.
func container(t *testing.T, host routertest.Namespace, addrs ...netip.Addr) routertest.Namespace {
	t.Helper()
	inside := routertest.New(t)
	host.Do(func() {
		l, err := netlink.LinkByName("lo")
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range []string{"10.32.0.1/32", "fd00::1/128"} {
			routertest.AddAddr(t, l, netip.MustParsePrefix(a))
		}
		c, err := endpoint.Open(inside.Path(), "eth0")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := c.Create(hostLink); err != nil {
			t.Fatal(err)
		}
		e := endpoint.Endpoint{HostLink: hostLink, ContainerMAC: endpoint.PairOf(hostLink).ContainerMAC, Addr4: addrs[0], Addr6: addrs[1]}
		if err := endpoint.Plug(e, netip.MustParseAddr("10.32.0.1"), netip.MustParseAddr("fd00::1")); err != nil {
			t.Fatal(err)
		}
		if err := c.Configure(endpoint.Config{Addr4: addrs[0], Addr6: addrs[1], HostMAC: endpoint.PairOf(hostLink).HostMAC, MTU: 1400}); err != nil {
			t.Fatal(err)
		}
	})
	return inside
}

func ends() Ends {
	p := endpoint.PairOf(hostLink)
	return Ends{p.HostMAC, p.ContainerMAC}
}

// A packet of each protocol and family arrives as if the container had sent it, and the answer of the host is seen.
// Nothing is left afterwards.
func TestAPacketOfAContainerIsTraced(t *testing.T) {
	host := routertest.New(t)
	addrs := []netip.Addr{netip.MustParseAddr("10.32.0.2"), netip.MustParseAddr("fd00::2")}
	container(t, host, addrs...)
	nodes := []netip.Addr{netip.MustParseAddr("10.32.0.1"), netip.MustParseAddr("fd00::1")}
	for i, src := range addrs {
		icmp := []policy.Protocol{policy.ICMP, policy.ICMPv6}[i]
		for protocol, want := range map[policy.Protocol]string{policy.TCP: "RST", policy.UDP: "ICMP port unreachable", icmp: "echo reply"} {
			t.Run(fmt.Sprint(protocol, src), func(t *testing.T) {
				p := Packet{Protocol: protocol, Src: src, Dst: nodes[i], Port: 81, ID: 64001}
				if protocol == icmp {
					p.Port = 0
				}
				host.Do(func() { traced(t, p, want) })
			})
		}
	}
}

// traced sends a packet into the container's link, and expects an answer.
func traced(t *testing.T, p Packet, want string) {
	defer clean(t)
	s, err := Open(p)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	i, err := OpenInjector(hostLink, ends(), p.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer i.Close()
	if err := i.Send(p, ends()); err != nil {
		t.Fatal(err)
	}
	var answer Answer
	eventually.True(t, 5*time.Second, "an answer is seen", func() bool {
		list, _ := s.Events()
		return slices.ContainsFunc(list, func(e Event) bool {
			var ok bool
			if e.Answer && len(e.Transport) > 0 {
				answer, ok = p.AnswerOf(e.Network, e.Transport)
			}
			return ok
		})
	})
	list, missing := s.Events()
	if missing || list[0].Answer || list[0].Chain != "first-prerouting" || list[0].Table != s.table.name() || list[0].Out != 0 {
		t.Errorf("the first event is %+v, want that the packet arrives", list[0])
	}
	if answer.What != want {
		t.Errorf("the answer is %q, want %q", answer.What, want)
	}
	var hooks []string
	for _, e := range list {
		if hook, last, ok := e.Hook(); ok && last && e.Kind == End && !e.Answer {
			hooks = append(hooks, hook)
		}
	}
	if !slices.Equal(hooks, []string{"prerouting", "input"}) {
		t.Errorf("the packet passed %v, want prerouting and input", hooks)
	}
	if l, err := netlink.LinkByIndex(list[0].In); err != nil || l.Attrs().Name != hostLink {
		t.Errorf("the packet arrives on %v, %v, want %s", l, err, hostLink)
	}
}

// clean fails if a table or a link of a session is left.
func clean(t *testing.T) {
	t.Helper()
	out, err := exec.Command("nft", "list", "tables").CombinedOutput()
	if err != nil || strings.Contains(string(out), TablePrefix) {
		t.Errorf("after the session the tables are %s, %v, want none of it", out, err)
	}
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if strings.HasPrefix(l.Attrs().Name, linkPrefix) {
			t.Errorf("after the session there is the link %s, want none", l.Attrs().Name)
		}
	}
}

// Clean removes what a process that was killed has left.
func TestCleanRemovesWhatIsLeft(t *testing.T) {
	host := routertest.New(t)
	container(t, host, netip.MustParseAddr("10.32.0.2"), netip.MustParseAddr("fd00::2"))
	host.Do(func() {
		if _, err := OpenInjector(hostLink, ends(), 0xffff); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("nft", "add", "table", "inet", TablePrefix+"6-1").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if err := Clean(); err != nil {
			t.Error(err)
		}
		clean(t)
	})
}
