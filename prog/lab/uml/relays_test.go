package uml

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"weft/mesh/meshtest/eventually"
	"weft/prog/api"
	"weft/prog/lab"
	"weft/prog/lab/labtest"
)

// A relay carries the tunnel of the kernel's WireGuard between two hosts that do not hear each other, with a delay. While
// flows go both ways, nothing is lost when the agents of the hosts and of the relay start anew, and when the hosts hear
// each other again.
func TestRelaysCarryTunnels(t *testing.T) {
	if os.Getenv(wantVar) != "kernel" {
		t.Skip("delays need a kernel with netem: run prog/lab/uml/test-kernel.sh")
	}
	labtest.Need(t, "tc", "iproute2")
	l := labtest.New(t, lab.Options{Hosts: 3, Containers: 2, Underlay: "4", Bare: true})
	delays{l, t}.set("eth0", "delay", "5ms")
	join(t, l, "h1")
	join(t, l, "h2", "h1")
	join(t, l, "h3", "h1", "h2")
	labtest.Listen(t, l, "h2/c1")
	deaf := map[string]string{"h1": "192.0.2.2", "h2": "192.0.2.1"}
	becomes := func(state string) {
		t.Helper()
		for _, h := range []string{"h1", "h2"} {
			eventually.Nil(t, 20*time.Second, "the tunnel of "+h+" is "+state, func() error {
				for _, c := range report(t, l, h).Router.Connections {
					if strings.HasPrefix(c.Address.String(), deaf[h]+":") && c.State != state {
						return fmt.Errorf("it is %s: %s", c.State, c.Info)
					}
				}
				return nil
			})
		}
	}
	becomes(api.ConnDirect)
	for h, from := range deaf {
		rules := fmt.Sprintf("table inet cut { chain in { type filter hook input priority 0; ip saddr %s drop; }; }", from)
		if err := l.LoadRules(t.Context(), h, "cut.nft", []byte(rules)); err != nil {
			t.Fatal(err)
		}
	}
	becomes(api.ConnRelayed)
	lossless(t, l, both, func() {
		for _, h := range []string{"h3", "h1", "h2"} {
			if err := l.Kill(t.Context(), h, "agent"); err != nil {
				t.Error(err)
			}
			if err := l.Start(t.Context(), h); err != nil {
				t.Error(err)
			}
			becomes(api.ConnRelayed)
		}
		for h := range deaf {
			run(t, l, h, "nft", "delete", "table", "inet", "cut")
		}
		becomes(api.ConnDirect)
	}, "--any-order")
}
