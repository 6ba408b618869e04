// Package policytest is a host with endpoints and policies, for tests of the components that list,
// explain and try policies.
package policytest

import (
	"context"
	"crypto/ed25519"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"weft/ipam/slot"
	"weft/mesh"
	"weft/mesh/directory"
	"weft/mesh/peer"
	"weft/prog/agent/agenttest"
	"weft/prog/agent/attach"
	"weft/prog/agent/enforce"
	"weft/prog/agent/live"
	"weft/prog/agent/view"
	"weft/prog/api"
	"weft/router/nft"
	"weft/router/policy"
)

// Shop is a policy: in the namespace shop, pods with app=web reach those with app=db at port 5432.
const Shop = `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: web}}}]
    ports: [{port: 5432}]
`

// Host is a host outside Kubernetes.
type Host struct {
	View      live.Value[*view.View]
	Attached  live.Value[[]attach.Endpoint]
	Kernel    agenttest.Kernel
	Documents *mesh.Documents
	Source    *enforce.Documents
	Enforcer  *enforce.Enforcer
}

// New makes a host named "here" with the endpoints shop/db, shop/web, jobs/batch and jobs/db. Each
// has its name as label app, and a container id like id-shop-db. synced means that it knows the
// policies of the network.
func New(t testing.TB, synced bool) *Host {
	t.Helper()
	h := &Host{}
	h.View.Set(agenttest.View())
	var list []attach.Endpoint
	for i, name := range []string{"shop/db", "shop/web", "jobs/batch", "jobs/db"} {
		e := attach.Endpoint{Slot: slot.Slot(10 + i)}
		e.ContainerID, e.Interface = "id-"+strings.ReplaceAll(name, "/", "-"), "eth0"
		e.Namespace, e.Name, _ = strings.Cut(name, "/")
		e.Labels = map[string]string{"app": e.Name}
		list = append(list, e)
	}
	h.Attached.Set(list)
	var err error
	h.Documents, err = mesh.NewDocuments(mesh.DocumentsConfig{
		Identity: ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)), Mesh: Alone{}, Store: store{}, Synced: synced, Now: time.Now,
		Log: slog.New(slog.DiscardHandler), Changed: func() {
			if h.Source != nil {
				h.Source.Set(struct{}{})
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	h.Source = enforce.NewDocuments(h.Documents, peer.ID.String)
	h.Enforcer = enforce.New(enforce.Config{
		Self: agenttest.Self, Source: h.Source, Directory: empty{}, Attached: &h.Attached, View: &h.View, Router: &h.Kernel, Log: slog.New(slog.DiscardHandler),
	})
	if err := h.Enforcer.Ensure(); err != nil {
		t.Fatal(err)
	}
	return h
}

// Write writes policies by their names, and enforces them.
func (h *Host) Write(t testing.TB, manifests map[string]string) {
	t.Helper()
	var changes []mesh.Change
	for name, text := range manifests {
		changes = append(changes, mesh.Change{Kind: enforce.KindPolicy, Name: name, Body: []byte(text)})
	}
	if err := errors.Join(h.Documents.Write(changes), h.Enforcer.Settle()); err != nil {
		t.Fatal(err)
	}
}

// Endpoint returns an endpoint by its name.
func (h *Host) Endpoint(name string) policy.Endpoint {
	all := h.Enforcer.Snapshot().World.Endpoints
	return all[slices.IndexFunc(all, func(e policy.Endpoint) bool { return e.Ref() == name })]
}

// Alone is the mesh of a peer that has no others.
type Alone struct{}

// Broadcast does nothing.
func (Alone) Broadcast(string, []byte) {}

// Reachable reaches no peer.
func (Alone) Reachable(peer.ID) bool { return false }

// Others lists no peers.
func (Alone) Others() []peer.ID { return nil }

// Name is a peer's id.
func (Alone) Name(id peer.ID) string { return id.String() }

// Request fails.
func (Alone) Request(context.Context, peer.ID, string, []byte) ([]byte, error) {
	return nil, errors.New("there is no other peer")
}

// Rules is a kernel without rules: explanations then evaluate the policies alone.
type Rules struct{}

// Evaluate finds no rules.
func (Rules) Evaluate(policy.Direction, netip.Addr, nft.Packet) (nft.Evaluation, error) {
	return nft.Evaluation{}, errors.New("this test has no kernel")
}

// Dropped counts nothing.
func (Rules) Dropped(policy.Direction) (uint64, error) { return 0, nil }

// Effects is the effect of a dry run that is not tried.
func (Rules) Effects(context.Context, []mesh.Change) (*api.Effects, error) {
	return &api.Effects{}, nil
}

type store struct{}

func (store) SaveDocuments(map[string][]byte) error { return nil }
func (store) SaveSynced() error                     { return nil }

type empty struct{}

func (empty) Held() []directory.Held                       { return nil }
func (empty) Of(peer.ID, directory.Ring) []directory.Entry { return nil }
