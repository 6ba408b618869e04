package kube

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"weft/prog/kube/kubetest"
	"weft/prog/manifest"
	"weft/router/policy"
)

// followed is a source that runs against a server.
type followed struct {
	*Source
	saved atomic.Pointer[[]byte]
}

func follow(t *testing.T, api *kubetest.Server, keptBefore []byte) *followed {
	t.Helper()
	server := httptest.NewServer(api)
	f := &followed{}
	var err error
	f.Source, err = New(Config{
		API: &rest.Config{Host: server.URL, QPS: -1}, Node: "n1", Kept: keptBefore, Log: slog.New(slog.DiscardHandler), Changed: func() {},
		Save: func(data []byte) error { f.saved.Store(&data); return nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		api.HangUp()
		server.CloseClientConnections()
		server.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return f
}

// eventually waits for a state.
func (f *followed) eventually(t *testing.T, what string, is func(*State) bool) *State {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if st := f.State(); st != nil && is(st) {
			return st
		}
		if time.Now().After(deadline) {
			t.Fatalf("not %s: %+v", what, f.State())
		}
	}
}

func denyAll(namespace, name string) *networking.NetworkPolicy {
	return &networking.NetworkPolicy{
		ObjectMeta: meta.ObjectMeta{Namespace: namespace, Name: name, ManagedFields: []meta.ManagedFieldsEntry{{Manager: "kubectl"}}},
		Spec:       networking.NetworkPolicySpec{PolicyTypes: []networking.PolicyType{networking.PolicyTypeIngress}},
	}
}

// What the API server says arrives, changes and goes; only this node's pods are asked for.
func TestFollows(t *testing.T) {
	api := kubetest.New()
	api.Set(&core.Namespace{ObjectMeta: meta.ObjectMeta{Name: "shop", Labels: map[string]string{"team": "a"}}})
	api.Set(denyAll("shop", "closed"))
	api.Set(kubetest.Pod("n1", "shop", "web", "u1", map[string]string{"app": "web"}, core.ContainerPort{Name: "http", ContainerPort: 8080}, core.ContainerPort{ContainerPort: 9}))
	api.Set(kubetest.Pod("n2", "shop", "far", "u2", nil))
	host := kubetest.Pod("n1", "shop", "host", "u3", nil)
	host.Spec.HostNetwork = true
	api.Set(host)
	f := follow(t, api, nil)
	st := f.eventually(t, "known", func(st *State) bool { return st.Live })
	web := st.Pods["u1"]
	if len(st.Policies) != 1 || st.Policies[0].Ref() != "shop/closed" || st.Namespaces["shop"]["team"] != "a" || len(st.Pods) != 1 ||
		web.Labels["app"] != "web" || !slices.Equal(web.Ports, []policy.NamedPort{{Name: "http", Protocol: policy.TCP, Number: 8080}}) {
		t.Errorf("%+v", st)
	}
	before := st.Generation
	api.Set(kubetest.Pod("n1", "shop", "web", "u1", map[string]string{"app": "other"}))
	st = f.eventually(t, "relabelled", func(st *State) bool { return st.Pods["u1"].Labels["app"] == "other" })
	if st.Generation != before {
		t.Error("a pod made another generation of policies")
	}
	api.HangUp()
	api.Delete(denyAll("shop", "closed"))
	st = f.eventually(t, "open, after the connection broke", func(st *State) bool { return len(st.Policies) == 0 })
	if st.Generation == before {
		t.Error("a policy that is gone made no other generation")
	}
	for _, asked := range api.Asked() {
		if strings.HasPrefix(asked, "/api/v1/pods") && !strings.Contains(asked, "fieldSelector=spec.nodeName%3Dn1") {
			t.Errorf("asked for all pods: %s", asked)
		}
	}
}

// A pod is found by its UID, also one that the API server tells of later.
func TestPodByUID(t *testing.T) {
	api := kubetest.New()
	api.Set(kubetest.Pod("n1", "shop", "web", "old", map[string]string{"app": "old"}))
	f := follow(t, api, nil)
	f.eventually(t, "known", func(st *State) bool { return st.Live })
	time.AfterFunc(100*time.Millisecond, func() {
		api.Delete(kubetest.Pod("n1", "shop", "web", "old", nil))
		api.Set(kubetest.Pod("n1", "shop", "web", "new", map[string]string{"app": "new"}))
	})
	ctx, stop := context.WithTimeout(t.Context(), 20*time.Second)
	defer stop()
	if p, err := f.Pod(ctx, "shop", "web", "new"); err != nil || p.Labels["app"] != "new" {
		t.Errorf("%+v, %v", p, err)
	}
	if p, err := f.Pod(ctx, "shop", "web", ""); err != nil || p.UID != "new" {
		t.Errorf("without a UID: %+v, %v", p, err)
	}
	short, stop2 := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer stop2()
	_, err := f.Pod(short, "shop", "web", "other")
	if e, ok := errors.AsType[*UnknownPodError](err); !ok || e.Nothing || !strings.Contains(err.Error(), "http://127.0.0.1") || !strings.Contains(err.Error(), "shop/web") {
		t.Errorf("%v", err)
	}
}

// While the API server is down, what was kept counts; without it nothing is known, and said so.
func TestWithoutTheServer(t *testing.T) {
	api := kubetest.New()
	api.Set(denyAll("shop", "closed"))
	api.Set(kubetest.Pod("n1", "shop", "web", "u1", map[string]string{"app": "web"}))
	f := follow(t, api, nil)
	live := f.eventually(t, "kept", func(st *State) bool { return f.saved.Load() != nil })
	for name, data := range map[string][]byte{"kept": *f.saved.Load(), "nothing": nil} {
		s, err := New(Config{API: &rest.Config{Host: "https://192.0.2.1:6443"}, Kept: data})
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer stop()
		p, err := s.Pod(ctx, "shop", "web", "u1")
		if name == "kept" {
			if st := s.State(); err != nil || p.Labels["app"] != "web" || st.Live || st.Generation != live.Generation || len(st.Policies) != 1 {
				t.Errorf("%+v, %v: %+v", p, err, st)
			}
		} else if e, ok := errors.AsType[*UnknownPodError](err); !ok || !e.Nothing || s.State() != nil || !strings.Contains(err.Error(), "https://192.0.2.1:6443") {
			t.Errorf("%v", err)
		}
	}
	if _, err := New(Config{Kept: []byte("{torn")}); err == nil {
		t.Error("what was kept is torn, and taken")
	}
}

// What a kubelet says again and again is no change; all that is read here is one.
func TestAlike(t *testing.T) {
	node := func(change func(*core.Node)) meta.Object {
		n := kubetest.Node("n1", "u1", "192.0.2.1")
		n.Status.Conditions = append(n.Status.Conditions, core.NodeCondition{Type: core.NodeNetworkUnavailable, Status: core.ConditionTrue})
		change(n)
		return n
	}
	pod := func(change func(*core.Pod)) meta.Object {
		p := kubetest.Pod("n1", "shop", "web", "u1", map[string]string{"app": "web"}, core.ContainerPort{Name: "http", ContainerPort: 80})
		change(p)
		return p
	}
	policy := func(change func(*networking.NetworkPolicy)) meta.Object {
		p := denyAll("shop", "closed")
		change(p)
		return p
	}
	now := meta.Now()
	for name, c := range map[string]struct {
		old, now meta.Object
		alike    bool
	}{
		"heartbeat": {node(func(*core.Node) {}), node(func(n *core.Node) {
			n.Status.Conditions[0].LastHeartbeatTime, n.Labels = now, map[string]string{"a": "b"}
		}), true},
		"not ready":  {node(func(*core.Node) {}), node(func(n *core.Node) { n.Status.Conditions[0].Status = core.ConditionFalse }), false},
		"available":  {node(func(*core.Node) {}), node(func(n *core.Node) { n.Status.Conditions[1].Status = core.ConditionFalse }), false},
		"address":    {node(func(*core.Node) {}), node(func(n *core.Node) { n.Status.Addresses[0].Address = "192.0.2.2" }), false},
		"other UID":  {node(func(*core.Node) {}), node(func(n *core.Node) { n.UID = "u2" }), false},
		"status":     {pod(func(*core.Pod) {}), pod(func(p *core.Pod) { p.Status.Phase, p.DeletionTimestamp = core.PodRunning, &now }), true},
		"labels":     {pod(func(*core.Pod) {}), pod(func(p *core.Pod) { p.Labels = map[string]string{"app": "other"} }), false},
		"static UID": {pod(func(*core.Pod) {}), pod(func(p *core.Pod) { p.Annotations = map[string]string{staticUID: "1"} }), false},
		"managed":    {policy(func(*networking.NetworkPolicy) {}), policy(func(p *networking.NetworkPolicy) { p.ManagedFields = nil }), true},
		"spec":       {policy(func(*networking.NetworkPolicy) {}), policy(func(p *networking.NetworkPolicy) { p.Spec.PolicyTypes = nil }), false},
		"audit": {policy(func(*networking.NetworkPolicy) {}), policy(func(p *networking.NetworkPolicy) {
			p.Annotations = map[string]string{manifest.AuditAnnotation: "true"}
		}), false},
		"namespace": {&core.Namespace{}, &core.Namespace{ObjectMeta: meta.ObjectMeta{Labels: map[string]string{"team": "a"}}}, false},
	} {
		c.now.SetResourceVersion("2")
		old, err := slim(c.old)
		now, err2 := slim(c.now)
		if got := alike(old, now); err != nil || err2 != nil || got != c.alike {
			t.Errorf("%s: %v, %v, %v", name, got, err, err2)
		}
	}
}

// A policy that this version does not understand allows nothing, and is said.
func TestUnreadPolicies(t *testing.T) {
	odd := denyAll("shop", "odd")
	odd.Spec.PolicyTypes = []networking.PolicyType{"Sideways"}
	data, err := json.Marshal(kept{Policies: []networking.NetworkPolicy{*odd, *denyAll("shop", "closed")}})
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(Config{Kept: data})
	if st := s.State(); err != nil || len(st.Policies) != 2 || st.Policies[0].Isolates != policy.Both || st.Policies[0].Ingress != nil || len(st.Unread) != 1 || !strings.Contains(st.Unread[0], "shop/odd") || !strings.Contains(st.Unread[0], "Sideways") {
		t.Errorf("%v: %+v", err, st)
	}
}
