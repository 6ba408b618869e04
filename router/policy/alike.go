package policy

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Alike divides endpoints into classes. Policies allow the same from and to each endpoint of a class, in the family of
// their first addresses. The order is that of the endpoints.
func Alike(policies []Policy, w World) [][]Endpoint {
	asked, named := questions(policies, w)
	answers := map[string]string{} // by labels and namespace: endpoints of one workload have most of them in common
	index := map[string]int{}
	var out [][]Endpoint
	for _, e := range w.Endpoints {
		key := fmt.Sprintf("%q %q", e.Namespace, e.Labels)
		word, known := answers[key]
		if !known {
			word = asked.labels(e)
			answers[key] = word
		}
		class := e.Namespace + " " + word + " " + asked.blocks(w, e)
		if named {
			class += fmt.Sprint(e.Ports)
		}
		i, found := index[class]
		if !found {
			i = len(out)
			index[class] = i
			out = append(out, nil)
		}
		out[i] = append(out[i], e)
	}
	return out
}

// asks is what policies ask about an endpoint, each question once.
type asks struct {
	selects []func(Endpoint) bool // by labels and namespace
	inside  []Block
}

// questions returns what the policies ask, and whether they name ports that endpoints declare.
func questions(policies []Policy, w World) (out asks, named bool) {
	peers, blocks := map[string]func(Endpoint) bool{}, map[string]Block{}
	for _, p := range policies {
		out.selects = append(out.selects, p.Selects)
		for _, r := range slices.Concat(p.Ingress, p.Egress) {
			named = named || slices.ContainsFunc(r.Ports, func(port Port) bool { return port.Name != "" })
			for _, peer := range r.Peers {
				switch {
				case peer.Unread:
				case peer.Block != nil:
					blocks[peer.Block.String()] = *peer.Block
				default:
					peers[peer.content(p.Namespace)] = func(e Endpoint) bool {
						return peer.choosesNamespace(p.Namespace, w, e.Namespace) && (peer.Pods == nil || peer.Pods.Matches(Labels{set: e.Labels}))
					}
				}
			}
		}
	}
	for _, key := range slices.Sorted(maps.Keys(peers)) {
		out.selects = append(out.selects, peers[key])
	}
	for _, key := range slices.Sorted(maps.Keys(blocks)) {
		out.inside = append(out.inside, blocks[key])
	}
	return out, named
}

// labels returns one character for each question about an endpoint's labels.
func (a asks) labels(e Endpoint) string {
	var out strings.Builder
	for _, selects := range a.selects {
		out.WriteByte(digit(selects(e)))
	}
	return out.String()
}

// blocks returns one character for each block of addresses.
func (a asks) blocks(w World, e Endpoint) string {
	var out strings.Builder
	for _, b := range a.inside {
		out.WriteByte(digit(len(e.Addrs) > 0 && w.inBlock(b, e.Addrs[0])))
	}
	return out.String()
}

func digit(yes bool) byte {
	if yes {
		return '1'
	}
	return '0'
}
