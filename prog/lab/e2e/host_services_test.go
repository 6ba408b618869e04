package e2e

import (
	"fmt"
	"strings"
	"testing"

	"weft/prog/lab"
	"weft/prog/lab/labtest"
)

// A host reaches containers by a service address as kube-proxy implements it: DNAT in the output hook,
// after routing for the service's address. Its containers, and other hosts through it, reach
// containers by that address too.
func TestHostReachesServices(t *testing.T) {
	labtest.Need(t, "nft", "nftables")
	l := labtest.New(t, lab.Options{Hosts: 3, Containers: 1})
	established(t, l)
	for _, h := range l.Hosts() {
		listen(t, l, h+"/c1")
	}
	services := map[string]string{} // service addresses, by server
	var rules strings.Builder
	for i, server := range []string{"h1/c1", "h2/c1"} {
		to := addrs(t, l, server)
		four, six := fmt.Sprintf("198.51.100.%d", i+1), fmt.Sprintf("2001:db8:5e::%d", i+1)
		services[server] = four + " " + six
		fmt.Fprintf(&rules, "ip daddr %s meta mark set 0x4000 dnat ip to %s\nip6 daddr %s meta mark set 0x4000 dnat ip6 to %s\n", four, to[0], six, to[1])
	}
	table := fmt.Sprintf("table inet services {\nchain translate {\n%s}\n"+
		"chain output { type nat hook output priority -100; jump translate; }\n"+
		"chain prerouting { type nat hook prerouting priority -100; jump translate; }\n"+
		"chain postrouting { type nat hook postrouting priority 100; meta mark & 0x4000 != 0 masquerade; }\n}\n", &rules)
	if _, err := l.Exec(t.Context(), "h1", strings.NewReader(table), "nft", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"198.51.100.0/24", "2001:db8:5e::/64"} {
		if err := tool(t, l, "h1", "route", p); err != nil {
			t.Fatal(err)
		}
	}
	capture, err := l.Capture(t.Context(), marker)
	if err != nil {
		t.Fatal(err)
	}
	for server, service := range services {
		for _, from := range []string{"h1", "h1/c1"} { // h1/c1 also reaches itself through a service
			for _, proto := range []string{"tcp", "udp"} {
				for _, size := range []string{"100", "1300", "4000"} {
					args := []string{"weft", "probe", proto, "--count", "3", "--interval", "10ms", "--size", size, "--marker", marker}
					if out, err := l.Exec(t.Context(), from, nil, append(args, strings.Fields(service)...)...); err != nil {
						t.Errorf("%s to the service of %s, %s, %s bytes: no answer, want one: %v\n%s", from, server, proto, size, err, out)
					}
				}
			}
		}
	}
	silent(t, capture)
}
