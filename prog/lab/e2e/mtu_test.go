package e2e

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"weft/mesh/meshtest/eventually"
	"weft/prog/api"
	"weft/prog/lab/labtest"
)

// The MTU follows the links and routes that carry the tunnel. Between hosts whose links have MTUs of
// 9000 and 1500 bytes all packets arrive. A bridge without tunnel traffic changes nothing. If a route
// carries less than WireGuard's packets, streams continue, and the status says why they are slow.
func TestMTUFollowsThePath(t *testing.T) {
	labtest.Need(t, "ip", "iproute2")
	l := bare(t, 2)
	if err := l.SetMTU(t.Context(), "h1", 9000); err != nil {
		t.Fatal(err)
	}
	route := func(mtu int) {
		t.Helper()
		if err := l.SetRouteMTU(t.Context(), "h1", netip.MustParsePrefix("192.0.2.0/24"), mtu); err != nil {
			t.Fatal(err)
		}
	}
	launchFounder(t, l)
	if err := l.Launch(t.Context(), "h2", token(t, l), "h1"); err != nil {
		t.Fatal(err)
	}
	established(t, l)
	for _, c := range []string{"h1/c1", "h2/c1"} {
		if _, err := l.Plug(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		listen(t, l, c)
	}
	connection := func() api.Connection { return report(t, l, "h1").Router.Connections[0] }
	mtus := func(host string) (list []string) {
		for line := range strings.Lines(run(t, l, host, "ip", "-o", "link")) {
			if f := strings.Fields(line); strings.HasPrefix(f[1], "weft") {
				list = append(list, f[4])
			}
		}
		return list
	}

	probe := func(kind, from, to, size string, more ...string) {
		t.Helper()
		args := slices.Concat([]string{"weft", "probe", kind, "--interval", "5ms", "--size", size}, more, addrs(t, l, to))
		if kind == "udp" { // the first packets teach the sender the path MTU
			_, _ = l.Exec(t.Context(), from, nil, append(args, "--timeout", "50ms")...)
		}
		run(t, l, from, args...)
	}
	eventually.True(t, 10*time.Second, "h1 has learned the MTU of h2's link", func() bool { return connection().MTU == 1420 })
	if got := mtus("h1"); !slices.Equal(got, []string{"8920", "8920"}) {
		t.Errorf("on a host whose link has an MTU of 9000 bytes, the MTUs of tunnel and container are %v, want 8920", got)
	}
	probe("udp", "h1/c1", "h2/c1", "2000")
	probe("udp", "h2/c1", "h1/c1", "2000")
	probe("udp", "h1", "h2/c1", "2000")

	// Add a bridge like a container engine's, and change the MTU of the container's link. Once the
	// agent has repaired that MTU, it has also seen the bridge.
	own := strings.Fields(run(t, l, "h2", "sh", "-c", "ls /sys/class/net | grep weft-"))[0]
	run(t, l, "h2", "sh", "-c", "ip link add br0 type bridge && ip link set br0 mtu 1400 up && ip address add 172.30.0.1/16 dev br0 && ip link set mtu 1300 dev "+own)
	eventually.True(t, 10*time.Second, "beside a bridge with MTU 1400, the tunnel and a container have MTU 1420", func() bool {
		return slices.Equal(mtus("h2"), []string{"1420", "1420"})
	})

	route(1280)
	probe("tcp", "h1/c1", "h2/c1", "60000", "--count", "50", "--timeout", "10s")
	warned := func() bool {
		return slices.ContainsFunc(report(t, l, "h1").Warnings, func(w string) bool { return strings.Contains(w, "ip route get 192.0.2.2") })
	}
	eventually.True(t, 10*time.Second, "the status warns of the route", func() bool { return connection().MTU == 1200 && warned() })
	probe("tcp", "h1/c1", "h2/c1", "60000", "--count", "50", "--timeout", "10s")
	probe("udp", "h1/c1", "h2/c1", "2000")

	route(0)
	eventually.True(t, 10*time.Second, "the status no longer warns of the route", func() bool { return connection().MTU == 1420 && !warned() })
}
