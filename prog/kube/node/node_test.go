package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	core "k8s.io/api/core/v1"

	"weft/mesh"
	"weft/prog/agent/agenttest"
	"weft/prog/api"
	"weft/prog/kube"
	"weft/prog/kube/kubetest"
	"weft/router/problem"
)

// memory is a Store.
type memory struct {
	mu   sync.Mutex
	data []byte
}

func (m *memory) Kubernetes() (json.RawMessage, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.data, nil
}

func (m *memory) SaveKubernetes(data []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.data = data
	return nil
}

// newNode makes the Node n1 of a cluster.
func newNode(t *testing.T, server *kubetest.Server) *Node {
	t.Helper()
	n, err := New(Config{
		Kubeconfig: kubetest.Start(t, server), Name: "n1", Store: &memory{}, Log: slog.New(slog.DiscardHandler), Changed: func() {},
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// following makes the Node n1, whose Source follows the API server.
func following(t *testing.T, server *kubetest.Server) *Node {
	t.Helper()
	n := newNode(t, server)
	agenttest.Run(t, n.Source.Run)
	return n
}

// live reports whether all of the API server's state is known.
func (n *Node) live() bool { st := n.Source.State(); return st != nil && st.Live }

func TestTargetsAreTheOtherNodesInTheFamiliesOfThisOne(t *testing.T) {
	addrs := func(list ...string) (out []netip.Addr) {
		for _, a := range list {
			out = append(out, netip.MustParseAddr(a))
		}
		return out
	}
	nodes := map[string]kube.Node{
		"a": {Name: "a", Addrs: addrs("192.0.2.1")}, "b": {Name: "b", Addrs: addrs("192.0.2.2", "2001:db8::2")},
		"c": {Name: "c", Addrs: addrs("2001:db8::3")}, "d": {Name: "d"},
	}
	for self, want := range map[string][]string{
		"a": {"192.0.2.2"}, "b": {"192.0.2.1", "2001:db8::3"}, "c": {"2001:db8::2"}, "elsewhere": {"192.0.2.1", "192.0.2.2", "2001:db8::2", "2001:db8::3"},
	} {
		if got := targets(nodes, self); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", self, got, want)
		}
	}
}

func TestOnlyReadyNodesAreExpectedToAnswer(t *testing.T) {
	server := kubetest.New()
	off := kubetest.Node("n2", "uid-2", "192.0.2.2")
	off.Status.Conditions[0].Status = core.ConditionUnknown
	server.Set(off)
	server.Set(kubetest.Node("n3", "uid-3", "192.0.2.3"))
	n := newNode(t, server)
	list := func() []mesh.Target { return []mesh.Target{{Host: "192.0.2.2"}, {Host: "192.0.2.3"}} }
	if got := n.Expected(list()); len(got) != 2 {
		t.Errorf("before the API server has answered: expected targets %v, want both", got)
	}
	agenttest.Run(t, n.Source.Run)
	kubetest.Eventually(t, "live", n.live)
	if got := n.Expected(list()); len(got) != 1 || got[0].Host != "192.0.2.3" {
		t.Errorf("expected targets %v, want only 192.0.2.3, whose Node is ready", got)
	}
}

// A host keeps using the last Node object that it read, also after the API server deleted the Node.
func TestTheLastNodeObjectIsKeptAfterItsDeletion(t *testing.T) {
	server := kubetest.New()
	server.Set(kubetest.Node("n1", "uid-1", "192.0.2.1"))
	n := following(t, server)
	is := func(uid string) func() bool { return func() bool { return n.Own().UID == uid } }
	kubetest.Eventually(t, "known", is("uid-1"))
	server.Set(kubetest.Node("n1", "uid-2", "192.0.2.1"))
	kubetest.Eventually(t, "made anew", is("uid-2"))
	server.Delete(kubetest.Node("n1", "uid-2"))
	kubetest.Eventually(t, "deleted", func() bool { return len(n.Source.State().Nodes) == 0 })
	if uid := n.Own().UID; uid != "uid-2" {
		t.Errorf("Own has the UID %s, want uid-2, the last Node with this name", uid)
	}
}

// Weft sets the condition NetworkUnavailable to False even if another network plugin has done so
// before: with Weft's reason, the condition shows other Nodes that there is a Weft network.
func TestAReadyHostReplacesTheConditionOfAnotherNetworkPlugin(t *testing.T) {
	server := kubetest.New()
	node := kubetest.Node("n1", "uid-1", "192.0.2.1")
	node.Status.Conditions = append(node.Status.Conditions, core.NodeCondition{Type: core.NodeNetworkUnavailable, Status: core.ConditionFalse, Reason: "FlannelIsUp"})
	server.Set(node)
	n := following(t, server)
	asked := make(chan struct{}, 1)
	why := make(chan string, 1)
	why <- "it is starting"
	agenttest.Run(t, func(ctx context.Context) error {
		return n.sayAvailable(ctx, func() string {
			select {
			case now := <-why:
				asked <- struct{}{}
				return now
			default:
				return ""
			}
		})
	})
	<-asked
	if n.Own().Up {
		t.Error("a host that is not ready is marked as available, want it not marked")
	}
	kubetest.Eventually(t, "available", func() bool { return n.Own().Up })
}

// A request that the API server refuses is reported as a problem with its fix. The attachment of a new
// pod fails with that reason.
func TestRefusedAPIRequestsAreReported(t *testing.T) {
	for i, resource := range []string{"networkpolicies", "namespaces", "pods", "nodes", "networkpolicies", "pods"} {
		t.Run(resource, func(t *testing.T) {
			t.Parallel() // each waits until the API server is asked again
			server := kubetest.New()
			server.Streams = i >= 4 // such servers send all objects by a watch, without a list
			server.Refuse(func(_, asked string) int {
				if asked == resource {
					return http.StatusForbidden
				}
				return kubetest.Serve
			})
			n := following(t, server)
			kubetest.Eventually(t, "refused", func() bool { return len(n.Problems()) > 0 })
			list := n.Problems()
			text := list[0].String()
			if len(list) != 1 || list[0].Reason != kube.ReasonAPIServer || !strings.Contains(text, "forbids this host to") || !strings.Contains(text, " the "+resource) || !strings.Contains(text, "apply Weft's manifest") {
				t.Errorf("%s: problems %+v, want one with its fix", resource, list)
			}
			ctx, stop := context.WithTimeout(t.Context(), 10*time.Millisecond)
			err := n.Complete(ctx, &api.AttachRequest{Source: api.SourceCNI, Namespace: "shop", Name: "web", PodUID: "u"})
			stop()
			if err == nil || !strings.Contains(err.Error(), resource) {
				t.Errorf("%s: a new pod gets the error %v, want one that names the refused resource", resource, err)
			}
			server.Refuse(nil)
			kubetest.Eventually(t, "known", func() bool { return n.Source.State() != nil && len(n.Problems()) == 0 })
		})
	}
}

// A pod waits until the API server reports it by UID, and gets its labels there, including later
// changes.
func TestPodsGetLabelsFromAPIServer(t *testing.T) {
	server := kubetest.New()
	server.Set(kubetest.Pod("n1", "shop", "web", "old", map[string]string{"app": "old"}))
	n := following(t, server)
	kubetest.Eventually(t, "live", n.live)
	req := api.AttachRequest{Source: api.SourceCNI, Namespace: "shop", Name: "web", PodUID: "new", Labels: map[string]string{"network": "weft"}}
	completed := make(chan error, 1)
	go func() { completed <- n.Complete(t.Context(), &req) }()
	server.Set(kubetest.Pod("n1", "shop", "web", "new", map[string]string{"app": "new"}, core.ContainerPort{Name: "http", ContainerPort: 80, Protocol: "TCP"}))
	if err := <-completed; err != nil || len(req.Labels) != 1 || req.Labels["app"] != "new" ||
		len(req.Ports) != 1 || req.Ports[0] != (api.Port{Name: "http", Protocol: "tcp", Number: 80}) {
		t.Errorf("request %+v, error %v; want the labels and ports of the API server", req, err)
	}
	unnamed := api.AttachRequest{Source: api.SourceCNI, Namespace: "shop", Name: "web"}
	if err := n.Complete(t.Context(), &unnamed); err != nil || unnamed.PodUID != "new" {
		t.Errorf("a request without a UID: %+v, error %v; want the current pod", unnamed, err)
	}
	server.Set(kubetest.Pod("n1", "shop", "web", "new", map[string]string{"app": "newer"}))
	kubetest.Eventually(t, "relabelled", func() bool {
		labels, _, known := n.Current("shop", "web", "new")
		return known && labels["app"] == "newer"
	})
	if n.Ended("shop", "web", "new") || !n.Ended("shop", "web", "old") || n.Ended("shop", "web", "") {
		t.Error("Ended: want false for the current pod and for no UID, and true for the old pod")
	}
	server.Delete(kubetest.Pod("n1", "shop", "web", "new", nil))
	kubetest.Eventually(t, "ended", func() bool { return n.Ended("shop", "web", "new") })
	if _, _, known := n.Current("shop", "web", "new"); known {
		t.Error("Current has a pod that ended, want none")
	}
}

func TestAPodUnknownToTheAPIServerIsRefused(t *testing.T) {
	n := following(t, kubetest.New())
	kubetest.Eventually(t, "live", n.live)
	ctx, stop := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer stop()
	err := n.Complete(ctx, &api.AttachRequest{Source: api.SourceCNI, Namespace: "shop", Name: "web", PodUID: "u"})
	if e, ok := errors.AsType[*api.Error](err); !ok || e.Code != api.CodeNotReady || !strings.Contains(e.Message, n.Source.Server()) || !strings.Contains(e.Message, "shop/web") {
		t.Errorf("a pod unknown to the API server: error %v, want the code for not ready, the server and the pod", err)
	}
	plain := api.AttachRequest{Source: api.SourceAttach, Name: "by-hand"}
	if err := n.Complete(t.Context(), &plain); err != nil || plain.Labels != nil {
		t.Errorf("a container that is no pod: request %+v, error %v; want success at once, without labels", plain, err)
	}
}

func TestNoPodHasEndedBeforeTheAPIServerHasAnswered(t *testing.T) {
	n := newNode(t, kubetest.New())
	if n.Ended("shop", "web", "u") {
		t.Error("a pod ended before the API server has answered, want no end")
	}
	if _, _, known := n.Current("shop", "web", "u"); known {
		t.Error("a pod is known before the API server has answered, want none")
	}
}

// After a restart the stored state is there at once, but does not count as current.
func TestStoredStateDoesNotCountAsCurrent(t *testing.T) {
	server := kubetest.New()
	server.Set(kubetest.Node("n1", "uid-1", "192.0.2.1"))
	server.Set(kubetest.Pod("n1", "shop", "web", "u", map[string]string{"app": "web"}))
	n := following(t, server)
	kubetest.Eventually(t, "kept", func() bool {
		data, _ := n.cfg.Store.Kubernetes()
		return n.live() && strings.Contains(string(data), "uid-1") && strings.Contains(string(data), "web")
	})
	again, err := New(n.cfg)
	if err != nil {
		t.Fatal(err)
	}
	labels, _, known := again.Current("shop", "web", "u")
	if again.Own().UID != "uid-1" || !known || labels["app"] != "web" || again.live() || again.Ended("shop", "other", "x") {
		t.Errorf("after a restart: Node %+v, labels %v, state %v; want those of before, not live", again.Own(), labels, again.Source.State())
	}
}

func TestNicknameFitsIntoARecord(t *testing.T) {
	n := &Node{cfg: Config{Name: strings.Repeat("n", 253)}}
	if got := n.Nickname(); len(got) >= 253 || got == "" {
		t.Error(got)
	}
	if Name("given") != "given" {
		t.Error("Name returned another name than the given one, want given")
	}
	t.Setenv("NODE_NAME", "told")
	if Name("") != "told" {
		t.Error("the name is not that in the pod's environment")
	}
}

// A persisting problem is only repeated when its event has expired, whatever numbers it contains.
func TestPersistingProblemsAreRepeatedOnlyAfterTheirEventExpired(t *testing.T) {
	said, now := told{}, time.Now()
	for _, c := range []struct {
		p     problem.Problem
		after time.Duration
		want  bool
	}{
		{problem.Problem{Reason: problem.Address, About: "stuck", What: "3 freed addresses wait since 10s"}, 0, true},
		{problem.Problem{Reason: problem.Address, About: "stuck", What: "4 freed addresses wait since 20s"}, time.Minute, false},
		{problem.Problem{Reason: problem.Host, About: "stuck", What: "another thing"}, time.Minute, true},
		{problem.Problem{Reason: problem.Policy, What: "shop/allow-80"}, time.Minute, true},
		{problem.Problem{Reason: problem.Policy, What: "shop/allow-443"}, time.Minute, true},
		{problem.Problem{Reason: problem.Address, About: "stuck", What: "4 freed addresses wait since 50m"}, sayAgain, true},
	} {
		if got := said.due(c.p, now.Add(c.after)); got != c.want {
			t.Errorf("%+v after %v: due is %v, want %v", c.p, c.after, got, c.want)
		}
	}
	for i := range 2 * maxTold {
		said.due(problem.Problem{Reason: problem.Policy, What: fmt.Sprint(i)}, now)
	}
	if len(said) > maxTold {
		t.Errorf("%d problems are remembered, want at most maxTold", len(said))
	}
}
