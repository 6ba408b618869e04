package agent

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"weft/prog/api"
	"weft/router/endpoint"
	"weft/router/routertest"
)

// While an agent starts, and at any time later, endpoints come and go, and the operator asks
// and changes things: none of that touches what another one reads. The race detector watches;
// without it, a map that is written while it is ranged over ends the process.
func TestEverythingAtOnce(t *testing.T) {
	ns := routertest.New(t)
	a := shop(t)
	a.setReady(t.Context(), nil)
	for i := range 50 {
		a.give(t, fmt.Sprintf("old%d", i))
	}
	const rounds = 40
	var group sync.WaitGroup
	var slower atomic.Int32 // what has not come round so often: as long, the others go on
	all := atOnce(t, a)
	slower.Store(int32(len(all)))
	for _, f := range all {
		group.Go(func() {
			ns.Do(func() { // on a thread of its own
				for i := 0; i < rounds || slower.Load() > 0; i++ {
					f(t.Context(), i)
					if i == rounds-1 {
						slower.Add(-1)
					}
				}
			})
		})
	}
	group.Wait()
}

// atOnce is what happens to an agent: what fails is no matter here.
func atOnce(t *testing.T, a *Agent) []func(ctx context.Context, i int) {
	t.Helper()
	kept := a.give(t, "kept")
	snap, err := a.ipam.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return []func(ctx context.Context, i int){
		func(ctx context.Context, i int) { // the start, and each turn
			a.releaseVanished(ctx)
			a.releaseEnded(ctx)
			_ = a.enforce()
			a.setNode(snap.Allocations[nodeKey])
			a.setReady(ctx, nil)
		},
		func(ctx context.Context, i int) { // ADD and DEL
			id := fmt.Sprintf("new%d", i)
			req := api.AttachRequest{ContainerID: id, Interface: "eth0", HostLink: endpoint.HostLink(id, "eth0"), Source: SourceAttach, MAC: "02:00:00:00:00:01", Name: id, Labels: map[string]string{"app": "db"}}
			if _, err := a.Attach(ctx, req); err != nil {
				t.Errorf("attach: %v", err)
			}
			_ = a.Detach(ctx, api.EndpointRef{ContainerID: fmt.Sprintf("new%d", i-1), Interface: "eth0"})
			_ = a.Detach(ctx, api.EndpointRef{ContainerID: fmt.Sprintf("old%d", i), Interface: "eth0"})
		},
		func(ctx context.Context, i int) { _, _ = a.Endpoint(ctx, kept) }, // alone: another lock taken would hide a race
		func(ctx context.Context, i int) { a.policyWarnings() },
		func(ctx context.Context, i int) { _ = a.findStrays() },
		func(ctx context.Context, i int) { _ = a.Expose(ctx, api.ExposeRequest{On: i%2 == 0, Name: "gate"}) },
		func(ctx context.Context, i int) {
			req := api.NameRequest{Container: "kept", Name: fmt.Sprintf("name%d", i%5)}
			_ = a.AddName(ctx, req)
			_ = a.RemoveName(ctx, req)
			_ = a.forgetNames(kept.Key())
		},
		func(ctx context.Context, i int) { // policies
			_, _ = a.ApplyPolicy(ctx, api.ApplyRequest{Manifest: shopYAML})
			_ = a.settled()
			_, _ = a.DeletePolicy(ctx, api.DeleteRequest{Manifest: shopYAML})
		},
		func(ctx context.Context, i int) { // status
			_ = a.Ready(ctx)
			_ = a.early()
			a.reportIPAM(snap, nil)
			a.reportPolicy()
			a.misfits()
		},
		func(ctx context.Context, i int) {
			_ = a.directory.Publish(a.published(snap))
			_, _ = a.Names(ctx)
			_, _ = a.Lookup(ctx, api.LookupRequest{Name: "name1"})
			_, _ = a.findEndpoints("old1")
		},
		func(ctx context.Context, i int) {
			_, _ = a.Policies(ctx)
			_, _ = a.Explain(ctx, api.ExplainRequest{Source: "web", Destination: "shop/db", Port: 5432})
			_, _ = a.Drops(ctx)
		},
	}
}
