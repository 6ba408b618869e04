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

// These constants are numbers of repetitions, and the budgets.
const (
	policyLoads      = 5
	policyChanges    = 200
	policyLoadLimit  = 1 // budget in seconds
	policyChangeTime = 5 // budget in ms
	policyComparedTo = "iptables + ipset"
)

// policyBench measures policies in its own network namespaces, compared with iptables and ipsets: the
// time to load a cluster's policies, to follow one pod, and to evaluate packets.
//
// The iptables rules take half a minute to load, so they are loaded and changed once. Then the same
// hosts forward packets.
func policyBench(ctx context.Context, b *bench) (err error) {
	if err := policyTunnel(ctx, b); err != nil {
		return fmt.Errorf("packets between hosts: %w", err)
	}
	if err := errors.Join(lab.Install("iptables", "iptables"), lab.Install("ipset", "ipset")); err != nil {
		return err
	}
	c := newCluster(clusterPolicies)
	changes, err := policyChange(c) // this is measured first, before iptables rules fill the memory
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
		t := &packetCase{cluster: c, way: backend}
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

// backends returns the usable backends of iptables.
func backends(ctx context.Context) (usable []string) {
	for _, backend := range []string{"legacy", "nft"} {
		err := inSpace(func(s space) error {
			return (&kubeRouter{newCluster(0), backend, 0}).sync(ctx, s)
		})
		if err != nil {
			fmt.Fprintf(os.Stderr, "bench: iptables-%s with ipsets does not work here, so it is not measured: %v\n", backend, err)
			continue
		}
		usable = append(usable, backend)
	}
	return usable
}

// enforcer is Weft's policy enforcement on a host.
type enforcer struct {
	compiler *policy.Compiler
	builder  nft.Builder
	kernel   nft.Kernel
}

// open loads the guard: the nftables rules that an agent loads even without policies. It names the
// namespace instead of locking a thread in it: on a locked thread each answer of the kernel would cost
// a thread switch, which the agent does not have.
func (e *enforcer) open(s space) error {
	e.kernel.Namespace = int(s.NsHandle)
	return e.kernel.Apply(nft.Build(clusterConfig(nil).Guard))
}

func (e *enforcer) apply() error {
	p := e.compiler.Program()
	return e.kernel.Apply(e.builder.Build(clusterConfig(&p)))
}

// load loads the policies, after open has loaded the guard.
func (e *enforcer) load(c *cluster) error {
	e.compiler = newCompiler(c)
	return e.apply()
}

// newCompiler returns a policy compiler whose input is a cluster.
func newCompiler(c *cluster) *policy.Compiler {
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

// inSpace runs f in a new namespace.
func inSpace(f func(s space) error) error {
	s, err := newSpace()
	if err != nil {
		return err
	}
	defer s.close()
	return f(s)
}

func policyLoad(c *cluster, theirs []*packetCase) error {
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
		rows = append(rows, comparison{what: "load into an empty kernel; iptables-" + t.way, ours: ours, theirs: samples{t.loaded}, limit: policyLoadLimit})
	}
	title := fmt.Sprintf("Policies: %d of them and %d endpoints, %d of those on this host", clusterPolicies, clusterEndpoints, clusterLocal)
	printComparisons(os.Stdout, title, "seconds", policyComparedTo, rows...)
	return nil
}

// podChange has the times from the agent's input to the kernel's rules, when a pod here or elsewhere changes.
type podChange struct{ here, elsewhere samples }

// policyChange measures how long Weft takes to follow the change of a pod.
func policyChange(c *cluster) (ours podChange, err error) {
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

// printChanges compares Weft's times with kube-router's full sync, which takes the same time wherever the
// changed pod is.
func printChanges(ctx context.Context, c *cluster, ours podChange, theirs []*packetCase) error {
	syncs := make([]samples, len(theirs))
	less := *c
	less.endpoints = c.endpoints[:len(c.endpoints)-1]
	for i, t := range theirs {
		t.kube.cluster = &less
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

// podChanges removes and adds pods, one after the other, and returns the time of each change.
func podChanges(e *enforcer, c *cluster, local bool) (ms samples, err error) {
	runtime.GC()
	for n := 0; len(ms) < policyChanges; n++ {
		pod := c.endpoints[n*37%len(c.endpoints)] // the step takes pods from all namespaces and applications
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
