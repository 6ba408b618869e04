package policy_test

import (
	"fmt"
	"net/netip"

	"weft/router/policy"
)

// shop is two pods, and a policy that allows one pod to reach the other on one port.
func shop() ([]policy.Policy, policy.World) {
	addr := netip.MustParseAddr
	world := policy.World{
		Namespaces: map[string]map[string]string{"shop": nil},
		Endpoints: []policy.Endpoint{
			{ID: "1", Namespace: "shop", Name: "web", Labels: map[string]string{"app": "web"}, Addrs: []netip.Addr{addr("10.32.0.4")}},
			{ID: "2", Namespace: "shop", Name: "db", Labels: map[string]string{"app": "db"}, Addrs: []netip.Addr{addr("10.32.0.5")}},
		},
	}
	return []policy.Policy{{
		Namespace: "shop", Name: "db-access", Isolates: policy.Of(policy.Ingress),
		Pods: policy.Selector{Labels: map[string]string{"app": "db"}},
		Ingress: []policy.Rule{{
			Peers: []policy.Peer{{Pods: &policy.Selector{Labels: map[string]string{"app": "web"}}}},
			Ports: []policy.Port{{Protocol: policy.TCP, Number: 5432}},
		}},
	}}, world
}

// Evaluate reports whether one packet passes, and which rule decides that.
func ExampleEvaluate() {
	policies, world := shop()
	for _, port := range []uint16{5432, 22} {
		v := policy.Evaluate(policies, world, policy.Packet{
			Src: netip.MustParseAddr("10.32.0.4"), Dst: netip.MustParseAddr("10.32.0.5"), Protocol: policy.TCP, SrcPort: 40000, DstPort: port,
		})
		fmt.Println(port, v.Allowed, v.Ingress.Policies)
	}
	// Output:
	// 5432 true [shop/db-access]
	// 22 false [shop/db-access]
}

// Between returns all ports on which one endpoint reaches another.
func ExampleBetween() {
	policies, world := shop()
	web, db := world.Endpoints[0], world.Endpoints[1]
	fmt.Println(policy.Between(policies, world, web, db))
	fmt.Println(policy.Between(policies, world, db, web))
	// Output:
	// 5432/TCP
	// all
}
