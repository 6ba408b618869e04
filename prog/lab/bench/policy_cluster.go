package main

import (
	"fmt"
	"net/netip"
	"slices"

	"weft/ipam/slot"
	"weft/router/nft"
	"weft/router/policy"
)

// These constants are the size of the cluster in the policy benchmarks.
const (
	clusterPolicies  = 1000
	clusterEndpoints = 10_000
	clusterLocal     = 200 // endpoints on this host
	clusterPort      = 9000
)

var clusterUniverse = slot.Universe{V4: slot.DefaultV4, V6: netip.MustParsePrefix("fd01:2:3:4::/96")}

// cluster is a simulated cluster, as one of its hosts knows it. Unless it has no policies, exactly one
// policy selects each endpoint, and isolates it in both directions.
type cluster struct {
	namespaces map[string]map[string]string
	policies   []policy.Policy
	endpoints  []policy.Endpoint
	local      map[string]bool // ids of the endpoints on this host
}

// newCluster returns a cluster with a namespace for every ten policies. A namespace belongs to one of ten
// teams, and has ten applications with a policy each. The endpoints are distributed over namespaces.
func newCluster(policies int) *cluster {
	spaces := max(1, policies/10)
	teams := min(10, spaces)
	c := &cluster{namespaces: map[string]map[string]string{}, local: map[string]bool{}}
	for n := range spaces {
		c.namespaces[fmt.Sprint("ns", n)] = map[string]string{"team": fmt.Sprint("t", n%teams)}
	}
	for n := range policies {
		c.policies = append(c.policies, clusterPolicy(n, spaces, teams))
	}
	for n := range clusterEndpoints {
		s := slot.Slot(n + 2)
		e := policy.Endpoint{
			ID: fmt.Sprint(n), Namespace: fmt.Sprint("ns", n%spaces), Name: fmt.Sprint("pod", n),
			Labels: map[string]string{
				"app": fmt.Sprint("app", n/spaces%10), "tier": []string{"front", "back"}[n/1000%2], "pod-template-hash": fmt.Sprint(n / 300),
			},
			Addrs: []netip.Addr{clusterUniverse.Addr4(s), clusterUniverse.Addr6(s)},
			Ports: []policy.NamedPort{{Name: "http", Protocol: policy.TCP, Number: uint16(8000 + n%3)}},
		}
		c.endpoints = append(c.endpoints, e)
		if n*7919%clusterEndpoints < clusterLocal { // a prime factor distributes local endpoints over namespaces, applications and tiers
			c.local[e.ID] = true
		}
	}
	return c
}

// clusterPolicy returns a typical policy: peers in the same and in other namespaces, a numbered and a
// named port, and an IP block.
func clusterPolicy(n, spaces, teams int) policy.Policy {
	labels := func(key, prefix string, n int) *policy.Selector {
		return &policy.Selector{Labels: map[string]string{key: prefix + fmt.Sprint(n)}}
	}
	app := n / spaces % 10
	return policy.Policy{
		Namespace: fmt.Sprint("ns", n%spaces), Name: fmt.Sprint("p", n), Pods: *labels("app", "app", app), Isolates: policy.Both,
		Ingress: []policy.Rule{
			{
				Peers: []policy.Peer{{Pods: labels("app", "app", (app+1)%10)}},
				Ports: []policy.Port{{Protocol: policy.TCP, Number: uint16(8000 + n%7)}},
			},
			{
				Peers: []policy.Peer{{Namespaces: labels("team", "t", (n+7*teams-3)%teams), Pods: &policy.Selector{Labels: map[string]string{"tier": "front"}}}},
				Ports: []policy.Port{{Protocol: policy.TCP, Name: "http"}, {Protocol: policy.UDP, Number: clusterPort}},
			},
		},
		Egress: []policy.Rule{
			{Peers: []policy.Peer{{Block: &policy.Block{CIDR: netip.MustParsePrefix(fmt.Sprintf("198.18.%d.0/24", n%256))}}}},
			{Peers: []policy.Peer{{Namespaces: labels("team", "t", (n+3)%teams)}}},
		},
	}
}

func (c *cluster) isLocal(e policy.Endpoint) bool { return c.local[e.ID] }

// pair returns two endpoints of this host. In all given clusters, policies allow the first endpoint to
// send to clusterPort of the second.
func pair(clusters ...*cluster) (ends [2]policy.Endpoint, err error) {
	c := clusters[0]
	for i, from := range c.endpoints {
		for j, to := range c.endpoints {
			if i != j && c.isLocal(from) && c.isLocal(to) && !slices.ContainsFunc(clusters, func(c *cluster) bool { return !c.allows(i, j) }) {
				return [2]policy.Endpoint{from, to}, nil
			}
		}
	}
	return ends, fmt.Errorf("none of the %d policies allows traffic between two endpoints of this host", len(c.policies))
}

// allows reports whether one endpoint may send to clusterPort of another.
func (c *cluster) allows(from, to int) bool {
	w := policy.World{Namespaces: c.namespaces, Endpoints: []policy.Endpoint{c.endpoints[from], c.endpoints[to]}} // other endpoints do not affect the verdict
	p := policy.Packet{Src: w.Endpoints[0].Addrs[0], Dst: w.Endpoints[1].Addrs[0], Protocol: policy.UDP, SrcPort: 1 << 15, DstPort: clusterPort}
	return policy.Evaluate(c.policies, w, p).Allowed
}

// clusterConfig returns the input of the host's nftables table. If p is nil, there are no policies.
func clusterConfig(p *policy.Program) nft.Config {
	return nft.Config{
		Guard: nft.Guard{
			Universe: clusterUniverse, Node4: clusterUniverse.Addr4(1), Node6: clusterUniverse.Addr6(1), Own: []slot.Range{{Start: 0, End: 0x10000}}, Resolver: true,
		},
		Policy: nft.Policy{Program: p, Exempt: nft.Exempt{OwnHost: true, ICMPErrors: true}},
	}
}
