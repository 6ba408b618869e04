package explain

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"weft/mesh/peer"
	"weft/prog/agent/enforce"
	"weft/prog/agent/view"
	"weft/prog/api"
	"weft/router/endpoint"
	"weft/router/policy"
)

// side is one end of a connection that people ask about.
type side struct {
	api.Party
	endpoint policy.Endpoint // without an id: this side is no endpoint
	owner    peer.ID         // the peer of the endpoint, or of the node address
}

// End is one end of a connection, as people name it.
type End struct {
	api.Party
	Owner     peer.ID // the peer of the endpoint, or of the node address; zero: an address outside the network
	Container bool
}

// Ends finds the source and the destination that two arguments name.
func (x *Explainer) Ends(source, destination string) (src, dst End, err error) {
	s, d, err := x.sides(x.cfg.Policies.Snapshot(), source, destination)
	return End{s.Party, s.owner, s.endpoint.ID != ""}, End{d.Party, d.owner, d.endpoint.ID != ""}, err
}

// sides finds both ends of a connection.
func (x *Explainer) sides(k enforce.Snapshot, source, destination string) (src, dst side, err error) {
	v := x.cfg.View.Get()
	if v == nil {
		return src, dst, &api.Error{Code: api.CodeNotReady, Message: "the agent has just started and knows no other peer yet: try again in a moment"}
	}
	if src, err = x.side(v, source, k.World); err != nil {
		return src, dst, err
	}
	if dst, err = x.side(v, destination, k.World); err != nil {
		return src, dst, err
	}
	return src, behindGateway(v, src, dst), nil
}

// asEndpoint returns the endpoint of a side. A side without an endpoint becomes an endpoint without
// labels, which policies select by its address only.
func (s side) asEndpoint() policy.Endpoint {
	if s.endpoint.ID != "" {
		return s.endpoint
	}
	return policy.Endpoint{ID: "address " + s.Asked, Addrs: s.Addresses}
}

// side finds the endpoint, host or address that an argument names: an address, NAME, NAMESPACE/NAME,
// HOST/NAME, a name in the DNS domain, the beginning of a container's id, or a host's name.
func (x *Explainer) side(v *view.View, word string, w policy.World) (side, error) {
	if addr, err := netip.ParseAddr(word); err == nil {
		return sideAt(v, word, addr.Unmap(), w), nil
	}
	var exact, begin []policy.Endpoint
	short := x.cfg.Short(word)
	for _, e := range w.Endpoints {
		host, id := hostOf(v, e)
		switch {
		case e.Name != "" && slices.ContainsFunc([]string{e.Name, e.Ref(), host + "/" + e.Name, e.Name + "." + e.Namespace}, func(s string) bool { return strings.EqualFold(s, short) }):
			exact = append(exact, e)
		case strings.HasPrefix(id, word), len(word) > len(host)+1 && strings.HasPrefix(host+"/"+id, word):
			begin = append(begin, e)
		}
	}
	found := exact
	if len(found) == 0 {
		if s, ok := sideNode(v, word); ok {
			return s, nil
		}
		found = begin
	}
	switch len(found) {
	case 1:
		return sideOf(v, word, found[0]), nil
	case 0:
		return side{}, &api.Error{Code: api.CodeNotFound, Message: fmt.Sprintf("%s is no container, host or address that is known: want an address, NAME, NAMESPACE/NAME, HOST/NAME or a container's id (`weft status dns` lists names)", word)}
	}
	var names []string
	for _, e := range found {
		host, id := hostOf(v, e)
		names = append(names, fmt.Sprintf("%s (%s/%.12s, %v)", e.Ref(), host, id, e.Addrs[0]))
	}
	return side{}, &api.Error{Code: api.CodeConflict, Message: fmt.Sprintf("%s names several containers: %s; take HOST/NAME or an address", word, strings.Join(names[:min(len(names), 8)], ", "))}
}

// hostOf returns the nickname of an endpoint's host, and its id there.
func hostOf(v *view.View, e policy.Endpoint) (host, id string) {
	owner, id := enforce.OwnerOf(e)
	if r, known := v.Records[owner]; known {
		return r.Nickname, id
	}
	return owner.String(), id
}

func sideOf(v *view.View, word string, e policy.Endpoint) side {
	owner, _ := enforce.OwnerOf(e)
	return side{endpoint: e, owner: owner, Party: api.Party{
		Asked: word, Endpoint: e.Ref(), Labels: e.Labels, Addresses: e.Addrs, Peer: v.Name(owner),
	}}
}

// sideAt returns the endpoint or the host that has an address.
func sideAt(v *view.View, word string, addr netip.Addr, w policy.World) side {
	if e, ok := w.At(addr); ok {
		s := sideOf(v, word, e)
		s.Addresses = []netip.Addr{addr}
		return s
	}
	s := side{Party: api.Party{Asked: word, Addresses: []netip.Addr{addr}}}
	if n, ok := v.Ring.Universe.Slot(addr); ok {
		for id, r := range v.Records {
			if r.Node == n {
				s.owner, s.Peer, s.Node = id, v.Name(id), true
			}
		}
	}
	return s
}

// behindGateway returns the destination after NAT: the host's own address, if the question names the
// gateway address by which endpoints reach their host. Policies see packets after that NAT.
func behindGateway(v *view.View, src, dst side) side {
	r := v.Records[src.owner]
	if src.endpoint.ID == "" || r.Node == 0 || len(dst.Addresses) != 1 {
		return dst
	}
	node := v.Ring.Universe.Addr4(r.Node)
	switch dst.Addresses[0].WithZone("") {
	case endpoint.Gateway4:
	case endpoint.Gateway6:
		node = v.Ring.Universe.Addr6(r.Node)
	default:
		return dst
	}
	dst.owner, dst.Node, dst.Peer, dst.Addresses = src.owner, true, src.Peer, []netip.Addr{node}
	return dst
}

// sideNode returns a host by its name.
func sideNode(v *view.View, word string) (s side, ok bool) {
	for id, r := range v.Records {
		if r.Node != 0 && (strings.EqualFold(r.Nickname, word) || id.String() == word) {
			s = side{owner: id, Party: api.Party{Asked: word, Peer: v.Name(id), Node: true, Addresses: []netip.Addr{v.Ring.Universe.Addr4(r.Node), v.Ring.Universe.Addr6(r.Node)}}}
			return s, true
		}
	}
	return s, false
}
