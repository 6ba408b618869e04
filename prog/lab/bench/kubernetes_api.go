package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"

	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"weft/ipam/slot"
	"weft/mesh/directory"
	"weft/prog/kube/kubetest"
	"weft/router/policy"
)

// These are the numbers of namespaces, and of teams that own namespaces: the same as newCluster makes
// for 200 policies.
const (
	kubeSpaces = 20
	kubeTeams  = 10
)

// kubePod is a pod. All its properties follow from its numbers, so that all programs agree on them.
type kubePod struct {
	node, n         int // n is the number of the pod on its node
	namespace, name string
	labels          map[string]string
}

// kubeKinds is the number of pods of a node that differ in more than their names.
const kubeKinds = 100

// podOf distributes the pods of each node over all namespaces, applications and tiers, so that
// policies of all namespaces select some of them. New pods that replace pods of the node have higher
// numbers.
func podOf(node, n int) kubePod {
	like := n % kubeKinds
	app := (like/kubeSpaces*2 + node) % 10
	hash := fmt.Sprintf("%010x", 7*app+1e9)
	return kubePod{
		node: node, n: n, namespace: fmt.Sprint("ns", like%kubeSpaces), name: fmt.Sprintf("app%d-%s-%05x", app, hash, 1000*node+n),
		labels: map[string]string{"app": fmt.Sprint("app", app), "tier": []string{"front", "back"}[(like/kubeSpaces+node/2)%2], "pod-template-hash": hash},
	}
}

func (p kubePod) uid() string  { return fmt.Sprintf("00000000-0000-4000-8000-%012x", 1000*p.node+p.n) }
func (p kubePod) port() uint16 { return uint16(8000 + p.n%3) }
func kubeNode(node int) string { return fmt.Sprintf("h%d", node+1) }

// object returns the pod as the API server has it. Pods of a real cluster have more fields, which the agent drops
// at once.
func (p kubePod) object() *core.Pod {
	o := kubetest.Pod(kubeNode(p.node), p.namespace, p.name, p.uid(), p.labels, core.ContainerPort{Name: "http", ContainerPort: int32(p.port())})
	o.ManagedFields = []meta.ManagedFieldsEntry{{Manager: "kube-controller-manager", FieldsType: "FieldsV1", FieldsV1: meta.NewFieldsV1(`{"f:metadata":{"f:labels":{".":{},"f:app":{},"f:tier":{}}}}`)}}
	o.OwnerReferences = []meta.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: p.name[:len(p.name)-6], UID: "0"}}
	c := &o.Spec.Containers[0]
	c.Image, c.Env = "registry.example/app:1", []core.EnvVar{{Name: "TEAM", Value: p.namespace}, {Name: "PORT", Value: fmt.Sprint(p.port())}}
	c.Resources.Requests = core.ResourceList{core.ResourceCPU: resource.MustParse("100m"), core.ResourceMemory: resource.MustParse("64Mi")}
	for _, kind := range []core.PodConditionType{core.PodReady, core.PodInitialized, core.ContainersReady, core.PodScheduled} {
		o.Status.Conditions = append(o.Status.Conditions, core.PodCondition{Type: kind, Status: core.ConditionTrue})
	}
	return o
}

// endpoint returns the pod as its node's agent announces it.
func (p kubePod) endpoint(s slot.Slot) directory.Endpoint {
	return directory.Endpoint{
		ID: fmt.Sprintf("%064x/eth0", 1000*p.node+p.n), Slots: []slot.Slot{s}, Name: p.name, Namespace: p.namespace, Labels: p.labels,
		Ports: []directory.Port{{Name: "http", Protocol: "tcp", Number: p.port()}},
	}
}

// kubePolicy returns a policy of newCluster as an object of the API.
func kubePolicy(p policy.Policy) *networking.NetworkPolicy {
	out := &networking.NetworkPolicy{ObjectMeta: meta.ObjectMeta{Namespace: p.Namespace, Name: p.Name, UID: "0"}}
	out.Spec.PodSelector = *labelSelector(&p.Pods)
	out.Spec.PolicyTypes = []networking.PolicyType{networking.PolicyTypeIngress, networking.PolicyTypeEgress}
	for _, r := range p.Ingress {
		out.Spec.Ingress = append(out.Spec.Ingress, networking.NetworkPolicyIngressRule{From: kubePeers(r), Ports: kubePorts(r)})
	}
	for _, r := range p.Egress {
		out.Spec.Egress = append(out.Spec.Egress, networking.NetworkPolicyEgressRule{To: kubePeers(r), Ports: kubePorts(r)})
	}
	return out
}

func labelSelector(s *policy.Selector) *meta.LabelSelector {
	if s == nil {
		return nil
	}
	return &meta.LabelSelector{MatchLabels: s.Labels}
}

func kubePeers(r policy.Rule) (out []networking.NetworkPolicyPeer) {
	for _, p := range r.Peers {
		to := networking.NetworkPolicyPeer{PodSelector: labelSelector(p.Pods), NamespaceSelector: labelSelector(p.Namespaces)}
		if p.Block != nil {
			to.IPBlock = &networking.IPBlock{CIDR: p.Block.CIDR.String()}
		}
		out = append(out, to)
	}
	return out
}

func kubePorts(r policy.Rule) (out []networking.NetworkPolicyPort) {
	for _, p := range r.Ports {
		number, protocol := intstr.FromInt32(int32(p.Number)), core.Protocol(p.Protocol.String())
		if p.Name != "" {
			number = intstr.FromString(p.Name)
		}
		out = append(out, networking.NetworkPolicyPort{Protocol: &protocol, Port: &number})
	}
	return out
}

// kubeAPI runs the API server. args are the number of pods on each node, the number of policies, and
// the addresses of all nodes.
func kubeAPI(_ context.Context, args []string) error {
	pods, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	policies, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	server := kubetest.New()
	for node, addr := range args[2:] {
		n := kubetest.Node(kubeNode(node), "uid-"+kubeNode(node), addr)
		for i := range 50 { // a kubelet reports up to 50 images by default
			n.Status.Images = append(n.Status.Images, core.ContainerImage{Names: []string{fmt.Sprintf("registry.example/app-%d@sha256:%064x", i, i)}, SizeBytes: 1 << 27})
		}
		server.Set(n)
		for i := range pods {
			server.Set(podOf(node, i).object())
		}
	}
	for n := range kubeSpaces {
		name := fmt.Sprint("ns", n)
		server.Set(&core.Namespace{ObjectMeta: meta.ObjectMeta{Name: name, Labels: map[string]string{"team": fmt.Sprint("t", n%kubeTeams), core.LabelMetadataName: name}}})
	}
	for n := range policies {
		server.Set(kubePolicy(clusterPolicy(n, kubeSpaces, kubeTeams)))
	}
	return server.Serve(":8080", func() { fmt.Fprintln(os.Stderr, "serving") })
}

// fetch gets a URL and prints the body of the answer.
func fetch(ctx context.Context, args []string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, args[0], nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(os.Stdout, resp.Body)
	return err
}
