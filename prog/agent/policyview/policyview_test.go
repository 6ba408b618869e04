package policyview

import (
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"weft/mesh/peer"
	"weft/prog/agent/agenttest"
	"weft/prog/agent/enforce"
	"weft/prog/agent/policytest"
	"weft/prog/api"
)

type fixture struct {
	*View
	host *policytest.Host
}

func newFixture(t *testing.T, synced bool) *fixture {
	h := policytest.New(t, synced)
	return &fixture{New(Config{
		Self: agenttest.Self, Mesh: policytest.Alone{}, Documents: h.Documents, Origin: FromDocuments(h.Source, h.Documents, peer.ID.String),
		Policies: h.Enforcer, Counters: policytest.Rules{}, DryRun: policytest.Rules{}, View: &h.View, Log: slog.New(slog.DiscardHandler),
	}), h}
}

func (f *fixture) apply(t *testing.T, manifest string) (api.ApplyReply, error) {
	t.Helper()
	return f.ApplyPolicy(t.Context(), api.ApplyRequest{Manifest: manifest})
}

func (f *fixture) isolated() int { return f.host.Enforcer.InForce().Isolated }

// The program has applied policies, and not deleted ones. Invalid manifests change nothing.
func TestPoliciesFollowDocuments(t *testing.T) {
	f := newFixture(t, true)
	for _, want := range []string{api.Created, api.Unchanged} {
		reply, err := f.apply(t, policytest.Shop)
		if err != nil || len(reply.Changes) != 1 || reply.Changes[0].Change != want || reply.Generation != f.host.Enforcer.InForce().Generation {
			t.Fatalf("%+v, %v; want %s", reply, err, want)
		}
	}
	if p := f.host.Kernel.Program; len(p.Isolated) != 1 || len(p.Chains) != 1 || len(p.Sets) != 1 || len(p.Sets[0].Addrs) != 1 {
		t.Errorf("program %+v; want one isolated address, one chain, and one set with one address", p)
	}
	for _, bad := range []string{strings.Replace(policytest.Shop, "ingress:", "ingres:", 1), policytest.Shop + "---\nkind: Pod\n", ""} {
		_, err := f.apply(t, bad)
		if e, ok := errors.AsType[*api.Error](err); !ok || e.Code != api.CodeBadRequest {
			t.Errorf("applying %q: error %v, want a bad request", bad, err)
		}
	}
	list, err := f.Policies(t.Context())
	if err != nil || len(list) != 1 || list[0].Endpoints != 1 || list[0].Selector != "app=db" || !slices.Equal(list[0].Types, []string{"Ingress"}) {
		t.Errorf("policies %+v, error %v; want one of type Ingress that selects one endpoint", list, err)
	}
	_, err = f.DeletePolicy(t.Context(), api.DeleteRequest{Refs: []api.DocumentRef{list[0].DocumentRef, {Kind: api.KindPolicy, Namespace: "shop", Name: "other"}}})
	if e, ok := errors.AsType[*api.Error](err); !ok || e.Code != api.CodeNotFound || len(f.host.Documents.List(enforce.KindPolicy)) != 1 {
		t.Errorf("deleting a policy that exists and one that does not: error %v; want not found, and nothing deleted", err)
	}
	if _, err := f.DeletePolicy(t.Context(), api.DeleteRequest{Manifest: policytest.Shop}); err != nil || f.isolated() != 0 || len(f.host.Kernel.Program.Isolated) != 0 {
		t.Errorf("deletion: error %v; program %+v, want no isolated address", err, f.host.Kernel.Program)
	}
}

// A document that this version does not understand is a problem, and the others are enforced.
func TestDocumentsThatCannotBeParsedAreProblems(t *testing.T) {
	f := newFixture(t, true)
	f.host.Write(t, map[string]string{"shop/new": "apiVersion: networking.k8s.io/v9\nkind: NetworkPolicy\n", "shop/other": policytest.Shop})
	if _, err := f.apply(t, policytest.Shop); err != nil {
		t.Fatal(err)
	}
	if p := f.host.Enforcer.Problems(); len(p) != 2 || !strings.Contains(p[0].What, "shop/new") || !strings.Contains(p[1].Effect, "it is not the networkpolicy shop/other") || f.isolated() != 1 {
		t.Errorf("problems %+v, %d isolated addresses; want 2 problems, and 1 address", p, f.isolated())
	}
}

// A policy with a part that this version cannot read is in force without that part. The status of
// every host, the list and one problem show that.
func TestPartsOfPoliciesThatAreNotUnderstoodAreReported(t *testing.T) {
	f := newFixture(t, true)
	odd := strings.Replace(policytest.Shop, "{port: 5432}", "{port: 443, protocol: QUIC}, {port: 5432}", 1)
	f.host.Write(t, map[string]string{"shop/db": odd})
	const says = `spec.ingress[0].ports[0].protocol: "QUIC" is not TCP, UDP or SCTP`
	if p := f.host.Enforcer.Problems(); len(p) != 1 || !strings.Contains(p[0].What, "shop/db is not fully understood ("+says+")") || p[0].About != "shop/db" || p[0].Elsewhere {
		t.Errorf("problems %+v, want one that is about shop/db and names the part", p)
	}
	generation := f.cfg.Origin.Generation()
	status := policyAnswers{PolicyStatus: api.PolicyStatus{Generation: generation}}
	status.policies(f.host.Enforcer.Policies())
	status.add(agenttest.Self, "here", f.inForce())
	status.add(peer.ID{9}, "knows more", enforce.InForce{Generation: generation, Policies: map[string]int{"shop/db": 1}})
	if p := status.Policies; len(p) != 1 || p[0].Peers != 2 || !slices.Equal(p[0].Unread, []string{says}) {
		t.Errorf("status %+v; want one policy on two peers, with its unread part", status)
	}
	list, err := f.Policies(t.Context())
	if err != nil || len(list) != 1 || !slices.Equal(list[0].Unread, []string{says}) {
		t.Errorf("policies %+v, error %v; want one with its unread part", list, err)
	}
	if r := f.Status(); r.Policies != 1 || r.Partial != 1 || !r.Current {
		t.Errorf("report %+v; want one policy, which is partly unread, and current rules", r)
	}
	if _, err := f.apply(t, odd); err == nil || !strings.Contains(err.Error(), "line 8: spec.ingress[0].ports[0].protocol") {
		t.Errorf("applying a policy with an unread part: error %v, want its line", err)
	}
	f.host.Attached.Set(nil)
	f.host.Enforcer.Snapshot()
	if p := f.host.Enforcer.Problems(); len(p) != 1 || !p[0].Elsewhere {
		t.Errorf("without a selected endpoint here: problems %+v, want one that concerns other hosts", p)
	}
}

// A host that does not know the policies of the network yet does not write over them.
func TestNothingIsWrittenBeforeTheHostIsSynced(t *testing.T) {
	f := newFixture(t, false)
	_, err := f.apply(t, policytest.Shop)
	if e, ok := errors.AsType[*api.Error](err); !ok || e.Code != api.CodeNotReady || len(f.host.Documents.List(enforce.KindPolicy)) != 0 {
		t.Errorf("error %v, documents %v; want not ready, and none written", err, f.host.Documents.List(enforce.KindPolicy))
	}
}

func TestTheStatusNamesUnreachablePeers(t *testing.T) {
	f := newFixture(t, true)
	if _, err := f.apply(t, policytest.Shop); err != nil {
		t.Fatal(err)
	}
	f.cfg.Mesh = silent{}
	s, err := f.PolicyStatus(t.Context())
	if err != nil || len(s.Peers) != 2 || !s.Peers[0].Current || !s.Peers[1].Unreachable || s.Peers[1].Error == "" || s.Policies[0].Peers != 1 {
		t.Errorf("status %+v, error %v; want this peer current, and the other unreachable", s, err)
	}
}

// silent is a mesh with one other peer, which does not answer.
type silent struct{ policytest.Alone }

func (silent) Others() []peer.ID { return []peer.ID{{9}} }
