package directory

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"weft/ipam/slot"
)

var universe = slot.Universe{V4: netip.MustParsePrefix("10.32.0.0/24"), V6: netip.MustParsePrefix("fd00:1::/96")}

func TestInvalidEndpointsAreRefused(t *testing.T) {
	addr := netip.MustParseAddr
	long := strings.Repeat("a", 63)
	labels := func(n, size int) map[string]string {
		m := map[string]string{}
		for i := range n {
			m[fmt.Sprintf("%0*d", size, i)] = ""
		}
		return m
	}
	for _, c := range []struct {
		why string // part of the error; empty: no error
		e   Endpoint
	}{
		{"", Endpoint{ID: "node"}},
		{"", Endpoint{ID: strings.Repeat("a", maxID), Name: "web-0", Namespace: "shop", Aliases: []string{"www", "_dmarc.a.b", long + "." + long}}},
		{"", Endpoint{ID: "a", Name: "0-1", Labels: map[string]string{"app.kubernetes.io/name": "größer", "empty": ""}}},
		{"", Endpoint{ID: "a", Labels: labels(maxLabels, 128), Slots: make([]slot.Slot, maxSlots)}},
		{"", Endpoint{ID: "a", Ports: []Port{{"http-2", "tcp", 65535}, {"a", "sctp", 1}}, Outside: []netip.Addr{addr("192.0.2.1"), addr("2001:db8::1")}}},
		{"invalid id", Endpoint{}},
		{"invalid id", Endpoint{ID: strings.Repeat("a", maxID+1)}},
		{"invalid id", Endpoint{ID: "a\n"}},
		{"invalid id", Endpoint{ID: "a\xff"}},
		{"1 to 63", Endpoint{ID: "a", Name: long + "a"}},
		{"1 to 63", Endpoint{ID: "a", Name: "a..b"}},
		{"1 to 63", Endpoint{ID: "a", Name: ".a"}},
		{"1 to 63", Endpoint{ID: "a", Name: "a."}},
		{"only letters", Endpoint{ID: "a", Name: "Web"}},
		{"only letters", Endpoint{ID: "a", Name: "straße"}},
		{"only letters", Endpoint{ID: "a", Name: "a b"}},
		{"hyphen", Endpoint{ID: "a", Name: "-a"}},
		{"hyphen", Endpoint{ID: "a", Name: "a.b-"}},
		{"at most 230", Endpoint{ID: "a", Name: long + "." + long + "." + long, Namespace: strings.Repeat("b", 39)}},
		{"namespace", Endpoint{ID: "a", Namespace: "a b"}},
		{"only letters", Endpoint{ID: "a", Name: "a", Namespace: "a b"}},
		{"only letters", Endpoint{ID: "a", Aliases: []string{"ok", "*"}}},
		{"1 to 63", Endpoint{ID: "a", Aliases: []string{""}}},
		{"its key", Endpoint{ID: "a", Labels: map[string]string{"": "v"}}},
		{"its key", Endpoint{ID: "a", Labels: map[string]string{"k": strings.Repeat("v", maxLabelSize+1)}}},
		{"control", Endpoint{ID: "a", Labels: map[string]string{"k": "\x1b[2J"}}},
		{"control", Endpoint{ID: "a", Labels: map[string]string{"k": "\xff"}}},
		{"labels of", Endpoint{ID: "a", Labels: labels(maxLabels, 129)}},
		{"257 labels", Endpoint{ID: "a", Labels: labels(maxLabels+1, 3)}},
		{"17 slots", Endpoint{ID: "a", Slots: make([]slot.Slot, maxSlots+1)}},
		{"65 aliases", Endpoint{ID: "a", Aliases: slices.Repeat([]string{"b"}, MaxAliases+1)}},
		{"65 ports", Endpoint{ID: "a", Ports: make([]Port, maxPorts+1)}},
		{"17 outside", Endpoint{ID: "a", Outside: make([]netip.Addr, MaxOutside+1)}},
		{"for example http", Endpoint{ID: "a", Ports: []Port{{"", "tcp", 1}}}},
		{"for example http", Endpoint{ID: "a", Ports: []Port{{"sixteen-letters-", "tcp", 1}}}},
		{"for example http", Endpoint{ID: "a", Ports: []Port{{"HTTP", "tcp", 1}}}},
		{"one letter", Endpoint{ID: "a", Ports: []Port{{"80", "tcp", 1}}}},
		{"hyphens", Endpoint{ID: "a", Ports: []Port{{"a--b", "tcp", 1}}}},
		{"hyphens", Endpoint{ID: "a", Ports: []Port{{"-a", "tcp", 1}}}},
		{"not tcp", Endpoint{ID: "a", Ports: []Port{{"http", "icmp", 1}}}},
		{"number", Endpoint{ID: "a", Ports: []Port{{"http", "tcp", 0}}}},
		{"several hosts", Endpoint{ID: "a", Outside: []netip.Addr{{}}}},
		{"several hosts", Endpoint{ID: "a", Outside: []netip.Addr{addr("0.0.0.0")}}},
		{"several hosts", Endpoint{ID: "a", Outside: []netip.Addr{addr("ff02::1")}}},
		{"several hosts", Endpoint{ID: "a", Outside: []netip.Addr{addr("127.0.0.1")}}},
		{"several hosts", Endpoint{ID: "a", Outside: []netip.Addr{addr("fe80::1%eth0")}}},
	} {
		err := c.e.Check()
		if (err == nil) != (c.why == "") || err != nil && !strings.Contains(err.Error(), c.why) {
			t.Errorf("Check of %.100v: got %v, want an error with %q", c.e, err, c.why)
		}
	}
}

// The largest allowed endpoint can be published and decoded.
func TestLargestEndpointDecodes(t *testing.T) {
	e := Endpoint{ID: strings.Repeat("i", maxID), Name: strings.Repeat("n", 63), Namespace: strings.Repeat("s", 63), Labels: map[string]string{}, Generation: 1<<64 - 1, IPv4Only: true}
	for i := range 50 {
		e.Labels[fmt.Sprintf("%0320d", i)] = strings.Repeat("v", 320)
	}
	for i := range 100 {
		e.Labels[fmt.Sprint(i)] = ""
	}
	for i := range MaxAliases {
		e.Aliases = append(e.Aliases, fmt.Sprintf("%02d%s", i, strings.Repeat(".abc", 57)))
	}
	for i := range maxPorts {
		e.Ports = append(e.Ports, Port{fmt.Sprintf("p%014d", i), "sctp", 65535})
	}
	for i := range maxSlots {
		e.Slots = append(e.Slots, slot.Slot(1<<32-1-i))
		e.Outside = append(e.Outside, netip.MustParseAddr(fmt.Sprintf("2001:db8:1:1:1:1:1:%d", i)))
	}
	s, _, err := Next(nil, []Endpoint{e}, 0, key(1))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Decode(s.Encode()); err != nil {
		t.Error(err)
	}
}

func TestEndpointAddressesAndNamesAreOrdered(t *testing.T) {
	e := Endpoint{
		ID: "a", Name: "web", Namespace: "shop", Aliases: []string{"web", "www"}, Slots: []slot.Slot{5, 6},
		Outside: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("10.32.0.9"), netip.MustParseAddr("fd00:1::9")},
	}
	if got := fmt.Sprint(e.Names()); got != "[web.shop web www]" {
		t.Errorf("the names are %s; want [web.shop web www]", got)
	}
	if got := fmt.Sprint(e.Addrs(universe)); got != "[10.32.0.5 10.32.0.6 fd00:1::5 fd00:1::6 192.0.2.1]" {
		t.Errorf("the addresses are %s; want those of both slots in both families, and 192.0.2.1", got)
	}
	e.IPv4Only = true
	if got := fmt.Sprint(e.Addrs(universe)); got != "[10.32.0.5 10.32.0.6 192.0.2.1]" {
		t.Errorf("the addresses of an IPv4-only endpoint are %s; want IPv4 addresses", got)
	}
	if got := fmt.Sprint(Endpoint{Namespace: "shop"}.Names()); got != "[]" {
		t.Errorf("an endpoint without a name has the names %s; want none", got)
	}
}
