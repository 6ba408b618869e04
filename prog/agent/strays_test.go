package agent

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"weft/ipam"
	"weft/prog/agent/settings"
	"weft/prog/agent/statedir"
	"weft/prog/api"
	"weft/prog/state"
	"weft/router"
	"weft/router/endpoint"
)

// The state of a host is restored from an older copy: it has an old node address and an endpoint
// that is gone, and lacks a container that is attached. The agent finds that container before its
// first plan takes the old node address, and with it the container's route, from the kernel.
func TestContainersMissingInTheStateAreFoundBeforeTheFirstPlan(t *testing.T) {
	if os.Getenv(alone) == "" {
		runAlone(t)
		return
	}
	makeUnderlay(t)
	opts := options(t)
	if err := statedir.EstablishSecret(opts.StateDir, statedir.Given{}, true); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := router.Remove(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	client := api.NewClient(opts.Socket())
	run := func(f func(ctx context.Context)) {
		t.Helper()
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		done := make(chan error, 1)
		go func() { done <- Run(ctx, opts) }()
		for client.Ready(ctx) != nil {
			select {
			case err := <-done:
				t.Fatal(err)
			case <-time.After(5 * time.Millisecond):
			}
		}
		f(ctx)
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	const stray, gone = "stray", "gone"
	ref := func(id string) api.EndpointRef { return api.EndpointRef{ContainerID: id, Interface: "eth0"} }
	run(func(ctx context.Context) {
		for _, id := range []string{stray, gone} {
			link := endpoint.HostLink(id, "eth0")
			pair := endpoint.PairOf(link)
			veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: link}, PeerName: id}
			if err := netlink.LinkAdd(veth); err != nil {
				t.Fatal(err)
			}
			if _, err := client.StartAttach(ctx, api.AttachRequest{
				ContainerID: id, Interface: "eth0", HostLink: link, Source: api.SourceCNI, MAC: pair.ContainerMAC.String(), Name: id,
			})(); err != nil {
				t.Fatal(err)
			}
			if err := client.StartPlug(ctx, ref(id))(); err != nil {
				t.Fatal(err)
			}
		}
	})
	if err := endpoint.Remove(endpoint.HostLink(gone, "eth0")); err != nil {
		t.Fatal(err)
	}
	store, err := state.Open(opts.StateDir)
	if err != nil {
		t.Fatal(err)
	}
	st, err := store.Load()
	if err != nil {
		t.Fatal(err)
	}
	key := ref(stray).Key()
	was := st.Allocations[key]
	for _, c := range []ipam.Change{
		{Key: key, Slot: was, Delete: true},
		{Key: settings.NodeKey, Slot: st.Allocations[settings.NodeKey] + 100},
	} {
		if err := store.Update(c); err != nil {
			t.Fatal(err)
		}
	}
	store.Close()
	run(func(ctx context.Context) {
		r, err := client.Report(ctx)
		if err != nil {
			t.Fatal(err)
		}
		text := strings.Join(r.Warnings, "\n")
		if !strings.Contains(text, fmt.Sprintf("a container behind link %s", endpoint.HostLink(stray, "eth0"))) {
			t.Errorf("warnings %s; want one about the stray container's link", text)
		}
	})
}
