package policyview

import (
	"errors"
	"log/slog"
	"strings"
	"testing"

	"weft/prog/agent/agenttest"
	"weft/prog/agent/enforce"
	"weft/prog/agent/policytest"
	"weft/prog/api"
	"weft/prog/kube"
	"weft/router/policy"
)

// apiServer has not answered yet.
type apiServer struct{}

func (apiServer) State() *kube.State       { return nil }
func (apiServer) Troubles() []kube.Trouble { return nil }
func (apiServer) Server() string           { return "https://api" }

// known are policies that this host knows.
type known struct {
	*enforce.Enforcer
	list []policy.Policy
}

func (k known) Snapshot() enforce.Snapshot { return enforce.Snapshot{Policies: k.list} }

// Under Kubernetes the API server's policies are enforced, and weft policy only reads them.
func TestPoliciesOfTheAPIServerAreReadOnly(t *testing.T) {
	h := policytest.New(t, true)
	v := New(Config{
		Self: agenttest.Self, Mesh: policytest.Alone{}, Documents: h.Documents, Origin: FromKubernetes(enforce.NewKubernetes(apiServer{}, false), "https://api"),
		Policies: known{h.Enforcer, []policy.Policy{{Namespace: "shop", Name: "closed", Isolates: policy.Of(policy.Ingress)}}},
		Counters: policytest.Rules{}, DryRun: policytest.Rules{}, View: &h.View, Log: slog.New(slog.DiscardHandler),
	})
	list, err := v.Policies(t.Context())
	if err != nil || len(list) != 1 || list[0].Name != "closed" || !strings.Contains(list[0].Manifest, "kubectl --namespace shop get networkpolicy closed") {
		t.Fatalf("policies %+v, error %v; want closed, and the kubectl command that shows it", list, err)
	}
	_, applied := v.ApplyPolicy(t.Context(), api.ApplyRequest{Manifest: policytest.Shop})
	_, deleted := v.DeletePolicy(t.Context(), api.DeleteRequest{Refs: []api.DocumentRef{list[0].DocumentRef}})
	for says, err := range map[string]error{"kubectl apply -f FILE": applied, "kubectl delete networkpolicy NAME": deleted} {
		if e, ok := errors.AsType[*api.Error](err); !ok || e.Code != api.CodeConflict || !strings.Contains(e.Message, says) || !strings.Contains(e.Message, "https://api") {
			t.Errorf("want %q: %v", says, err)
		}
	}
}
