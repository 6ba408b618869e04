package agent

import (
	"net/netip"
	"testing"

	"weft/ipam/ring"
	"weft/ipam/slot"
	"weft/mesh/peer"
	"weft/mesh/secret"
	"weft/prog/kube"
)

// A Node's addresses stand for the peer that says that it runs there, if its node address is
// its own, and nobody else can be meant.
func TestPolicyHosts(t *testing.T) {
	u := slot.Universe{V4: slot.DefaultV4, V6: secret.ClusterID{1}.V6()}
	one, two := peer.ID{1}, peer.ID{2}
	r := ring.Found(ring.ID{1}, [16]byte{1}, u, one, two)
	owned := r.Owned()
	slotOf := func(id peer.ID) slot.Slot { return owned[id][0].Start + 5 }
	nodes := map[string]kube.Node{
		"n1": {Name: "n1", UID: "u1", Addrs: []netip.Addr{netip.MustParseAddr("10.200.0.11")}},
		"n2": {Name: "n2", UID: "u2"},
	}
	for name, c := range map[string]struct {
		records map[peer.ID]peer.Record
		present map[peer.ID]bool
		want    peer.ID // zero: nobody
	}{
		"the peer that runs there":      {map[peer.ID]peer.Record{one: {Host: "u1", Node: slotOf(one)}}, nil, one},
		"another one has no such Node":  {map[peer.ID]peer.Record{one: {Host: "u1", Node: slotOf(one)}, two: {Host: "u9", Node: slotOf(two)}}, nil, one},
		"its address is another peer's": {map[peer.ID]peer.Record{one: {Host: "u1", Node: slotOf(two)}}, nil, peer.ID{}},
		"it has no address yet":         {map[peer.ID]peer.Record{one: {Host: "u1"}}, nil, peer.ID{}},
		"two say so":                    {map[peer.ID]peer.Record{one: {Host: "u1", Node: slotOf(one)}, two: {Host: "u1", Node: slotOf(two)}}, map[peer.ID]bool{one: true, two: true}, peer.ID{}},
		"its disk was lost":             {map[peer.ID]peer.Record{one: {Host: "u1", Node: slotOf(one)}, two: {Host: "u1", Node: slotOf(two)}}, map[peer.ID]bool{two: true}, two},
		"a Node without an address":     {map[peer.ID]peer.Record{one: {Host: "u2", Node: slotOf(one)}}, nil, peer.ID{}},
	} {
		hosts := policyHosts(hostsFrom{&view{ring: r, records: c.records, present: c.present}, &kube.State{Nodes: nodes}}, true)
		if len(hosts) > 1 || (len(hosts) == 1) != (c.want != peer.ID{}) {
			t.Errorf("%s: %+v", name, hosts)
			continue
		}
		if len(hosts) == 1 && (len(hosts[0].Overlay) != 2 || hosts[0].Overlay[0] != u.Addr4(slotOf(c.want)) || hosts[0].Overlay[1] != u.Addr6(slotOf(c.want))) {
			t.Errorf("%s: %+v", name, hosts)
		}
	}
	if hosts := policyHosts(hostsFrom{&view{ring: r}, nil}, true); hosts != nil {
		t.Errorf("outside Kubernetes: %+v", hosts)
	}
}
