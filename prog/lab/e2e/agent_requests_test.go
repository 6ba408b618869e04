package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"weft/mesh/meshtest/eventually"
	"weft/prog/api"
	"weft/prog/lab"
	"weft/prog/lab/labtest"
	"weft/router/endpoint"
)

// Concurrent requests of all kinds, also while an agent is stopped, killed and started, crash no
// agent, and attached containers stay attached. With `make race-lab` the agents also detect data
// races.
func TestAgentsStartAndStopUnderRequests(t *testing.T) {
	l := labtest.New(t, lab.Options{Hosts: 2, Containers: 1})
	established(t, l)
	ctx := context.WithoutCancel(t.Context())
	if _, err := l.Background(ctx, "h1", "demanding", toolArgs(t, "demand")...); err != nil {
		t.Fatal(err)
	}
	alive := func(when string) {
		t.Helper()
		data, err := os.ReadFile(filepath.Join(l.StateDir("h1"), "agent.log"))
		if err != nil || strings.Contains(string(data), "goroutine ") {
			t.Fatalf("%s: the agent's log shows a panic, or is unreadable (%v), want neither:\n%s", when, err, data)
		}
	}
	for i := range 6 {
		if i%3 == 2 {
			if err := l.Kill(t.Context(), "h1", "agent"); err != nil {
				t.Fatal(err)
			}
		} else if err := l.Stop(t.Context(), "h1"); err != nil {
			t.Fatal(err)
		}
		alive("stopping")
		if err := l.Start(t.Context(), "h1"); err != nil {
			t.Fatal(err)
		}
		alive("starting")
	}
	attached := func(prefix string) func() bool {
		return func() bool {
			return slices.ContainsFunc(report(t, l, "h1").Endpoints, func(e api.Endpoint) bool { return strings.HasPrefix(e.ContainerID, prefix) })
		}
	}
	eventually.True(t, 10*time.Second, "the agent still attaches endpoints", attached("asked-"))
	if !attached(lab.ContainerID("h1/c1"))() {
		t.Error("after the restarts, h1/c1 is not attached, want it attached")
	}
	run(t, l, "h2/c1", append([]string{"weft", "probe", "icmp"}, addrs(t, l, "h1/c1")...)...)
}

const demandedPolicy = `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p%d, namespace: other}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress: [{from: [{podSelector: {}}], ports: [{port: 5432}]}]
`

// demand sends concurrent requests of all kinds until it is killed, and ignores errors.
func demand([]string) error {
	client, ctx := api.NewClient(api.DefaultSocket), context.Background()
	kept := lab.ContainerID("h1/c1")
	requests := []func(i int){
		func(i int) { _, _ = client.Report(ctx) },
		func(i int) {
			_ = client.Ready(ctx)
			_, _ = client.Endpoint(ctx, api.EndpointRef{ContainerID: kept, Interface: "eth0"})
		},
		func(i int) { _ = client.Expose(ctx, api.ExposeRequest{On: i%2 == 0, Name: "gate"}) },
		func(i int) {
			req := api.NameRequest{Container: kept, Name: fmt.Sprintf("name%d", i%5)}
			_ = client.AddName(ctx, req)
			_, _ = client.Lookup(ctx, req.Name)
			_ = client.RemoveName(ctx, req)
		},
		func(i int) {
			_, _ = client.Names(ctx)
			_, _ = client.Usage(ctx)
			_ = client.Targets(ctx, api.TargetsRequest{Connect: []string{"192.0.2.77"}})
			_ = client.Targets(ctx, api.TargetsRequest{Forget: []string{"192.0.2.77"}})
		},
		func(i int) {
			_, _ = client.ApplyPolicy(ctx, api.ApplyRequest{Manifest: fmt.Sprintf(demandedPolicy, i%3)})
			_, _ = client.DeletePolicy(ctx, api.DeleteRequest{Manifest: fmt.Sprintf(demandedPolicy, i%3)})
		},
		func(i int) {
			_, _ = client.Policies(ctx)
			_, _ = client.PolicyStatus(ctx)
			_, _ = client.Explain(ctx, api.ExplainRequest{Source: kept, Destination: "192.0.2.9", Port: 80})
			_, _ = client.Drops(ctx)
		},
	}
	for n := range 3 { // attach and detach endpoints that have no link
		requests = append(requests, func(i int) {
			id := fmt.Sprintf("asked-%d-%d", n, i%4)
			ref, link := api.EndpointRef{ContainerID: id, Interface: "eth0"}, endpoint.HostLink(id, "eth0")
			_, _ = client.StartAttach(ctx, api.AttachRequest{
				ContainerID: id, Interface: "eth0", Source: "cni", HostLink: link, MAC: endpoint.PairOf(link).ContainerMAC.String(),
				Name: id, Namespace: "other", Labels: map[string]string{"app": "db"},
			})()
			_ = client.StartPlug(ctx, ref)()
			if i%8 < 4 { // some endpoints exist when the next agent starts
				_ = client.Detach(ctx, ref)
			}
		})
	}
	for _, request := range requests {
		go func() {
			for i := 0; ; i++ {
				request(i)
				time.Sleep(time.Millisecond) // while no agent runs, do not use the processor that its start needs
			}
		}()
	}
	fmt.Fprintln(os.Stderr, "demanding")
	select {}
}
