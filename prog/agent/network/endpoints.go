package network

import (
	"context"
	"encoding/hex"
	"fmt"
	"hash/fnv"
	"slices"
	"strings"

	"weft/prog/agent/enforce"
	"weft/prog/api"
)

// NetworkEndpoints lists all endpoints that this host knows.
func (n *Overview) NetworkEndpoints(context.Context) (api.NetworkEndpoints, error) {
	out := api.NetworkEndpoints{Version: n.version(), Endpoints: []api.NetworkEndpoint{}}
	for _, e := range n.cfg.Know().World.Endpoints {
		owner, _ := enforce.OwnerOf(e)
		out.Endpoints = append(out.Endpoints, api.NetworkEndpoint{
			ID: e.ID, Namespace: e.Namespace, Name: e.Name, Labels: e.Labels, Addresses: e.Addrs, Peer: owner.String(),
		})
	}
	slices.SortFunc(out.Endpoints, func(a, b api.NetworkEndpoint) int { return strings.Compare(a.ID, b.ID) })
	return out, nil
}

// version returns a word that changes when the list of endpoints does.
func (n *Overview) version() string {
	sum := fnv.New128a()
	var total [16]byte
	for _, e := range n.cfg.Know().World.Endpoints { // in any order
		sum.Reset()
		fmt.Fprintf(sum, "%q %q %q %q %v", e.ID, e.Namespace, e.Name, e.Labels, e.Addrs)
		for i, b := range sum.Sum(nil) {
			total[i] += b
		}
	}
	return hex.EncodeToString(total[:])
}
