package agent

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"weft/ipam/ring"
	"weft/ipam/slot"
	"weft/mesh"
	"weft/mesh/directory"
	"weft/mesh/document"
	"weft/mesh/peer"
	"weft/prog/kube"
	"weft/prog/manifest"
	"weft/router/nft"
	"weft/router/policy"
)

// Kinds of documents.
const (
	kindPolicy    = "networkpolicy"
	kindNamespace = "namespace"
)

// policies are what this host enforces, and what that is made from: the documents, the
// directory, and what is attached here.
type policies struct {
	// mu is held while a program is made and loaded, so that an older one never follows a newer.
	mu       sync.Mutex
	compiler *policy.Compiler
	parsed   map[string]parsed // by the documents' keys
	list     []policy.Policy
	spaces   map[string]map[string]string
	made     string      // generation of the documents that list and spaces are of
	stale    atomic.Bool // documents may have changed since

	here here                       // of what the compiler has of this host's endpoints
	from hostsFrom                  // of what it has of hosts
	seen map[peer.ID]directory.Held // whose endpoints the compiler has, and of which set
	ids  map[peer.ID]map[string]bool
	ring ring.Ring // by which they count

	pending  bool     // the compiler knows more than the kernel
	enforced string   // generation that the kernel has
	unread   []string // documents that this version cannot read
}

// parsed is a document that was read.
type parsed struct {
	digest document.Digest
	manifest.Document
	err error
}

func (a *Agent) makeDocuments(founds bool) error {
	if err := a.newDocuments(a.mesh); err != nil {
		return err
	}
	a.mesh.Replicate(a.documents)
	for kind, h := range a.documents.Handlers() {
		a.mesh.Handle(kind, h)
	}
	a.policyHandlers()
	if founds {
		return a.documents.MarkSynced()
	}
	return nil
}

func (a *Agent) newDocuments(m mesh.Messenger) error {
	kept, err := a.store.Documents()
	if err != nil {
		return err
	}
	synced, err := a.store.Synced()
	if err != nil {
		return err
	}
	p := &a.policies
	p.compiler, p.parsed, p.seen, p.ids = policy.NewCompiler(), map[string]parsed{}, map[peer.ID]directory.Held{}, map[peer.ID]map[string]bool{}
	p.stale.Store(true)
	a.documents, err = mesh.NewDocuments(mesh.DocumentsConfig{
		Identity: a.keys.Identity, Mesh: m, Store: a.store, Documents: kept, Synced: synced, Now: time.Now, Log: a.log,
		Changed: a.policiesChanged,
	})
	return err
}

// policiesChanged is called by where policies come from. It never blocks.
func (a *Agent) policiesChanged() {
	a.policies.stale.Store(true)
	a.repolice()
	a.changed()
}

// repolice asks for the policies to be enforced anew. It never blocks.
func (a *Agent) repolice() {
	select {
	case a.policed <- struct{}{}:
	default:
	}
}

// police keeps the kernel in step with documents and directory.
func (a *Agent) police(ctx context.Context) error {
	told := ""
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-a.policed:
		}
		switch err := a.settled(); {
		case err == nil:
			told = ""
		case err.Error() != told:
			told = err.Error()
			a.log.Warn("cannot enforce all policies: those of before stay in force", "err", err)
		}
	}
}

// settled enforces what is new, unless the first reconciliation, which does so, is still to
// come.
func (a *Agent) settled() error {
	if a.view.Load() == nil {
		return nil
	}
	p := &a.policies
	p.mu.Lock()
	defer p.mu.Unlock()
	if a.learn(); !p.pending {
		return nil
	}
	return a.load()
}

// enforce makes the kernel judge by what is known now, and returns when it does; also when
// nothing changed but the kernel.
func (a *Agent) enforce() error {
	a.policies.mu.Lock()
	defer a.policies.mu.Unlock()
	a.learn()
	return a.load()
}

// learn tells the compiler what is known now. The caller holds the lock.
func (a *Agent) learn() {
	a.readPolicies()
	a.lookAround()
}

// load gives the kernel the program. The caller holds the lock.
func (a *Agent) load() error {
	p := &a.policies
	p.pending = true
	if err := a.router.Enforce(p.compiler.Program()); err != nil {
		return err
	}
	p.enforced, p.pending = p.made, false
	return nil
}

// lookAround tells the compiler of the endpoints of others, as far as their sets changed, and
// of those here, as they are attached: the directory hears of those later. The caller holds
// the lock.
func (a *Agent) lookAround() {
	p, v := &a.policies, a.view.Load()
	if v == nil {
		return
	}
	if !v.ring.Equal(p.ring) {
		p.ring, p.seen = v.ring, map[peer.ID]directory.Held{}
	}
	there := map[peer.ID]bool{a.self(): true}
	for _, h := range a.directory.Held() {
		there[h.Owner] = true
		if have, ok := p.seen[h.Owner]; h.Owner == a.self() || ok && have.Compare(h) == 0 {
			continue
		}
		p.seen[h.Owner] = h
		var list []policy.Endpoint
		for _, e := range a.directory.Of(h.Owner, v.ring) {
			if e.ID != nodeKey && len(e.Slots) > 0 { // neither a host nor a name for outside
				list = append(list, judged(e.Owner, e.Endpoint, e.Addrs(v.ring.Universe)))
			}
		}
		p.put(h.Owner, list, false)
	}
	for owner := range p.ids {
		if !there[owner] {
			p.put(owner, nil, false)
			delete(p.seen, owner)
		}
	}
	if now := (hostsFrom{v, a.kubeState()}); now != p.from {
		p.pending = p.compiler.SetHosts(policyHosts(now, a.ipv6)) || p.pending
		p.from = now
	}
	if now := a.hereNow(v.ring.Universe); now != p.here {
		p.put(a.self(), a.judgedHere(v.ring.Universe), true)
		p.here = now
	}
}

// here is what the endpoints of this host, as policies see them, follow from.
type here struct {
	changes  uint64
	pods     *kube.State
	universe slot.Universe
}

func (a *Agent) hereNow(u slot.Universe) here {
	now := here{universe: u, pods: a.kubeState()}
	a.mu.Lock()
	defer a.mu.Unlock()
	now.changes = a.changes
	return now
}

// judgedHere are the endpoints of this host.
func (a *Agent) judgedHere(u slot.Universe) (list []policy.Endpoint) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, e := range a.endpoints {
		addrs := []netip.Addr{u.Addr4(e.Slot)}
		if a.ipv6 {
			addrs = append(addrs, u.Addr6(e.Slot))
		}
		list = append(list, judged(a.self(), a.entry(e), addrs))
	}
	return list
}

// judged is an endpoint as policies see it.
func judged(owner peer.ID, e directory.Endpoint, addrs []netip.Addr) policy.Endpoint {
	out := policy.Endpoint{
		ID: owner.String() + "/" + e.ID, Namespace: cmp.Or(e.Namespace, manifest.DefaultNamespace), Name: e.Name, Labels: e.Labels, Addrs: addrs,
	}
	for _, p := range e.Ports {
		if number := protocolNumber(p.Protocol); number != 0 {
			out.Ports = append(out.Ports, policy.NamedPort{Name: p.Name, Protocol: number, Number: p.Number})
		}
	}
	return out
}

// protocolNumber is a protocol by its name in any case; 0: none that has ports.
func protocolNumber(name string) policy.Protocol {
	for _, p := range []policy.Protocol{policy.TCP, policy.UDP, policy.SCTP} {
		if strings.EqualFold(p.String(), name) {
			return p
		}
	}
	return 0
}

// put makes list the endpoints of a peer.
func (p *policies) put(owner peer.ID, list []policy.Endpoint, local bool) {
	now := make(map[string]bool, len(list))
	for _, e := range list {
		now[e.ID] = true
		p.pending = p.compiler.Put(e, local) || p.pending
	}
	for id := range p.ids[owner] {
		if !now[id] {
			p.compiler.Remove(id)
			p.pending = true
		}
	}
	if p.ids[owner] = now; len(now) == 0 {
		delete(p.ids, owner)
	}
}

// policyWarnings says what is not enforced here, or not as it was written. What one policy says
// concerns those whom it selects.
func (a *Agent) policyWarnings() (out []warning) {
	p := &a.policies
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, text := range p.unread {
		out = append(out, warning{reason: reasonPolicy, text: text})
	}
	for _, one := range p.list {
		if text := manifest.Warning(one); text != "" {
			here := slices.ContainsFunc(p.compiler.Local(), one.Selects)
			out = append(out, warning{reason: reasonPolicy, about: one.Ref(), text: text, elsewhere: !here})
		}
	}
	return out
}

// Exemptions that the operator can take away.
const (
	ExemptOwnHost    = "own-host"
	ExemptResolver   = "dns"
	ExemptICMPErrors = "icmp-errors"
)

// ParseExempt reads what policies do not apply to.
func ParseExempt(words []string) (e nft.Exempt, err error) {
	for _, w := range words {
		switch w {
		case ExemptOwnHost:
			e.OwnHost = true
		case ExemptResolver:
			e.Resolver = true
		case ExemptICMPErrors:
			e.ICMPErrors = true
		case "none":
			if len(words) > 1 {
				return e, fmt.Errorf("none goes with nothing else")
			}
		default:
			return e, fmt.Errorf("%q is none of %s, %s, %s and none", w, ExemptOwnHost, ExemptResolver, ExemptICMPErrors)
		}
	}
	return e, nil
}
