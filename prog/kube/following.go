package kube

import (
	"context"
	"encoding/json"
	"maps"
	"slices"

	"golang.org/x/sync/errgroup"
	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"

	"weft/prog/manifest"
	"weft/router/policy"
)

// following is what the API server says, and what was made of it last.
type following struct {
	policies   *mirror[readPolicy]
	namespaces *mirror[map[string]string] // labels
	pods       *mirror[Pod]
	nodes      *mirror[Node]

	versions struct{ policies, namespaces, pods, nodes int } // that last is of
	objects  []networking.NetworkPolicy                      // that last.Policies are read from
	last     State
	json     parts
}

// kept is a state on disk.
type kept struct {
	Policies   []networking.NetworkPolicy
	Namespaces map[string]map[string]string
	Pods       map[string]Pod
	Nodes      map[string]Node
}

// parts is kept as JSON, each part by itself: policies are many, and change rarely.
type parts struct{ Policies, Namespaces, Pods, Nodes json.RawMessage }

func newFollowing(changed func()) *following {
	return &following{
		policies: &mirror[readPolicy]{read: policyOf, same: samePolicy, changed: changed},
		namespaces: &mirror[map[string]string]{
			read: func(o runtime.Object) (map[string]string, bool) { return o.(*core.Namespace).Labels, true },
			same: maps.Equal[map[string]string, map[string]string], changed: changed,
		},
		pods:  &mirror[Pod]{read: podOf, same: samePod, changed: changed},
		nodes: &mirror[Node]{read: func(o runtime.Object) (Node, bool) { return nodeOf(o.(*core.Node)), true }, same: sameNode, changed: changed},
	}
}

// start follows the API server until ctx ends.
func (f *following) start(ctx context.Context, group *errgroup.Group, api *rest.Config, node string) {
	all, own := selection{fields: fields.Everything()}, selection{fields: fields.OneTermEqualSelector("spec.nodeName", node)}
	group.Go(func() error {
		return f.policies.follow(ctx, api, networking.SchemeGroupVersion, "networkpolicies", all, &networking.NetworkPolicy{}, &networking.NetworkPolicyList{})
	})
	group.Go(func() error {
		return f.namespaces.follow(ctx, api, core.SchemeGroupVersion, "namespaces", all, &core.Namespace{}, &core.NamespaceList{})
	})
	group.Go(func() error {
		return f.pods.follow(ctx, api, core.SchemeGroupVersion, "pods", own, &core.Pod{}, &core.PodList{})
	})
	group.Go(func() error {
		return f.nodes.follow(ctx, api, core.SchemeGroupVersion, "nodes", all, &core.Node{}, &core.NodeList{})
	})
}

// troubles are what keeps this host from knowing what the API server has, the worst first: where
// it refuses, and then, once, that it cannot be heard.
func (f *following) troubles() (out []Trouble) {
	away := Trouble{}
	for _, err := range []error{f.policies.trouble(), f.namespaces.trouble(), f.pods.trouble(), f.nodes.trouble()} {
		switch {
		case err == nil:
		case refused(err):
			out = append(out, Trouble{err, true})
		default:
			away = Trouble{err, false}
		}
	}
	if away.Err != nil {
		out = append(out, away)
	}
	return out
}

// next is the state of now, if it is another one; nil also while not all is known.
func (f *following) next() *State {
	before := f.versions
	policies, v1 := f.policies.since(before.policies)
	namespaces, v2 := f.namespaces.since(before.namespaces)
	pods, v3 := f.pods.since(before.pods)
	nodes, v4 := f.nodes.since(before.nodes)
	if min(v1, v2, v3, v4) == 0 {
		return nil
	}
	f.versions.policies, f.versions.namespaces, f.versions.pods, f.versions.nodes = v1, v2, v3, v4
	if f.versions == before {
		return nil
	}
	st := f.last // what has not changed is shared
	st.Live = true
	if policies != nil {
		f.objects, f.json.Policies = nil, nil
		st.Policies = nil
		for _, key := range slices.Sorted(maps.Keys(policies)) {
			f.objects = append(f.objects, policies[key].object)
			st.Policies = append(st.Policies, policies[key].policy)
		}
	}
	if namespaces != nil {
		f.json.Namespaces, st.Namespaces = nil, map[string]map[string]string{}
		for key, labels := range namespaces {
			st.Namespaces[key[1:]] = labels // in no namespace itself
		}
	}
	if policies != nil || namespaces != nil {
		st.Generation = generation(f.objects, st.Namespaces)
	}
	if pods != nil {
		f.json.Pods, st.Pods = nil, pods
	}
	if nodes != nil {
		f.json.Nodes, st.Nodes = nil, map[string]Node{}
		for _, n := range nodes {
			st.Nodes[n.Name] = n
		}
	}
	f.last = st
	return &st
}

// keep is the last state as it is kept on disk.
func (f *following) keep() ([]byte, error) {
	for _, part := range []struct {
		into *json.RawMessage
		of   any
	}{{&f.json.Policies, f.objects}, {&f.json.Namespaces, f.last.Namespaces}, {&f.json.Pods, f.last.Pods}, {&f.json.Nodes, f.last.Nodes}} {
		if *part.into != nil {
			continue
		}
		data, err := json.Marshal(part.of)
		if err != nil {
			return nil, err
		}
		*part.into = data
	}
	return json.Marshal(f.json)
}

// stateOf reads what was kept.
func stateOf(data []byte) (*State, error) {
	var k kept
	if err := json.Unmarshal(data, &k); err != nil {
		return nil, err
	}
	st := &State{Namespaces: k.Namespaces, Pods: map[string]Pod{}, Nodes: k.Nodes}
	for _, p := range k.Pods { // earlier versions kept them by UID
		st.Pods[podKey(p.Namespace, p.Name)] = p
	}
	if st.Namespaces == nil {
		st.Namespaces = map[string]map[string]string{}
	}
	for _, np := range k.Policies {
		p, _ := policyOf(&np)
		st.Policies = append(st.Policies, p.policy)
	}
	st.Generation = generation(k.Policies, k.Namespaces)
	return st, nil
}

// readPolicy is a policy as it came, but for what nobody here reads, and as it is understood.
type readPolicy struct {
	object networking.NetworkPolicy
	policy policy.Policy
}

// policyOf reads a policy, as far as it can be read: the policy says what cannot.
func policyOf(object runtime.Object) (readPolicy, bool) {
	o := object.(*networking.NetworkPolicy)
	np := networking.NetworkPolicy{ObjectMeta: meta.ObjectMeta{Namespace: o.Namespace, Name: o.Name, UID: o.UID}, Spec: o.Spec}
	if audit, ok := o.Annotations[manifest.AuditAnnotation]; ok {
		np.Annotations = map[string]string{manifest.AuditAnnotation: audit}
	}
	p, _ := manifest.Convert(np)
	return readPolicy{object: np, policy: p}, true
}

func samePolicy(a, b readPolicy) bool { return equality.Semantic.DeepEqual(a.object, b.object) }

// staticUID is where the mirror of a static pod names the UID that the runtime knows it by.
const staticUID = "kubernetes.io/config.hash"

// podOf reads a pod; one that uses the host's network is of no concern. Ports with a name count
// as they do for services: those of containers that go on running, so of init containers only
// those that are started again.
func podOf(object runtime.Object) (Pod, bool) {
	p := object.(*core.Pod)
	out := Pod{UID: string(p.UID), Mirrors: p.Annotations[staticUID], Namespace: p.Namespace, Name: p.Name, Labels: p.Labels}
	ends := func(c core.Container) bool {
		return c.RestartPolicy == nil || *c.RestartPolicy != core.ContainerRestartPolicyAlways
	}
	running := slices.DeleteFunc(slices.Clone(p.Spec.InitContainers), ends)
	for _, c := range slices.Concat(running, p.Spec.Containers) {
		for _, port := range c.Ports {
			if proto := manifest.Protocol(port.Protocol); port.Name != "" && proto != 0 {
				out.Ports = append(out.Ports, policy.NamedPort{Name: port.Name, Protocol: proto, Number: uint16(port.ContainerPort)})
			}
		}
	}
	return out, !p.Spec.HostNetwork
}

func samePod(a, b Pod) bool {
	return a.UID == b.UID && a.Mirrors == b.Mirrors && a.Namespace == b.Namespace && a.Name == b.Name && maps.Equal(a.Labels, b.Labels) && slices.Equal(a.Ports, b.Ports)
}
