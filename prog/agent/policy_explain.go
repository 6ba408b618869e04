package agent

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/fxamacker/cbor/v2"

	"weft/mesh/peer"
	"weft/prog/api"
	"weft/router/endpoint"
	"weft/router/nft"
	"weft/router/policy"
)

// known is what policies are and whom they are about, at one moment.
type known struct {
	list  []policy.Policy
	world policy.World
}

// know is what this host knows now.
func (a *Agent) know() known {
	p := &a.policies
	p.mu.Lock()
	defer p.mu.Unlock()
	a.learn()
	return known{p.list, p.compiler.World()}
}

// side is one end of a connection that people ask about.
type side struct {
	api.Party
	endpoint policy.Endpoint // without an id: none
	owner    peer.ID         // of the endpoint, or of the node
}

// Explain says what becomes of a connection.
func (a *Agent) Explain(ctx context.Context, req api.ExplainRequest) (out api.Explanation, err error) {
	if a.view.Load() == nil {
		return out, &api.Error{Code: api.CodeNotReady, Message: "the agent has just started and knows nobody yet: try again in a moment"}
	}
	k := a.know()
	proto := protocolNumber(cmp.Or(req.Protocol, "TCP"))
	icmp := strings.EqualFold(req.Protocol, policy.ICMP.String())
	switch {
	case icmp && req.Port != 0:
		return out, &api.Error{Code: api.CodeBadRequest, Message: "ICMP has no ports: ask for it without one"}
	case icmp:
		proto = policy.ICMP
	case proto == 0:
		return out, &api.Error{Code: api.CodeBadRequest, Message: fmt.Sprintf("protocol %q is not TCP, UDP, SCTP or ICMP", req.Protocol)}
	}
	src, err := a.side(req.Source, k.world)
	if err != nil {
		return out, err
	}
	dst, err := a.side(req.Destination, k.world)
	if err != nil {
		return out, err
	}
	dst = a.behindGateway(src, dst)
	out = api.Explanation{Source: src.Party, Destination: dst.Party, Port: "any", Verdicts: []api.Verdict{}}
	ask := judgeRequest{
		Port: req.Port, AnyPort: req.Port == 0 && !icmp,
		FromOwnHost: src.Node && dst.endpoint.ID != "" && src.owner == dst.owner,
		ToOwnHost:   dst.Node && src.endpoint.ID != "" && src.owner == dst.owner,
	}
	if !ask.AnyPort {
		out.Port = policy.Port{Protocol: proto, Number: req.Port}.String()
	} else if src.endpoint.ID != "" || dst.endpoint.ID != "" {
		out.Open = policy.Between(k.list, k.world, src.asEndpoint(), dst.asEndpoint()).String()
	}
	for _, ask.Src = range src.Addresses {
		for _, ask.Dst = range dst.Addresses {
			if ask.Src.Is4() == ask.Dst.Is4() {
				ask.Protocol = uint8(inFamily(proto, ask.Src))
				out.Verdicts = append(out.Verdicts, a.explainOne(ctx, k, src, dst, ask))
			}
		}
	}
	if len(out.Verdicts) == 0 {
		return out, &api.Error{Code: api.CodeBadRequest, Message: fmt.Sprintf("%s and %s have no address of one family", req.Source, req.Destination)}
	}
	return out, nil
}

// inFamily is a protocol as it is called in the family of an address.
func inFamily(p policy.Protocol, a netip.Addr) policy.Protocol {
	if p == policy.ICMP && a.Is6() {
		return policy.ICMPv6
	}
	return p
}

// asEndpoint is a side that policies select by its address only, if it is no endpoint.
func (s side) asEndpoint() policy.Endpoint {
	if s.endpoint.ID != "" {
		return s.endpoint
	}
	return policy.Endpoint{ID: "address " + s.Asked, Addrs: s.Addresses}
}

// explainOne asks both ends' hosts.
func (a *Agent) explainOne(ctx context.Context, k known, src, dst side, ask judgeRequest) api.Verdict {
	v := api.Verdict{
		Source: ask.Src, Destination: ask.Dst,
		Egress: api.Decision{Allowed: true}, Ingress: api.Decision{Allowed: true},
	}
	for d, end := range map[policy.Direction]side{policy.Egress: src, policy.Ingress: dst} {
		if end.endpoint.ID == "" {
			continue
		}
		ask.Direction = uint8(d)
		answer := a.askJudge(ctx, k, end.owner, ask)
		answer.Decision.Peer = names{a}.PeerName(end.owner)
		if d == policy.Egress {
			v.Egress = answer.Decision
		} else {
			v.Ingress = answer.Decision
		}
		v.Exempt = cmp.Or(v.Exempt, answer.Exempt)
	}
	v.Allowed = v.Egress.Allowed && v.Ingress.Allowed
	return v
}

// judgeRequest asks a host for the part of its policies in a verdict.
type judgeRequest struct {
	Direction                       uint8
	Src, Dst                        netip.Addr
	Protocol                        uint8
	SrcPort, Port                   uint16
	AnyPort, FromOwnHost, ToOwnHost bool
}

// judgeReply is its answer.
type judgeReply struct {
	Decision api.Decision
	Exempt   string
}

// askJudge asks the host of an endpoint; if it cannot, what this host knows has to do.
func (a *Agent) askJudge(ctx context.Context, k known, owner peer.ID, ask judgeRequest) (r judgeReply) {
	if owner == a.self() {
		return a.judge(k, ask)
	}
	ctx, cancel := context.WithTimeout(ctx, policyAsk)
	defer cancel()
	data, err := cbor.Marshal(ask)
	if err == nil {
		data, err = a.mesh.Request(ctx, owner, requestJudge, data)
	}
	if err == nil {
		err = cbor.Unmarshal(data, &r)
	}
	if err != nil {
		r = a.judge(k, ask)
		r.Decision.Kernel, r.Decision.Unasked = nil, fmt.Sprintf("%s could not be asked, this is what follows from what is known here: %v", names{a}.PeerName(owner), err)
	}
	return r
}

func (a *Agent) serveJudge(_ context.Context, _ peer.ID, payload []byte) ([]byte, error) {
	var ask judgeRequest
	if err := cbor.Unmarshal(payload, &ask); err != nil {
		return nil, err
	}
	if !ask.Src.IsValid() || !ask.Dst.IsValid() || ask.Src.Is4() != ask.Dst.Is4() || ask.Direction > uint8(policy.Egress) {
		return nil, fmt.Errorf("it asks for no packet")
	}
	return cbor.Marshal(a.judge(a.know(), ask))
}

// judge is what policies and this host's kernel say of one direction of a connection.
func (a *Agent) judge(k known, ask judgeRequest) judgeReply {
	p := policy.Packet{
		Src: ask.Src, Dst: ask.Dst, Protocol: policy.Protocol(ask.Protocol), SrcPort: ask.SrcPort, DstPort: ask.Port,
		AnyPort: ask.AnyPort, FromOwnHost: ask.FromOwnHost,
	}
	p.ToOwnHost = ask.ToOwnHost && a.exempts(p)
	v := policy.Evaluate(k.list, k.world, p)
	d, own, decision := policy.Direction(ask.Direction), ask.Src, v.Egress
	if d == policy.Ingress {
		own, decision = ask.Dst, v.Ingress
	}
	out := judgeReply{Decision: describeDecision(decision), Exempt: v.Exempt}
	switch {
	case v.Exempt != "":
		out.Decision.Unasked = "policies do not apply"
	case ask.AnyPort:
		out.Decision.Unasked = "the kernel is asked about one port"
	case !a.isLocal(own):
		out.Decision.Unasked = "the endpoint is not on this host"
	default:
		seen, err := a.router.Judge(d, own, nft.Packet{Src: p.Src, Dst: p.Dst, Protocol: ask.Protocol, SrcPort: p.SrcPort, DstPort: p.DstPort})
		if err != nil {
			out.Decision.Unasked = err.Error()
			break
		}
		out.Decision.Kernel = &api.Kernel{Allowed: seen.Allowed, Chain: seen.Chain, Dropped: seen.Dropped, Differs: seen.Allowed != decision.Allowed}
	}
	return out
}

// exempts reports whether policies do not apply to a packet from an endpoint here to this host.
func (a *Agent) exempts(p policy.Packet) bool {
	e := a.opts.Exempt
	return e.OwnHost || e.Resolver && !a.opts.DNS.Off && p.DstPort == 53 && (p.Protocol == policy.UDP || p.Protocol == policy.TCP)
}

// isLocal reports whether an address is of an endpoint here.
func (a *Agent) isLocal(addr netip.Addr) bool {
	a.policies.mu.Lock()
	defer a.policies.mu.Unlock()
	return a.policies.compiler.IsLocal(addr)
}

func describeDecision(d policy.Decision) api.Decision {
	out := api.Decision{Endpoint: d.Endpoint, Policies: d.Policies, Allowed: d.Allowed}
	describe := func(r policy.Reason) api.Reason {
		out := api.Reason{Policy: r.Policy, Text: r.Text}
		if r.Rule >= 0 {
			out.Rule = fmt.Sprintf("spec.%v[%d]", d.Direction, r.Rule)
		}
		return out
	}
	if d.By != nil {
		out.By = new(describe(*d.By))
	}
	for _, m := range d.Misses {
		out.Misses = append(out.Misses, describe(m))
	}
	if d.Tried != nil {
		out.Audit = new(describeDecision(*d.Tried))
	}
	return out
}

// side finds whom a word names: an address, NAME, NAMESPACE/NAME, HOST/NAME, a name in the
// DNS domain, a container's id or its beginning, or a host by its name.
func (a *Agent) side(word string, w policy.World) (side, error) {
	if addr, err := netip.ParseAddr(word); err == nil {
		return a.sideAt(word, addr.Unmap(), w), nil
	}
	var exact, begin []policy.Endpoint
	short := a.short(word)
	for _, e := range w.Endpoints {
		host, id := a.hostOf(e)
		switch {
		case e.Name != "" && slices.ContainsFunc([]string{e.Name, e.Ref(), host + "/" + e.Name, e.Name + "." + e.Namespace}, func(s string) bool { return strings.EqualFold(s, short) }):
			exact = append(exact, e)
		case strings.HasPrefix(id, word), len(word) > len(host)+1 && strings.HasPrefix(host+"/"+id, word):
			begin = append(begin, e)
		}
	}
	found := exact
	if len(found) == 0 {
		if s, ok := a.sideNode(word); ok {
			return s, nil
		}
		found = begin
	}
	switch len(found) {
	case 1:
		return a.sideOf(word, found[0]), nil
	case 0:
		return side{}, &api.Error{Code: api.CodeNotFound, Message: fmt.Sprintf("%s is no container, host or address that is known: want an address, NAME, NAMESPACE/NAME, HOST/NAME or a container's id (`weft status dns` lists names)", word)}
	}
	var names []string
	for _, e := range found {
		host, id := a.hostOf(e)
		names = append(names, fmt.Sprintf("%s (%s/%.12s, %v)", e.Ref(), host, id, e.Addrs[0]))
	}
	return side{}, &api.Error{Code: api.CodeConflict, Message: fmt.Sprintf("%s names several containers: %s; take HOST/NAME or an address", word, strings.Join(names[:min(len(names), 8)], ", "))}
}

// ownerOf is the host of an endpoint, and its id there: what judged put together.
func ownerOf(e policy.Endpoint) (owner peer.ID, id string) {
	word, id, _ := strings.Cut(e.ID, "/")
	owner, _ = peer.ParseID(word) // it was one
	return owner, id
}

// hostOf is the nickname of an endpoint's host, and its id there.
func (a *Agent) hostOf(e policy.Endpoint) (host, id string) {
	owner, id := ownerOf(e)
	if v := a.view.Load(); v != nil {
		if r, known := v.records[owner]; known {
			return r.Nickname, id
		}
	}
	return owner.String(), id
}

func (a *Agent) sideOf(word string, e policy.Endpoint) side {
	owner, _ := ownerOf(e)
	return side{endpoint: e, owner: owner, Party: api.Party{
		Asked: word, Endpoint: e.Ref(), Labels: e.Labels, Addresses: e.Addrs, Peer: names{a}.PeerName(owner),
	}}
}

// sideAt is who has an address.
func (a *Agent) sideAt(word string, addr netip.Addr, w policy.World) side {
	if e, ok := w.At(addr); ok {
		s := a.sideOf(word, e)
		s.Addresses = []netip.Addr{addr}
		return s
	}
	s := side{Party: api.Party{Asked: word, Addresses: []netip.Addr{addr}}}
	v := a.view.Load()
	if n, ok := v.ring.Universe.Slot(addr); ok {
		for id, r := range v.records {
			if r.Node == n {
				s.owner, s.Peer, s.Node = id, names{a}.PeerName(id), true
			}
		}
	}
	return s
}

// behindGateway is the host of an endpoint, where people ask for the address by which
// endpoints know it: it is translated before policies look.
func (a *Agent) behindGateway(src, dst side) side {
	v := a.view.Load()
	r := v.records[src.owner]
	if src.endpoint.ID == "" || r.Node == 0 || len(dst.Addresses) != 1 {
		return dst
	}
	node := v.ring.Universe.Addr4(r.Node)
	switch dst.Addresses[0].WithZone("") {
	case endpoint.Gateway4:
	case endpoint.Gateway6:
		node = v.ring.Universe.Addr6(r.Node)
	default:
		return dst
	}
	dst.owner, dst.Node, dst.Peer, dst.Addresses = src.owner, true, src.Peer, []netip.Addr{node}
	return dst
}

// sideNode is a host by its name.
func (a *Agent) sideNode(word string) (s side, ok bool) {
	v := a.view.Load()
	for id, r := range v.records {
		if r.Node != 0 && (strings.EqualFold(r.Nickname, word) || id.String() == word) {
			s = side{owner: id, Party: api.Party{Asked: word, Peer: names{a}.PeerName(id), Node: true, Addresses: []netip.Addr{v.ring.Universe.Addr4(r.Node), v.ring.Universe.Addr6(r.Node)}}}
			return s, true
		}
	}
	return s, false
}
