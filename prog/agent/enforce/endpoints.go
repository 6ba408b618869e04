package enforce

import (
	"cmp"
	"net/netip"
	"strings"

	"weft/mesh/directory"
	"weft/mesh/peer"
	"weft/prog/agent/settings"
	"weft/prog/agent/view"
	"weft/prog/manifest"
	"weft/router/policy"
)

// learnEndpoints updates the compiler with the hosts, and with the endpoints of other peers if their
// sets changed. It adds the endpoints here as they are attached, before the directory has them. The
// caller holds the lock.
func (e *Enforcer) learnEndpoints() {
	v, viewed := e.cfg.View.Read()
	if v == nil {
		return
	}
	e.learnOthers(v)
	if now := [2]uint64{viewed, e.cfg.Source.Version()}; now != e.heard.hosts {
		e.pending = e.compiler.SetHosts(e.cfg.Source.Hosts(v)) || e.pending
		e.heard.hosts = now
	}
	list, version := e.cfg.Attached.Read()
	if now := (own{version, v.Ring.Universe}); now != e.heard.own {
		var here []policy.Endpoint
		for _, a := range list {
			addrs := []netip.Addr{now.universe.Addr4(a.Slot)}
			if e.cfg.IPv6 {
				addrs = append(addrs, now.universe.Addr6(a.Slot))
			}
			here = append(here, Subject(e.cfg.Self, a.Entry(), addrs))
		}
		e.put(e.cfg.Self, here, true)
		e.heard.own = now
	}
}

// learnOthers updates the compiler with the endpoints of other peers.
func (e *Enforcer) learnOthers(v *view.View) {
	if !v.Ring.Equal(e.heard.ring) {
		e.heard.ring, e.heard.seen = v.Ring, map[peer.ID]directory.Held{}
	}
	there := map[peer.ID]bool{e.cfg.Self: true}
	for _, h := range e.cfg.Directory.Held() {
		there[h.Owner] = true
		if have, ok := e.heard.seen[h.Owner]; h.Owner == e.cfg.Self || ok && have.Compare(h) == 0 {
			continue
		}
		e.heard.seen[h.Owner] = h
		var list []policy.Endpoint
		for _, d := range e.cfg.Directory.Of(h.Owner, v.Ring) {
			if d.ID != settings.NodeKey && len(d.Slots) > 0 { // d is an endpoint: neither a host nor a name for an address outside
				list = append(list, Subject(d.Owner, d.Endpoint, d.Addrs(v.Ring.Universe)))
			}
		}
		e.put(h.Owner, list, false)
	}
	for owner := range e.heard.ids {
		if !there[owner] {
			e.put(owner, nil, false)
			delete(e.heard.seen, owner)
		}
	}
}

// put replaces the endpoints of a peer by list.
func (e *Enforcer) put(owner peer.ID, list []policy.Endpoint, local bool) {
	now := make(map[string]bool, len(list))
	for _, one := range list {
		now[one.ID] = true
		e.pending = e.compiler.Put(one, local) || e.pending
	}
	for id := range e.heard.ids[owner] {
		if !now[id] {
			e.compiler.Remove(id)
			e.pending = true
		}
	}
	if e.heard.ids[owner] = now; len(now) == 0 {
		delete(e.heard.ids, owner)
	}
}

// Subject is an endpoint as policies see it. Its id names the owner: see OwnerOf.
func Subject(owner peer.ID, e directory.Endpoint, addrs []netip.Addr) policy.Endpoint {
	out := policy.Endpoint{
		ID: owner.String() + "/" + e.ID, Namespace: cmp.Or(e.Namespace, manifest.DefaultNamespace), Name: e.Name, Labels: e.Labels, Addrs: addrs,
	}
	for _, p := range e.Ports {
		if number := Protocol(p.Protocol); number != 0 {
			out.Ports = append(out.Ports, policy.NamedPort{Name: p.Name, Protocol: number, Number: p.Number})
		}
	}
	return out
}

// OwnerOf returns an endpoint's host, and its id on that host. Subject put the two together.
func OwnerOf(e policy.Endpoint) (owner peer.ID, id string) {
	word, id, _ := strings.Cut(e.ID, "/")
	owner, _ = peer.ParseID(word) // Subject put a valid id there
	return owner, id
}

// Protocol returns a protocol by its name, in upper or lower case; 0: no protocol with ports has that
// name.
func Protocol(name string) policy.Protocol {
	for _, p := range []policy.Protocol{policy.TCP, policy.UDP, policy.SCTP} {
		if strings.EqualFold(p.String(), name) {
			return p
		}
	}
	return 0
}
