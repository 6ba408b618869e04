package enforce

import (
	"maps"
	"net/netip"
	"slices"

	"weft/mesh/peer"
	"weft/prog/agent/live"
	"weft/prog/agent/view"
	"weft/prog/kube"
	"weft/router/policy"
)

// API is the state of the Kubernetes API server.
type API interface {
	State() *kube.State // nil before the API server has answered
	Troubles() []kube.Trouble
	Server() string
}

// Kubernetes is the Source of a Node: the policies of its API server.
type Kubernetes struct {
	live.Value[struct{}] // a version for each change of the API server's state

	api  API
	ipv6 bool
}

// NewKubernetes makes a Source of the API server's policies.
func NewKubernetes(api API, ipv6 bool) *Kubernetes { return &Kubernetes{api: api, ipv6: ipv6} }

// Unknown reports why the policies are not known yet.
func (k *Kubernetes) Unknown() error {
	state := k.api.State()
	for _, t := range k.api.Troubles() {
		if t.Refused || state == nil {
			return t.Err
		}
	}
	if state == nil {
		return &kube.UnknownPodError{Server: k.api.Server(), Nothing: true}
	}
	return nil
}

// Empty reports why nothing is known yet: the API server has not answered, in this run or an earlier
// one.
func (k *Kubernetes) Empty() error {
	if k.api.State() != nil {
		return nil
	}
	return k.Unknown()
}

// Title names the origin of policies for output.
func (k *Kubernetes) Title() string {
	title := "the Kubernetes API server " + k.api.Server()
	switch state := k.api.State(); {
	case state == nil:
		return title + ", which has not answered yet"
	case !state.Live || len(k.api.Troubles()) > 0:
		return title + ", as it was before: it does not answer now"
	}
	return title
}

// Generation names a state of all policies and namespaces; empty while nothing is known.
func (k *Kubernetes) Generation() string {
	if state := k.api.State(); state != nil {
		return state.Generation
	}
	return ""
}

// Read returns the rules, unless only pods or Nodes are new.
func (k *Kubernetes) Read(before string) (Rules, bool) {
	state := k.api.State()
	if state == nil || state.Generation == before {
		return Rules{}, false
	}
	return Rules{Policies: state.Policies, Namespaces: state.Namespaces, Generation: state.Generation}, true
}

// Hosts returns the cluster's Nodes.
func (k *Kubernetes) Hosts(v *view.View) []policy.Host {
	state := k.api.State()
	if state == nil {
		return nil
	}
	return hosts(v, state.Nodes, k.ipv6)
}

// hosts returns the cluster's Nodes as policies see them: with their InternalIPs, and the node
// address of the peer that runs on the Node according to its record. If several peers announce the
// same Node, only a single reachable one counts, since the others may be remains of a lost disk.
func hosts(v *view.View, nodes map[string]kube.Node, ipv6 bool) (hosts []policy.Host) {
	on := map[string][]peer.ID{} // the peers that announce a Node, by its UID
	for id, r := range v.Records {
		if owner, ok := v.Ring.Owner(r.Node); ok && owner == id && r.Node != 0 && r.Host != "" {
			on[r.Host] = append(on[r.Host], id)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(nodes)) {
		n := nodes[name]
		there := on[n.UID]
		if len(there) > 1 {
			there = slices.DeleteFunc(there, func(id peer.ID) bool { return !v.Present[id] })
		}
		if len(there) != 1 || len(n.Addrs) == 0 {
			continue
		}
		node := v.Records[there[0]].Node
		h := policy.Host{Addrs: n.Addrs, Overlay: []netip.Addr{v.Ring.Universe.Addr4(node)}}
		if ipv6 {
			h.Overlay = append(h.Overlay, v.Ring.Universe.Addr6(node))
		}
		hosts = append(hosts, h)
	}
	return hosts
}
