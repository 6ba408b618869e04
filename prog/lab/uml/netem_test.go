package uml

import (
	"net/netip"
	"os"
	"testing"
	"time"

	"weft/mesh/meshtest/eventually"
	"weft/prog/api"
	"weft/prog/lab"
	"weft/prog/lab/labtest"
)

// longVar is the environment variable that makes this test wait as long as operators may have to.
const longVar = "WEFT_TEST_LONG"

// delays is a lab whose links have a delay or a loss, which few kernels outside this guest can make (netem).
type delays struct {
	*lab.Lab
	t *testing.T
}

// set makes the links of both hosts delay or drop what they send, as tc-netem(8) describes it.
func (d delays) set(link string, netem ...string) {
	d.t.Helper()
	for _, h := range d.Hosts() {
		run(d.t, d.Lab, h, append([]string{"tc", "qdisc", "replace", "dev", link, "root", "netem"}, netem...)...)
	}
}

func (d delays) connection(host string) api.Connection {
	d.t.Helper()
	all := report(d.t, d.Lab, host).Router.Connections
	if len(all) != 1 {
		d.t.Fatalf("%s has %d connections, want 1", host, len(all))
	}
	return all[0]
}

// shows waits until both hosts show a direct tunnel, by a network, with a round trip between two times.
func (d delays) shows(what string, limit time.Duration, network string, least, most time.Duration) {
	d.t.Helper()
	inside := netip.MustParsePrefix(network)
	for _, h := range d.Hosts() {
		var c api.Connection
		took := eventually.True(d.t, limit, what+": "+h+" uses "+network+" and shows its round trip", func() bool {
			c = d.connection(h)
			return c.State == api.ConnDirect && c.RoundTrip != nil && inside.Contains(c.Address.Addr()) && *c.RoundTrip >= least.Seconds() && *c.RoundTrip <= most.Seconds()
		})
		d.t.Logf("%s: after %v %s uses %v, with a round trip of %.1f ms", what, took, h, c.Address, *c.RoundTrip*1000)
	}
}

// stays checks that no host uses another address within a time.
func (d delays) stays(what string, span time.Duration) {
	d.t.Helper()
	var was [2]netip.AddrPort
	for i, h := range d.Hosts() {
		was[i] = d.connection(h).Address
	}
	for end := time.Now().Add(span); time.Now().Before(end); time.Sleep(time.Second) {
		for i, h := range d.Hosts() {
			if c := d.connection(h); c.Address != was[i] || c.State != api.ConnDirect {
				d.t.Fatalf("%s: %s uses %v (%s), want %v for %v", what, h, c.Address, c.State, was[i], span)
			}
		}
	}
}

// takesMinutes skips a test that waits until the other addresses are asked again, unless it is wanted.
func takesMinutes(t *testing.T) {
	t.Helper()
	if os.Getenv(longVar) == "" {
		t.Skip("takes three minutes: run UML_LONG=1 prog/lab/uml/test-kernel.sh")
	}
}

// The tunnel uses the nearest link, stays if all links are as far while flows lose nothing, and moves to a nearer one.
// A loss is shown, and is no cut.
//
//	h1 eth0 ── 200 ms ─ eth0 h2
//	   eth1 ─────────── eth1
func TestTheNearestLinkIsUsed(t *testing.T) {
	if os.Getenv(wantVar) != "kernel" {
		t.Skip("delays need a kernel with netem: run prog/lab/uml/test-kernel.sh")
	}
	labtest.Need(t, "tc", "iproute2")
	l := labtest.New(t, lab.Options{Hosts: 2, Containers: 2, Underlay: "4", Bare: true})
	d := delays{l, t}
	for _, h := range l.Hosts() {
		if err := l.AddLink(t.Context(), h, 200); err != nil {
			t.Fatal(err)
		}
	}
	d.set("eth0", "delay", "100ms")
	join(t, l, "h1")
	join(t, l, "h2", "h1")
	labtest.Listen(t, l, "h2/c1")
	const first, second = "192.0.2.0/24", "198.51.100.0/24"
	d.shows("the first link has a delay", 20*time.Second, second, 0, time.Second) // the guest is busy with the start
	t.Run("the same delay", func(t *testing.T) {
		takesMinutes(t)
		d := delays{l, t}
		lossless(t, l, both, func() {
			d.set("eth1", "delay", "100ms")
			d.shows("all links have a delay", 45*time.Second, second, 150*time.Millisecond, 400*time.Millisecond)
			d.stays("all links have a delay", 125*time.Second) // the other addresses are asked every 2 minutes
		})
	})
	t.Run("a nearer link", func(t *testing.T) {
		takesMinutes(t)
		d := delays{l, t}
		lossless(t, l, both, func() { // WireGuard must not follow what is on its way by the old link
			d.set("eth0", "delay", "0ms")
			d.shows("only the second link has a delay", 150*time.Second, first, 0, 200*time.Millisecond)
			d.stays("only the second link has a delay", 30*time.Second)
		}, "--any-order")
	})
	t.Run("loss", func(t *testing.T) {
		d := delays{l, t}
		for _, link := range []string{"eth0", "eth1"} {
			d.set(link, "loss", "20%")
		}
		for _, h := range l.Hosts() {
			eventually.True(t, time.Minute, h+" shows a loss, and no cut", func() bool {
				run(t, l, "h1/c1", "sh", "-c", "weft probe udp --count 20 --interval 20ms --timeout 200ms "+addrs(t, l, "h2/c1")[0]+" >/dev/null || true")
				c := d.connection(h)
				if c.State != api.ConnDirect {
					t.Fatalf("with a loss of 20 %% %s says that the tunnel is %s, want direct", h, c.State)
				}
				return c.Loss != nil && *c.Loss > 0 && *c.Loss < 1
			})
			t.Logf("%s shows a loss of %.0f %%", h, *d.connection(h).Loss*100)
		}
	})
}
