// Package enforce keeps the kernel's policy program up to date with the policies, the directory and
// the endpoints of this host. It never changes policies.
//
// An Enforcer owns the compiler, and the generation of the policies in the kernel. It makes and loads
// one program at a time, so that an older one never follows a newer one. Ensure returns when the
// kernel enforces everything known at the time of the call. Policies come from a Source: documents of
// the mesh, or the Kubernetes API server. An Enforcer is safe for concurrent use.
package enforce

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"

	"weft/ipam/ring"
	"weft/ipam/slot"
	"weft/mesh/directory"
	"weft/mesh/peer"
	"weft/prog/agent/attach"
	"weft/prog/agent/live"
	"weft/prog/agent/view"
	"weft/router/nft"
	"weft/router/policy"
	"weft/router/problem"
)

// Rules are all policies and namespaces of one generation.
type Rules struct {
	Policies   []policy.Policy
	Namespaces map[string]map[string]string // the labels of each namespace
	Generation string
	Problems   []problem.Problem // parts that this version does not understand
}

// Source is where policies come from.
type Source interface {
	// Read returns the rules. It returns false if the rules still have the generation before, or if no
	// rules are known.
	Read(before string) (Rules, bool)
	// Unknown reports why the policies are not known yet. Until they are, no endpoint is attached.
	Unknown() error
	// Empty reports why not even stored policies are known. Then the rules of an earlier agent stay in
	// force.
	Empty() error
	// Hosts returns the cluster's hosts as policies see them.
	Hosts(*view.View) []policy.Host
	// Changed returns a channel that is closed once the source's version differs from seen: rules or
	// hosts may have changed.
	Changed(seen uint64) <-chan struct{}
	Version() uint64
}

// Directory returns the endpoints of other hosts.
type Directory interface {
	Held() []directory.Held
	Of(peer.ID, directory.Ring) []directory.Entry
}

// Router loads programs into the kernel.
type Router interface{ Enforce(nft.Policy) error }

// Config configures an Enforcer.
type Config struct {
	Self      peer.ID
	Source    Source
	Directory Directory
	Attached  live.Reader[[]attach.Endpoint]
	View      live.Reader[*view.View]
	Router    Router
	Exempt    nft.Exempt // traffic that policies do not apply to
	Log       *slog.Logger
	IPv6      bool
}

// Enforcer enforces policies on this host.
type Enforcer struct {
	cfg  Config
	wake chan struct{} // receives when the directory changed

	mu       sync.Mutex // held while a program is made and loaded
	compiler *policy.Compiler
	rules    Rules
	heard    heard
	begun    bool      // Ensure was called
	pending  bool      // the kernel does not have the compiler's last program yet
	enforced string    // the generation of the rules in the kernel
	snapshot *Snapshot // the last one; nil after a change
	changes  uint64
}

// heard is the input that the compiler already has, so that it only gets changes.
type heard struct {
	own   own
	hosts [2]uint64                   // versions of view and source
	seen  map[peer.ID]directory.Held  // by owner: the set that the compiler has
	ids   map[peer.ID]map[string]bool // by owner: the ids of these endpoints
	ring  ring.Ring                   // the ring by which endpoints count: their peer must own their addresses
}

// own holds the inputs of this host's own endpoints, as policies see them.
type own struct {
	version  uint64
	universe slot.Universe
}

// New makes an enforcer; Run starts it.
func New(cfg Config) *Enforcer {
	return &Enforcer{
		cfg: cfg, wake: make(chan struct{}, 1), compiler: policy.NewCompiler(),
		heard: heard{seen: map[peer.ID]directory.Held{}, ids: map[peer.ID]map[string]bool{}},
	}
}

// Wake announces a change of the directory. It never blocks.
func (e *Enforcer) Wake() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// Run enforces every change until ctx ends.
func (e *Enforcer) Run(ctx context.Context) error {
	told := ""
	for {
		_, attached := e.cfg.Attached.Read()
		_, viewed := e.cfg.View.Read()
		sourced := e.cfg.Source.Version()
		switch err := e.Settle(); {
		case err == nil:
			told = ""
		case err.Error() != told:
			told = err.Error()
			e.cfg.Log.Warn("cannot enforce all policies: the previous rules stay in force", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-e.wake:
		case <-e.cfg.Attached.Changed(attached):
		case <-e.cfg.View.Changed(viewed):
		case <-e.cfg.Source.Changed(sourced):
		}
	}
}

// Settle enforces new input. It does nothing before the first Ensure.
func (e *Enforcer) Settle() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.begun {
		return nil
	}
	if e.learn(); !e.pending {
		return nil
	}
	return e.load()
}

// Ensure returns when the kernel enforces everything known at the time of the call. It also repairs
// changes that others made in the kernel.
func (e *Enforcer) Ensure() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.begun = true
	e.learn()
	return e.load()
}

// load gives the kernel the program. The caller holds the lock.
func (e *Enforcer) load() error {
	e.pending = true
	program := e.compiler.Program()
	if err := e.cfg.Router.Enforce(nft.Policy{Program: &program, Exempt: e.cfg.Exempt}); err != nil {
		return err
	}
	e.enforced, e.pending = e.rules.Generation, false
	return nil
}

// learn updates the compiler with everything known now. The caller holds the lock.
func (e *Enforcer) learn() {
	before := e.pending
	e.pending = false
	defer func() {
		if e.pending {
			e.snapshot = nil
			e.changes++
		}
		e.pending = e.pending || before
	}()
	if rules, news := e.cfg.Source.Read(e.rules.Generation); news {
		e.rules = rules
		e.compiler.SetPolicies(rules.Policies, rules.Namespaces)
		e.pending = true
	}
	e.learnEndpoints()
}

// Snapshot holds the policies and their endpoints at one moment.
type Snapshot struct {
	Policies []policy.Policy
	World    policy.World
	Version  uint64 // differs from that of a snapshot with other policies or endpoints
}

// Snapshot returns what this host knows now. It must not be changed: until something changes, all
// callers get the same.
func (e *Enforcer) Snapshot() Snapshot {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.learn(); e.snapshot == nil {
		e.snapshot = &Snapshot{e.rules.Policies, e.compiler.World(), e.changes}
	}
	return *e.snapshot
}

// IsLocal reports whether an endpoint on this host has an address.
func (e *Enforcer) IsLocal(addr netip.Addr) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.compiler.IsLocal(addr)
}
