package enforce

import (
	"slices"

	"weft/prog/manifest"
	"weft/router/policy"
	"weft/router/problem"
)

// InForce is what a host enforces, in the form that other peers receive.
type InForce struct {
	Generation string
	Isolated   int
	Dropped    map[string]uint64 // the number of dropped packets, by direction
	Policies   map[string]int    // the number of endpoints on that host that each policy selects
	// Unread lists the parts of policies that this host does not understand, by policy.
	Unread map[string][]string `cbor:",omitempty"`
}

// InForce returns what this host enforces, without the packets that were dropped.
func (e *Enforcer) InForce() InForce {
	e.mu.Lock()
	defer e.mu.Unlock()
	out := InForce{Generation: e.enforced, Policies: map[string]int{}, Dropped: map[string]uint64{}}
	isolated := map[string]bool{}
	for _, local := range e.compiler.Local() {
		for _, one := range e.rules.Policies {
			if one.Selects(local) {
				out.Policies[one.Ref()]++
				isolated[local.ID] = isolated[local.ID] || !one.Audit
			}
		}
	}
	for _, one := range e.rules.Policies { // includes policies that select no endpoint here
		out.Policies[one.Ref()] += 0
		if len(one.Unread) > 0 {
			if out.Unread == nil {
				out.Unread = map[string][]string{}
			}
			out.Unread[one.Ref()] = one.Unread
		}
	}
	for _, yes := range isolated {
		if yes {
			out.Isolated++
		}
	}
	return out
}

// Policies lists the policies that the compiler knows.
func (e *Enforcer) Policies() []policy.Policy {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.rules.Policies
}

// Problems returns policies that this host does not enforce, or does not understand completely. The
// problem of one policy concerns the hosts of the endpoints that the policy selects.
func (e *Enforcer) Problems() (out []problem.Problem) {
	e.mu.Lock()
	defer e.mu.Unlock()
	out = slices.Clone(e.rules.Problems)
	for _, one := range e.rules.Policies {
		if p, wrong := manifest.Problem(one); wrong {
			p.Elsewhere = !slices.ContainsFunc(e.compiler.Local(), one.Selects)
			out = append(out, p)
		}
	}
	return out
}
