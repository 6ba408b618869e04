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

// following holds mirrors of all followed resources, and the last State made of them.
type following struct {
	policies   *mirror[readPolicy]
	namespaces *mirror[map[string]string] // the labels of each namespace
	pods       *mirror[Pod]
	nodes      *mirror[Node]

	versions struct{ policies, namespaces, pods, nodes int } // the versions of the mirrors in last
	objects  []networking.NetworkPolicy                      // the objects of last.Policies
	last     State
	json     parts
}

// kept is the stored form of a state.
type kept struct {
	Policies   []networking.NetworkPolicy
	Namespaces map[string]map[string]string
	Pods       map[string]Pod
	Nodes      map[string]Node
}

// parts is kept as JSON, encoded separately: there are many policies, and they rarely change.
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

// troubles returns why the state may be outdated, the worst first: each refusal, then at most one
// entry for an unreachable server.
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

// next returns the new state; nil if nothing has changed, or not all is known yet.
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
	st := f.last // unchanged parts are shared
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
			st.Namespaces[key[1:]] = labels // the key begins with a slash, since namespaces are in no namespace
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

// keep returns the last state in its stored form.
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

// stateOf decodes a stored state.
func stateOf(data []byte) (*State, error) {
	var k kept
	if err := json.Unmarshal(data, &k); err != nil {
		return nil, err
	}
	st := &State{Namespaces: k.Namespaces, Pods: map[string]Pod{}, Nodes: k.Nodes}
	for _, p := range k.Pods { // earlier versions stored them by UID
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

// readPolicy is a policy's object, reduced to the relevant fields, and its conversion.
type readPolicy struct {
	object networking.NetworkPolicy
	policy policy.Policy
}

// policyOf converts a policy. The result lists the parts that were not understood.
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

// staticUID is the annotation of a mirror pod with the runtime's UID of its static pod.
const staticUID = "kubernetes.io/config.hash"

// podOf converts a pod. Pods on the host's network are not relevant. Named ports are those of
// containers that keep running, as for services; of init containers, only restartable ones.
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
