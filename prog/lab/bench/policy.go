package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"time"

	"weft/prog/lab"
	"weft/router/nft"
	"weft/router/policy"
)

// How often what is measured, and the budgets.
const (
	policyLoads      = 5
	policyChanges    = 200
	policyLoadLimit  = 1 // seconds
	policyChangeTime = 5 // ms
	policyComparedTo = "iptables + ipset"
)

// policyBench measures policies in network namespaces of its own, next to iptables with
// ipsets: what it takes to load those of a cluster, to follow one pod, and to judge packets.
//
// Theirs takes half a minute to load. It is loaded once, and changed once: then the same
// hosts forward packets.
func policyBench(ctx context.Context, b *bench) (err error) {
	if err := policyTunnel(ctx, b); err != nil {
		return fmt.Errorf("packets between hosts: %w", err)
	}
	if err := errors.Join(lab.Install("iptables", "iptables"), lab.Install("ipset", "ipset")); err != nil {
		return err
	}
	c := newCrowd(crowdPolicies)
	changes, err := policyChange(c) // first: an agent's memory has nothing of theirs
	if err != nil {
		return fmt.Errorf("change: %w", err)
	}
	var theirs []*packetCase
	defer func() {
		for _, t := range theirs {
			t.close()
		}
	}()
	for _, backend := range backends(ctx) {
		t := &packetCase{crowd: c, way: backend}
		theirs = append(theirs, t)
		if err := t.setUp(ctx); err != nil {
			return fmt.Errorf("load, iptables-%s: %w", backend, err)
		}
	}
	if err := policyLoad(c, theirs); err != nil {
		return fmt.Errorf("load: %w", err)
	}
	if err := printChanges(ctx, c, changes, theirs); err != nil {
		return fmt.Errorf("change: %w", err)
	}
	if err := policyPackets(ctx, c, theirs); err != nil {
		return fmt.Errorf("packets: %w", err)
	}
	return nil
}

// backends are iptables' ways into this kernel.
func backends(ctx context.Context) (usable []string) {
	for _, backend := range []string{"legacy", "nft"} {
		err := inSpace(func(s space) error {
			return (&kubeRouter{newCrowd(0), backend, 0}).sync(ctx, s)
		})
		if err != nil {
			fmt.Fprintf(os.Stderr, "bench: no iptables-%s with ipsets here: %v\n", backend, err)
			continue
		}
		usable = append(usable, backend)
	}
	return usable
}

// enforcer is what a host has for policies: ours.
type enforcer struct {
	compiler *policy.Compiler
	builder  nft.Builder
	kernel   nft.Kernel
}

// open loads the guard, as the agent does before it knows any policies. No thread need stay in
// the namespace: on a locked one every answer of the kernel's would cost a switch of threads,
// which the agent does not pay.
func (e *enforcer) open(s space) error {
	e.kernel.Namespace = int(s.NsHandle)
	return e.kernel.Apply(nft.Build(crowdConfig(nil).Guard))
}

func (e *enforcer) apply() error {
	p := e.compiler.Program()
	return e.kernel.Apply(e.builder.Build(crowdConfig(&p)))
}

// load starts from nothing but the guard.
func (e *enforcer) load(c *crowd) error {
	e.compiler = newCompiler(c)
	return e.apply()
}

// newCompiler makes one that knows a crowd.
func newCompiler(c *crowd) *policy.Compiler {
	compiler := policy.NewCompiler()
	compiler.SetPolicies(c.policies, c.namespaces)
	for _, one := range c.endpoints {
		compiler.Put(one, c.isLocal(one))
	}
	return compiler
}

func timed(f func() error) (seconds float64, err error) {
	start := time.Now()
	err = f()
	return time.Since(start).Seconds(), err
}

// inSpace runs something in a namespace that is made for it.
func inSpace(f func(s space) error) error {
	s, err := newSpace()
	if err != nil {
		return err
	}
	defer s.close()
	return f(s)
}

func policyLoad(c *crowd, theirs []*packetCase) error {
	var ours samples
	for range policyLoads {
		runtime.GC()
		err := inSpace(func(s space) error {
			e := &enforcer{}
			defer e.kernel.Close()
			if err := e.open(s); err != nil {
				return err
			}
			seconds, err := timed(func() error { return e.load(c) })
			ours.add(seconds)
			return err
		})
		if err != nil {
			return err
		}
	}
	var rows []comparison
	for _, t := range theirs {
		rows = append(rows, comparison{what: "from nothing; iptables-" + t.way, ours: ours, theirs: samples{t.loaded}, limit: policyLoadLimit})
	}
	title := fmt.Sprintf("Policies: %d of them and %d endpoints, %d of those on this host", crowdPolicies, crowdEndpoints, crowdLocal)
	printComparisons(os.Stdout, title, "seconds", policyComparedTo, rows...)
	return nil
}

// podChange is what one pod costs, from what the agent hears to what the kernel has.
type podChange struct{ here, elsewhere samples }

// policyChange measures ours.
func policyChange(c *crowd) (ours podChange, err error) {
	err = inSpace(func(s space) error {
		e := &enforcer{}
		defer e.kernel.Close()
		err := errors.Join(e.open(s), e.load(c))
		if err == nil {
			ours.elsewhere, err = podChanges(e, c, false)
		}
		if err == nil {
			ours.here, err = podChanges(e, c, true)
		}
		return err
	})
	return ours, err
}

// printChanges compares with theirs, who do the same wherever the pod is.
func printChanges(ctx context.Context, c *crowd, ours podChange, theirs []*packetCase) error {
	syncs := make([]samples, len(theirs))
	less := *c
	less.endpoints = c.endpoints[:len(c.endpoints)-1]
	for i, t := range theirs {
		t.kube.crowd = &less
		seconds, err := timed(func() error { return t.kube.sync(ctx, t.path.host) })
		if err != nil {
			return err
		}
		syncs[i].add(1000 * seconds)
	}
	var rows []comparison
	var tails []figure
	for _, side := range []struct {
		where string
		ms    samples
	}{{"on another host", ours.elsewhere}, {"on this host", ours.here}} {
		for i, t := range theirs {
			rows = append(rows, comparison{what: side.where + "; iptables-" + t.way, ours: side.ms, theirs: syncs[i]})
		}
		sorted := slices.Sorted(slices.Values(side.ms))
		tails = append(tails,
			figure{what: side.where + ", median", ours: samples{side.ms.median()}, atMost: policyChangeTime},
			figure{what: side.where + ", p99", ours: samples{sorted[len(sorted)*99/100]}, atMost: policyChangeTime})
	}
	printComparisons(os.Stdout, "Policies: one pod comes or goes", "ms", policyComparedTo, rows...)
	printFigures(os.Stdout, "Policies: one pod, against the budget", "ms", tails...)
	return nil
}

// podChanges takes pods out and puts them in again, each once.
func podChanges(e *enforcer, c *crowd, local bool) (ms samples, err error) {
	runtime.GC()
	for n := 0; len(ms) < policyChanges; n++ {
		pod := c.endpoints[n*37%len(c.endpoints)] // of all namespaces and applications
		if c.isLocal(pod) != local {
			continue
		}
		for _, change := range []func(){func() { e.compiler.Remove(pod.ID) }, func() { e.compiler.Put(pod, local) }} {
			seconds, err := timed(func() error {
				change()
				return e.apply()
			})
			if err != nil {
				return nil, err
			}
			ms.add(1000 * seconds)
		}
	}
	return ms, nil
}
