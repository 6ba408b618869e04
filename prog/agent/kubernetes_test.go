package agent

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"

	"weft/prog/api"
	"weft/prog/kube"
	"weft/prog/kube/kubetest"
)

// inCluster is an agent whose policies come from an API server.
func inCluster(t *testing.T, server *kubetest.Server) *Agent {
	t.Helper()
	a := shop(t)
	web := httptest.NewServer(server)
	config := filepath.Join(t.TempDir(), "kubeconfig")
	text := "apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: \"" + web.URL + "\"}}]\ncontexts: [{name: c, context: {cluster: c}}]\ncurrent-context: c\n"
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	a.opts.Kubernetes = KubernetesOptions{On: true, Config: config, Node: "n1"}
	if err := a.makeKube(); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	if err := a.policiesKnown(); err == nil || !strings.Contains(err.Error(), web.URL) {
		t.Errorf("before the API server has answered: %v", err)
	}
	go func() { done <- a.kube.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		server.HangUp()
		web.CloseClientConnections()
		web.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return a
}

// eventually waits until something holds.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not %s", what)
		}
	}
}

// Under Kubernetes the API server's policies are enforced, and weft policy only reads them.
func TestPoliciesFollowTheAPIServer(t *testing.T) {
	server := kubetest.New()
	np := &networking.NetworkPolicy{
		ObjectMeta: meta.ObjectMeta{Namespace: "shop", Name: "closed"},
		Spec:       networking.NetworkPolicySpec{PodSelector: meta.LabelSelector{MatchLabels: map[string]string{"app": "db"}}},
	}
	server.Set(np)
	a := inCluster(t, server)
	eventually(t, "known", func() bool { return a.policiesKnown() == nil })
	isolated := func() int {
		if err := a.enforce(); err != nil {
			t.Fatal(err)
		}
		return len(a.policies.compiler.Program().Isolated)
	}
	eventually(t, "isolated", func() bool { return isolated() == 1 })
	list, err := a.Policies(t.Context())
	if err != nil || len(list) != 1 || list[0].Endpoints != 1 || !strings.Contains(list[0].Manifest, "kubectl") {
		t.Errorf("%+v, %v", list, err)
	}
	for _, f := range []func() error{
		func() error { _, err := apply(t, a, shopYAML); return err },
		func() error {
			_, err := a.DeletePolicy(t.Context(), api.DeleteRequest{Refs: []api.DocumentRef{list[0].DocumentRef}})
			return err
		},
	} {
		if e, ok := errors.AsType[*api.Error](f()); !ok || e.Code != api.CodeConflict || !strings.Contains(e.Message, "kubectl") {
			t.Errorf("%+v", e)
		}
	}
	server.Delete(np)
	eventually(t, "open again", func() bool { return isolated() == 0 })
	if s := a.source(); !strings.HasPrefix(s, "the Kubernetes API server http://") {
		t.Error(s)
	}
}

// What the API server refuses is said, with its fix, and makes the host not ready: who is new
// would have no network, or not the policies of now. What was in force stays.
func TestRefusedByTheAPIServer(t *testing.T) {
	for i, resource := range []string{"networkpolicies", "namespaces", "pods", "nodes", "networkpolicies", "pods"} {
		t.Run(resource, func(t *testing.T) {
			t.Parallel() // each waits until the API server is asked again
			server := kubetest.New()
			server.Streams = i >= 4 // then nothing is listed any more
			server.Refuse(func(_, asked string) int {
				if asked == resource {
					return http.StatusForbidden
				}
				return kubetest.Serve
			})
			a := inCluster(t, server)
			eventually(t, "refused", func() bool { return len(a.kube.Troubles()) > 0 })
			if err := a.policiesKnown(); err == nil || !strings.Contains(err.Error(), "does not let this host") || !strings.Contains(err.Error(), " the "+resource) || !strings.Contains(err.Error(), "apply Weft's manifest") {
				t.Errorf("%s: %v", resource, err)
			}
			w := a.clusterWarnings()
			if len(w) != 1 || w[0].reason != kube.ReasonAPIServer || !strings.Contains(w[0].text, resource) {
				t.Errorf("%s: warnings: %+v", resource, w)
			}
			ctx, stop := context.WithTimeout(t.Context(), 10*time.Millisecond)
			err := a.askPod(ctx, &api.AttachRequest{Source: SourceCNI, Namespace: "shop", Name: "web", PodUID: "u"})
			stop()
			if err == nil || !strings.Contains(err.Error(), resource) {
				t.Errorf("%s: a new pod is told %v", resource, err)
			}
			server.Refuse(nil)
			eventually(t, "known", func() bool { return a.policiesKnown() == nil && len(a.clusterWarnings()) == 0 })
		})
	}
}

// That Weft is up is said where another network said the same before: it shows others that there
// is a network.
func TestAvailableAfterAnotherNetwork(t *testing.T) {
	server := kubetest.New()
	n := kubetest.Node("n1", "uid-1", "192.0.2.1")
	n.Status.Conditions = append(n.Status.Conditions, core.NodeCondition{Type: core.NodeNetworkUnavailable, Status: core.ConditionFalse, Reason: "FlannelIsUp"})
	server.Set(n)
	a := inCluster(t, server)
	a.setReady(t.Context(), nil)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- a.sayAvailable(ctx) }()
	eventually(t, "said", func() bool { return a.ownNode().Up })
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A host speaks for the Node that there was last, also while that is deleted.
func TestOwnNodeIsTheLastOne(t *testing.T) {
	server := kubetest.New()
	server.Set(kubetest.Node("n1", "uid-1", "192.0.2.1"))
	a := inCluster(t, server)
	is := func(uid string) func() bool { return func() bool { return a.ownNode().UID == uid } }
	eventually(t, "known", is("uid-1"))
	server.Set(kubetest.Node("n1", "uid-2", "192.0.2.1"))
	eventually(t, "made anew", is("uid-2"))
	server.Delete(kubetest.Node("n1", "uid-2"))
	eventually(t, "deleted", func() bool { return len(a.kube.State().Nodes) == 0 })
	if uid := a.ownNode().UID; uid != "uid-2" {
		t.Errorf("it speaks for %s, which was another Node before", uid)
	}
}

// A pod waits until the API server has told of it, by its UID, and has the labels that it
// has there, also later ones.
func TestPodsAreWhoTheAPIServerSays(t *testing.T) {
	server := kubetest.New()
	server.Set(kubetest.Pod("n1", "shop", "web", "old", map[string]string{"app": "old"}))
	a := inCluster(t, server)
	eventually(t, "known", func() bool { return a.policiesKnown() == nil })
	time.AfterFunc(50*time.Millisecond, func() {
		server.Set(kubetest.Pod("n1", "shop", "web", "new", map[string]string{"app": "new"}, core.ContainerPort{Name: "http", ContainerPort: 80, Protocol: "TCP"}))
	})
	req := api.AttachRequest{Source: SourceCNI, Namespace: "shop", Name: "web", PodUID: "new", Labels: map[string]string{"network": "weft"}}
	if err := a.askPod(t.Context(), &req); err != nil || len(req.Labels) != 1 || req.Labels["app"] != "new" ||
		len(req.Ports) != 1 || req.Ports[0] != (api.Port{Name: "http", Protocol: "tcp", Number: 80}) {
		t.Errorf("%+v, %v", req, err)
	}
	e := &endpointRecord{AttachRequest: req}
	server.Set(kubetest.Pod("n1", "shop", "web", "new", map[string]string{"app": "newer"}))
	eventually(t, "relabelled", func() bool { return a.entry(e).Labels["app"] == "newer" })
	server.Delete(kubetest.Pod("n1", "shop", "web", "new", nil))
	eventually(t, "gone", func() bool { return len(a.kube.State().Pods) == 0 })
	if d := a.entry(e); d.Labels["app"] != "newer" {
		t.Errorf("a pod that ends is somebody else: %+v", d)
	}
	ctx, stop := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer stop()
	err := a.askPod(ctx, &req)
	if e, ok := errors.AsType[*api.Error](err); !ok || e.Code != api.CodeNotReady || !strings.Contains(e.Message, a.kube.Server()) || !strings.Contains(e.Message, "shop/web") {
		t.Errorf("%v", err)
	}
	plain := api.AttachRequest{Source: SourceAttach, Name: "by-hand"}
	if err := a.askPod(t.Context(), &plain); err != nil || plain.Labels != nil {
		t.Errorf("what no pod is waits for the API server: %+v, %v", plain, err)
	}
}

// A pod whose end nobody tells of, as some plugins in between do, does not keep its address for ever: once its link and
// its object are gone for a while, it is free. One that the API server has, or that has a link, stays.
func TestPodsThatEndUntold(t *testing.T) {
	server := kubetest.New()
	for _, uid := range []string{"ended", "running"} {
		server.Set(kubetest.Pod("n1", "shop", uid, uid, nil))
	}
	a := inCluster(t, server)
	eventually(t, "known", func() bool { return a.policiesKnown() == nil })
	refs := map[string]api.EndpointRef{}
	for n, uid := range []string{"ended", "running", ""} {
		ref := a.give(t, fmt.Sprintf("%012d", n))
		e := a.endpoint(ref.Key())
		e.Namespace, e.Name, e.PodUID = "shop", uid, uid
		refs[uid] = ref
	}
	before, addresses := len(a.endpoints), a.allocations(t)
	for range 2 * forgotten {
		a.releaseEnded(t.Context())
	}
	if len(a.endpoints) != before {
		t.Errorf("%d endpoints, %d before, and no pod ended", len(a.endpoints), before)
	}
	server.Delete(kubetest.Pod("n1", "shop", "ended", "ended", nil))
	eventually(t, "gone", func() bool { return len(a.kube.State().Pods) == 1 })
	a.releaseEnded(t.Context())
	if a.endpoint(refs["ended"].Key()) != nil || len(a.endpoints) != before-1 {
		t.Errorf("%d endpoints, %d before one pod ended", len(a.endpoints), before)
	}
	if now := a.allocations(t); now != addresses-1 {
		t.Errorf("%d addresses are in use, %d before one pod ended", now, addresses)
	}
}
