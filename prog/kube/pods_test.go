package kube

import (
	"slices"
	"testing"

	core "k8s.io/api/core/v1"

	"weft/prog/kube/kubetest"
	"weft/router/policy"
)

// mirrors makes a pod claim to be the mirror of a static pod.
func mirrors(p *core.Pod, uid string) *core.Pod {
	p.Annotations = map[string]string{staticUID: uid}
	return p
}

// No pod can claim the identity of another one by UID, name or namespace.
func TestPodsCannotClaimOtherIdentities(t *testing.T) {
	label := func(who string) map[string]string { return map[string]string{"who": who} }
	api := kubetest.New()
	for _, p := range []*core.Pod{
		kubetest.Pod("n1", "shop", "srv", "u-srv", label("srv")),
		mirrors(kubetest.Pod("n1", "evil", "thief", "u-thief", label("thief")), "u-srv"), // claims the UID of a pod with another namespace and name
		mirrors(kubetest.Pod("n1", "evil", "srv", "u-same", label("same")), "u-srv"),     // claims the UID of a pod in another namespace
		mirrors(kubetest.Pod("n1", "shop", "etcd-n1", "u-mirror", label("etcd")), "f00d"),
		mirrors(kubetest.Pod("n1", "evil", "etcd-n1", "u-other", label("other")), "f00d"),
	} {
		api.Set(p)
	}
	f := follow(t, api, nil)
	st := f.becomes(t, "known", func(st *State) bool { return st.Live })
	for _, c := range []struct{ namespace, name, uid, want string }{
		{"shop", "srv", "u-srv", "srv"},
		{"shop", "etcd-n1", "f00d", "etcd"}, // a static pod, with the runtime's UID
		{"shop", "etcd-n1", "u-mirror", "etcd"},
		{"evil", "etcd-n1", "f00d", "other"}, // claims to be a static pod of its own name, which is allowed
		{"evil", "thief", "u-thief", "thief"},
		{"evil", "thief", "u-srv", ""}, // the UID of another pod
		{"evil", "srv", "u-srv", ""},
		{"shop", "srv", "f00d", ""},
		{"shop", "thief", "u-thief", ""},
		{"shop", "etcd-n1", "other", ""},
	} {
		p, ok := st.Pod(c.namespace, c.name, c.uid)
		if ok != (c.want != "") || ok && p.Labels["who"] != c.want {
			t.Errorf("%s/%s with the UID %s is %+v, want %q", c.namespace, c.name, c.uid, p, c.want)
		}
	}
}

// Named ports are those of containers that keep running, as in Kubernetes for services.
func TestInitContainersThatEndHaveNoNamedPorts(t *testing.T) {
	always := core.ContainerRestartPolicyAlways
	named := func(name string, number int32) []core.ContainerPort {
		return []core.ContainerPort{{Name: name, ContainerPort: number}}
	}
	p := kubetest.Pod("n1", "shop", "web", "u1", nil, core.ContainerPort{Name: "web", ContainerPort: 8080})
	p.Spec.InitContainers = []core.Container{
		{Name: "plain", Ports: named("web", 9999)}, {Name: "sidecar", RestartPolicy: &always, Ports: named("metrics", 8099)},
	}
	got, _ := podOf(p)
	want := []policy.NamedPort{{Name: "metrics", Protocol: policy.TCP, Number: 8099}, {Name: "web", Protocol: policy.TCP, Number: 8080}}
	if !slices.Equal(got.Ports, want) {
		t.Errorf("the named ports are %+v, want %+v", got.Ports, want)
	}
}

// State that an earlier version stored by UID is still read.
func TestStoredPodsByUIDAreRead(t *testing.T) {
	st, err := stateOf([]byte(`{"Pods": {"u1": {"UID": "u1", "Namespace": "shop", "Name": "web", "Labels": {"app": "web"}}}}`))
	if err != nil {
		t.Fatal(err)
	}
	if p, ok := st.Pod("shop", "web", "u1"); !ok || p.Labels["app"] != "web" {
		t.Errorf("the stored pods are %+v; want shop/web by name", st.Pods)
	}
}
