package agent

import (
	"maps"
	"net/netip"
	"slices"

	"weft/mesh/peer"
	"weft/prog/kube"
	"weft/router/policy"
)

// hostsFrom is what policies' hosts follow from.
type hostsFrom struct {
	view  *view
	state *kube.State
}

// policyHosts are the cluster's Nodes, as policies see them: known by their InternalIPs, and by
// the node address of the peer that says that it runs there. Where several say so, none is
// believed, unless just one of them can be reached: the other ones may be what a lost disk
// left.
func policyHosts(from hostsFrom, ipv6 bool) (hosts []policy.Host) {
	if from.state == nil {
		return nil
	}
	v := from.view
	on := map[string][]peer.ID{} // by the UID of a Node
	for id, r := range v.records {
		if owner, ok := v.ring.Owner(r.Node); ok && owner == id && r.Node != 0 && r.Host != "" {
			on[r.Host] = append(on[r.Host], id)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(from.state.Nodes)) {
		n := from.state.Nodes[name]
		there := on[n.UID]
		if len(there) > 1 {
			there = slices.DeleteFunc(there, func(id peer.ID) bool { return !v.present[id] })
		}
		if len(there) != 1 || len(n.Addrs) == 0 {
			continue
		}
		slot := v.records[there[0]].Node
		h := policy.Host{Addrs: n.Addrs, Overlay: []netip.Addr{v.ring.Universe.Addr4(slot)}}
		if ipv6 {
			h.Overlay = append(h.Overlay, v.ring.Universe.Addr6(slot))
		}
		hosts = append(hosts, h)
	}
	return hosts
}
