package agent

import (
	"fmt"
	"sync"
	"testing"

	"weft/prog/api"
	"weft/router/routertest"
)

// While an agent starts, and at any time later, endpoints come and go, and the operator asks
// and changes things: none of that touches a map that another one reads. The race detector
// watches; without it, a map that is written while it is ranged over ends the process.
func TestEverythingAtOnce(t *testing.T) {
	routertest.New(t).Do(func() {
		a := partial(t)
		ctx := t.Context()
		for i := range 50 {
			a.give(t, fmt.Sprintf("old%d", i))
		}
		kept := a.give(t, "kept")
		snap, err := a.ipam.Snapshot(ctx)
		if err != nil {
			t.Fatal(err)
		}
		var group sync.WaitGroup
		const rounds = 200
		each := func(f func(i int)) {
			group.Go(func() {
				for i := range rounds {
					f(i)
				}
			})
		}
		each(func(int) { _ = a.findStrays() })
		each(func(i int) { // ADD and DEL
			ref := api.EndpointRef{ContainerID: fmt.Sprintf("new%d", i), Interface: "eth0"}
			a.setEndpoint(ref.Key(), &endpointRecord{AttachRequest: api.AttachRequest{ContainerID: ref.ContainerID, Interface: "eth0"}})
			a.setEndpoint(ref.Key(), nil)
			a.setEndpoint(fmt.Sprintf("old%d/eth0", i%50), nil)
		})
		each(func(i int) { _ = a.Expose(ctx, api.ExposeRequest{On: i%2 == 0}) })
		each(func(int) { _ = a.change(func(s *settings) error { s.Names = []givenName{{Name: "x"}}; return nil }) })
		each(func(i int) {
			_, _ = a.Endpoint(ctx, kept)
		})
		each(func(int) { a.releaseEnded(ctx) })
		each(func(int) { a.published(snap); a.misfits(); a.judgedHere(snap.Ring.Universe) })
		each(func(int) { _, _ = a.findEndpoints("old1"); _ = a.forgetNames("old2/eth0"); a.reportIPAM(snap, nil) })
		group.Wait()
	})
}
