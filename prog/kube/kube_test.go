package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"weft/mesh/meshtest/eventually"
	"weft/prog/kube/kubetest"
	"weft/prog/manifest"
	"weft/router/policy"
)

// followed is a Source that runs against a fake API server.
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

// soon is how long a change of the API server may take to reach the Source.
const soon = 20 * time.Second

// becomes waits for a state.
func (f *followed) becomes(t *testing.T, what string, is func(*State) bool) (st *State) {
	t.Helper()
	eventually.Nil(t, soon, what, func() error {
		if st = f.State(); st != nil && is(st) {
			return nil
		}
		return fmt.Errorf("the state is %+v", st)
	})
	return st
}

func denyAll(namespace, name string) *networking.NetworkPolicy {
	return &networking.NetworkPolicy{
		ObjectMeta: meta.ObjectMeta{Namespace: namespace, Name: name, ManagedFields: []meta.ManagedFieldsEntry{{Manager: "kubectl"}}},
		Spec:       networking.NetworkPolicySpec{PolicyTypes: []networking.PolicyType{networking.PolicyTypeIngress}},
	}
}

// The Source reports additions, changes and deletions. It only requests this node's pods.
func TestSourceFollowsChanges(t *testing.T) {
	api := kubetest.New()
	api.Set(&core.Namespace{ObjectMeta: meta.ObjectMeta{Name: "shop", Labels: map[string]string{"team": "a"}}})
	api.Set(denyAll("shop", "closed"))
	api.Set(kubetest.Pod("n1", "shop", "web", "u1", map[string]string{"app": "web"}, core.ContainerPort{Name: "http", ContainerPort: 8080}, core.ContainerPort{ContainerPort: 9}))
	api.Set(kubetest.Pod("n2", "shop", "far", "u2", nil))
	host := kubetest.Pod("n1", "shop", "host", "u3", nil)
	host.Spec.HostNetwork = true
	api.Set(host)
	f := follow(t, api, nil)
	st := f.becomes(t, "known", func(st *State) bool { return st.Live })
	web := st.Pods["shop/web"]
	if len(st.Policies) != 1 || st.Policies[0].Ref() != "shop/closed" || st.Namespaces["shop"]["team"] != "a" || len(st.Pods) != 1 ||
		web.Labels["app"] != "web" || !slices.Equal(web.Ports, []policy.NamedPort{{Name: "http", Protocol: policy.TCP, Number: 8080}}) {
		t.Errorf("the first state is %+v; want this node's pod, the policy and the namespace", st)
	}
	before := st.Generation
	api.Set(kubetest.Pod("n1", "shop", "web", "u1", map[string]string{"app": "other"}))
	st = f.becomes(t, "relabelled", func(st *State) bool { return st.Pods["shop/web"].Labels["app"] == "other" })
	if st.Generation != before {
		t.Error("a change of a pod changed the generation of policies, want the same")
	}
	api.HangUp()
	api.Delete(denyAll("shop", "closed"))
	st = f.becomes(t, "open, after the connection broke", func(st *State) bool { return len(st.Policies) == 0 })
	if st.Generation == before {
		t.Error("the deletion of a policy did not change the generation, want a different generation")
	}
	for _, asked := range api.Asked() {
		if strings.HasPrefix(asked, "/api/v1/pods") && !strings.Contains(asked, "fieldSelector=spec.nodeName%3Dn1") {
			t.Errorf("the Source requested the pods of all nodes, want only n1's: %s", asked)
		}
	}
}

// A pod is found by its UID, also if the API server reports it later.
func TestAPodIsFoundByItsUID(t *testing.T) {
	api := kubetest.New()
	api.Set(kubetest.Pod("n1", "shop", "web", "old", map[string]string{"app": "old"}))
	f := follow(t, api, nil)
	f.becomes(t, "known", func(st *State) bool { return st.Live })
	time.AfterFunc(100*time.Millisecond, func() {
		api.Delete(kubetest.Pod("n1", "shop", "web", "old", nil))
		api.Set(kubetest.Pod("n1", "shop", "web", "new", map[string]string{"app": "new"}))
	})
	ctx, stop := context.WithTimeout(t.Context(), 20*time.Second)
	defer stop()
	if p, err := f.Pod(ctx, "shop", "web", "new"); err != nil || p.Labels["app"] != "new" {
		t.Errorf("Pod with the new UID returned %+v, error %v; want label app=new", p, err)
	}
	if p, err := f.Pod(ctx, "shop", "web", ""); err != nil || p.UID != "new" {
		t.Errorf("Pod without a UID returned %+v, error %v; want the current pod", p, err)
	}
	short, stop2 := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer stop2()
	_, err := f.Pod(short, "shop", "web", "other")
	if e, ok := errors.AsType[*UnknownPodError](err); !ok || e.Nothing || !strings.Contains(err.Error(), "http://127.0.0.1") || !strings.Contains(err.Error(), "shop/web") {
		t.Errorf("an unknown pod gives the error %v; want one with the server and the pod", err)
	}
}

// While the API server is down, the stored state is used. Without it, the error says that nothing is
// known.
func TestStoredStateIsUsedWithoutAPIServer(t *testing.T) {
	api := kubetest.New()
	api.Set(denyAll("shop", "closed"))
	api.Set(kubetest.Pod("n1", "shop", "web", "u1", map[string]string{"app": "web"}))
	f := follow(t, api, nil)
	live := f.becomes(t, "kept", func(st *State) bool { return f.saved.Load() != nil })
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
				t.Errorf("with a stored state, Pod returned %+v, error %v; the state is %+v; want the stored pod and policy, not live", p, err, st)
			}
		} else if e, ok := errors.AsType[*UnknownPodError](err); !ok || !e.Nothing || s.State() != nil || !strings.Contains(err.Error(), "https://192.0.2.1:6443") {
			t.Errorf("without a stored state the error is %v; want one that names the server", err)
		}
	}
	if _, err := New(Config{Kept: []byte("{torn")}); err == nil {
		t.Error("New accepted an incomplete stored state, want an error")
	}
}

// Irrelevant updates, such as a kubelet's heartbeats, are no change. Each relevant field is one.
func TestIrrelevantUpdatesAreNoChange(t *testing.T) {
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
		told := 0
		f := newFollowing(func() { told++ })
		m := f.of(c.old)
		if err := errors.Join(m.Replace([]any{c.old}, "1"), m.Update(c.now)); err != nil || told != 1 && c.alike || told != 2 && !c.alike {
			t.Errorf("%s: %d changes were reported, want 2 after a relevant update, and 1 otherwise; error %v", name, told, err)
		}
	}
}

// of returns the mirror of an object's resource.
func (f *following) of(o meta.Object) cache.ReflectorStore {
	switch o.(type) {
	case *core.Pod:
		return f.pods
	case *core.Node:
		return f.nodes
	case *core.Namespace:
		return f.namespaces
	}
	return f.policies
}

// The mirror reports nothing before all is known; then it reports additions, changes, deletions and
// differing lists.
func TestMirrorReportsChanges(t *testing.T) {
	told := 0
	f := newFollowing(func() { told++ })
	pod := func(name, app string) any {
		return kubetest.Pod("n1", "shop", name, "u-"+name, map[string]string{"app": app})
	}
	host := kubetest.Pod("n1", "shop", "host", "u-host", nil)
	host.Spec.HostNetwork = true
	for _, step := range []struct {
		what string
		do   func() error
		told bool
		has  int
	}{
		{"an object before the list", func() error { return f.pods.Add(pod("early", "x")) }, false, 0},
		{"the list", func() error { return f.pods.Replace([]any{pod("a", "x"), pod("b", "x"), host}, "1") }, true, 2},
		{"one more", func() error { return f.pods.Add(pod("c", "x")) }, true, 3},
		{"another label", func() error { return f.pods.Update(pod("c", "y")) }, true, 3},
		{"an unchanged object", func() error { return f.pods.Update(pod("c", "y")) }, false, 3},
		{"an irrelevant object", func() error { return f.pods.Update(host) }, false, 3},
		{"the same list", func() error { return f.pods.Replace([]any{pod("c", "y"), pod("b", "x"), pod("a", "x"), host}, "2") }, false, 3},
		{"one goes", func() error { return f.pods.Delete(pod("c", "y")) }, true, 2},
		{"a deletion", func() error { return f.pods.Delete(pod("c", "y")) }, false, 2},
		{"another list", func() error { return f.pods.Replace([]any{pod("b", "x")}, "3") }, true, 1},
	} {
		before, version := told, f.pods.version
		if err := step.do(); err != nil || told > before != step.told {
			t.Errorf("%s: a change was reported: %v, error %v; want the step's result", step.what, told > before, err)
		}
		if values, now := f.pods.since(version); now > version != step.told || step.told && len(values) != step.has {
			t.Errorf("%s: the version is %d after %d, with the values %v; want the step's result", step.what, now, version, values)
		}
	}
	if err := f.pods.Add("no object"); err == nil {
		t.Error("the mirror accepted a string as a pod, want an error")
	}
}

// unreachable is a transport to an unreachable API server, which records attempts.
type unreachable struct{ tried []time.Time }

func (u *unreachable) RoundTrip(*http.Request) (*http.Response, error) {
	u.tried = append(u.tried, time.Now())
	return nil, syscall.ECONNREFUSED
}

// After a long outage of the API server, it is retried soon, but not too often during the outage.
func TestRetriesAreFrequentButBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithTimeout(t.Context(), 20*time.Minute)
		defer stop()
		var u unreachable
		f := newFollowing(func() {})
		err := f.pods.follow(ctx, &rest.Config{Host: "http://192.0.2.1", Transport: &u, QPS: -1}, core.SchemeGroupVersion, "pods", selection{fields: fields.Everything()}, &core.Pod{}, &core.PodList{})
		if err != nil {
			t.Fatal(err)
		}
		longest := time.Duration(0)
		for i := 1; i < len(u.tried); i++ {
			longest = max(longest, u.tried[i].Sub(u.tried[i-1]))
		}
		if longest > 10*time.Second || len(u.tried) < 100 || len(u.tried) > 300 {
			t.Errorf("%d attempts in 20 minutes, with a pause of up to %v; want 100 to 300, at most 10s", len(u.tried), longest)
		}
	})
}

// Policies that older API servers accepted are read. A peer that is not understood allows nothing.
// Each policy with such parts is reported once.
func TestPolicyPeersThatAreNotUnderstoodAllowNothing(t *testing.T) {
	sloppy := denyAll("a", "sloppy")
	sloppy.Spec.Ingress = []networking.NetworkPolicyIngressRule{{From: []networking.NetworkPolicyPeer{
		{IPBlock: &networking.IPBlock{CIDR: "10.200.000.0/24"}}, {PodSelector: &meta.LabelSelector{MatchLabels: map[string]string{"app": "client"}}},
	}}}
	broken := sloppy.DeepCopy()
	broken.Name, broken.Annotations = "broken", map[string]string{manifest.AuditAnnotation: "True"}
	broken.Spec.Ingress[0].From[0].IPBlock.CIDR = "10.200.0/24"
	data, err := json.Marshal(kept{Policies: []networking.NetworkPolicy{*sloppy, *broken}})
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(Config{Kept: data})
	if err != nil {
		t.Fatal(err)
	}
	st := s.State()
	first, second := st.Policies[0], st.Policies[1]
	if first.Unread != nil || first.Ingress[0].Peers[0].Block.String() != "10.200.0.0/24" || len(first.Ingress[0].Peers) != 2 {
		t.Errorf("the policy with leading zeros is %+v; want all of it read", first)
	}
	if !second.Audit || !second.Ingress[0].Peers[0].Unread || second.Ingress[0].Peers[1].Pods == nil {
		t.Errorf("the policy with an invalid peer is %+v; want audit mode, and only that peer unread", second)
	}
	if p, _ := manifest.Problem(second); !strings.Contains(p.What, "a/broken") || !strings.Contains(p.What, "from[0].ipBlock.cidr") || !strings.Contains(p.What, "the policy is in audit mode") {
		t.Errorf("the problem is %v; want the policy, the field and the audit annotation", p)
	}
}

// A policy that this version does not understand allows nothing, and is reported.
func TestPoliciesThatAreNotUnderstoodAllowNothing(t *testing.T) {
	odd := denyAll("shop", "odd")
	odd.Spec.PolicyTypes = []networking.PolicyType{"Sideways"}
	data, err := json.Marshal(kept{Policies: []networking.NetworkPolicy{*odd, *denyAll("shop", "closed")}})
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(Config{Kept: data})
	if err != nil {
		t.Fatal(err)
	}
	list := s.State().Policies
	w, _ := manifest.Problem(list[0])
	if _, bad := manifest.Problem(list[1]); len(list) != 2 || list[0].Isolates != policy.Both || list[0].Ingress != nil || !strings.Contains(w.What, "shop/odd") || !strings.Contains(w.What, "Sideways") || bad {
		t.Errorf("the problem is %q, the policies are %+v; want shop/odd isolated without rules, and named", w, list)
	}
}
