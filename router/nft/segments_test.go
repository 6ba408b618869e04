package nft

import (
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"weft/ipam/slot"
	"weft/router/routertest"
)

// What a server behind the tunnel sends to an endpoint fits the MTU of the endpoint's route to it from the first
// segment on, in both families. Neither knows that MTU.
//
//	endpoint eth0 ── weft-1 host weft ── eth0 server
func TestSegmentsFollowTheMTUOfTheRoute(t *testing.T) {
	endpoint, host, server := routertest.New(t), routertest.New(t), routertest.New(t)
	commands(t, host, `ip link add weft-1 type veth peer name eth0 netns `+endpoint.Path()+`
		ip link add weft type veth peer name eth0 netns `+server.Path()+`
		ip link set weft-1 up
		ip link set weft up
		sysctl -q -w net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
		ip addr add 169.254.1.1/32 dev weft-1
		ip route add 10.32.0.1 dev weft-1
		ip route add fd01:2:3:4::1 dev weft-1
		ip route add 10.32.0.0/16 dev weft mtu 1220
		ip -6 route add fd01:2:3:4::/64 dev weft mtu 1290
		sysctl -q -w net.ipv4.conf.all.proxy_arp=1 net.ipv6.conf.all.proxy_ndp=1
		ip neigh add proxy fd01:2:3:4::9 dev weft-1
		ip neigh add proxy fd01:2:3:4::1 dev weft`)
	for ns, addrs := range map[routertest.Namespace][2]string{endpoint: {"10.32.0.1/16", "fd01:2:3:4::1/64"}, server: {"10.32.0.9/16", "fd01:2:3:4::9/64"}} {
		commands(t, ns, `ip link set eth0 up
			ip addr add `+addrs[0]+` dev eth0
			ip addr add `+addrs[1]+` dev eth0 nodad`)
	}
	host.Do(func() {
		var k Kernel
		t.Cleanup(k.Close)
		if err := k.Apply(Build(Guard{Universe: slot.Universe{V4: netip.MustParsePrefix("10.32.0.0/16"), V6: netip.MustParsePrefix("fd01:2:3:4::/96")}})); err != nil {
			t.Fatal(err)
		}
	})
	for addr, want := range map[string]int{"10.32.0.9": 1220 - 20 - 20, "fd01:2:3:4::9": 1290 - 40 - 20} {
		var l net.Listener
		var err error
		server.Do(func() { l, err = net.Listen("tcp", net.JoinHostPort(addr, "80")) })
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		var client net.Conn
		endpoint.Do(func() { client, err = net.Dial("tcp", net.JoinHostPort(addr, "80")) })
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		accepted, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer accepted.Close()
		if got := maxSegmentOf(t, accepted); got != want {
			t.Errorf("%s: the server sends segments of up to %d bytes, want %d", addr, got, want)
		}
	}
}

// commands runs the lines of a text in a network namespace.
func commands(t *testing.T, ns routertest.Namespace, text string) {
	t.Helper()
	ns.Do(func() {
		for line := range strings.Lines(text) {
			words := strings.Fields(line)
			if out, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
				t.Fatalf("%s: %v: %s", line, err, out)
			}
		}
	})
}

// maxSegmentOf returns the maximum segment size that the other side of a connection announced, without options.
func maxSegmentOf(t *testing.T, c net.Conn) (n int) {
	t.Helper()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		if failed = err; err == nil {
			n = int(info.Snd_mss)
			if info.Options&1 != 0 { // timestamps take 12 bytes of each segment
				n += 12
			}
		}
	})
	if err != nil || failed != nil {
		t.Fatal(err, failed)
	}
	return n
}
