// Package node is this host as a Node of a Kubernetes cluster: what the API server says of it and of
// its pods, what Weft says on the Node, and the duties of an agent to the cluster.
//
// A Node owns the problems that were raised about the cluster, and the last Node object that was
// seen. Run owns all goroutines. A Node is safe for concurrent use.
package node

import (
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"

	"weft/mesh/peer"
	"weft/prog/kube"
	"weft/router/problem"
)

// Store keeps what the API server said over a restart.
type Store interface {
	Kubernetes() (json.RawMessage, error)
	SaveKubernetes([]byte) error
}

// Config is what a Node is made of.
type Config struct {
	Kubeconfig string // a file; empty: the service account of the agent's pod
	Name       string // of the Node object; see Name
	Namespace  string // of the Secret; empty: the pod's own, else kube.DefaultNamespace
	Store      Store
	Log        *slog.Logger
	// Changed is called when the API server says something else. It must not block.
	Changed func()
}

// Node is this host in its cluster.
type Node struct {
	Client *kube.Client
	Source *kube.Source
	Report *kube.Reporter

	cfg   Config
	noded chan struct{} // Nodes may have changed

	mu       sync.Mutex
	own      kube.Node // as it was seen last, also while it is deleted
	problems []problem.Problem
}

// New makes a Node of what the store has. It asks nothing of the API server yet.
func New(cfg Config) (*Node, error) {
	config, err := kube.Connect(cfg.Kubeconfig)
	if err != nil {
		return nil, err
	}
	known, err := cfg.Store.Kubernetes()
	if err != nil {
		return nil, err
	}
	cfg.Namespace = kube.Namespace(cfg.Namespace)
	n := &Node{cfg: cfg, noded: make(chan struct{}, 1)}
	if n.Client, err = kube.NewClient(config); err != nil {
		return nil, err
	}
	n.Report = kube.NewReporter(n.Client, cfg.Name, cfg.Log)
	n.Source, err = kube.New(kube.Config{
		API: config, Node: cfg.Name, Kept: known, Log: cfg.Log, Save: cfg.Store.SaveKubernetes,
		Changed: func() {
			cfg.Changed()
			select {
			case n.noded <- struct{}{}:
			default:
			}
		},
	})
	return n, err
}

// Name returns the name of this host's Node object, unless it is given: as the pod was told, or
// the host's own.
func Name(given string) string {
	if given != "" {
		return given
	}
	if name := os.Getenv("NODE_NAME"); name != "" {
		return name
	}
	name, _ := os.Hostname() // empty: then no pod is found, which is said
	return strings.ToLower(name)
}

// Namespace returns where the Secret is.
func (n *Node) Namespace() string { return n.cfg.Namespace }

// Name returns the name of the Node object.
func (n *Node) Name() string { return n.cfg.Name }

// Nickname returns what people call this host.
func (n *Node) Nickname() string { return n.cfg.Name[:min(len(n.cfg.Name), peer.MaxNickname)] }

// Own returns this host's Node as it was seen last; the zero one before that. While it is deleted
// it is the last one that there was, which others know this peer by.
func (n *Node) Own() kube.Node {
	n.mu.Lock()
	defer n.mu.Unlock()
	if st := n.Source.State(); st != nil && st.Nodes[n.cfg.Name].UID != "" {
		n.own = st.Nodes[n.cfg.Name]
	}
	return n.own
}

// Ask asks the API server for this host's Node, before the source follows it.
func (n *Node) Ask(ctx context.Context) error {
	own, err := n.Client.Node(ctx, n.cfg.Name)
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.own = own
	return nil
}

// Warn says on the Node, in the log and in the status that something is wrong.
func (n *Node) Warn(p problem.Problem) {
	n.mu.Lock()
	known := slices.Contains(n.problems, p)
	if !known {
		n.problems = append(n.problems, p)
	}
	n.mu.Unlock()
	if !known {
		n.cfg.Log.Warn("something is wrong with the cluster", "reason", p.Reason, "problem", p.String())
	}
	n.Report.Warn(p.Reason, p.String())
}

// clear takes a problem out of the status: the log and the events tell when it was there.
func (n *Node) clear(p problem.Problem) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if i := slices.Index(n.problems, p); i >= 0 {
		n.problems = slices.Delete(n.problems, i, i+1)
		n.cfg.Log.Info("warning cleared", "warning", p.String())
	}
}

// one returns a function that tells of one thing that may be wrong: each problem takes the place
// of the one before, and the zero one says that all is well.
func (n *Node) one() func(problem.Problem) {
	var said problem.Problem
	return func(p problem.Problem) {
		if p == said {
			return
		}
		n.clear(said)
		if said = p; p != (problem.Problem{}) {
			n.Warn(p)
		}
	}
}

// Problems are those about the cluster, and what keeps this host from hearing the API server.
func (n *Node) Problems() []problem.Problem {
	n.mu.Lock()
	list := slices.Clone(n.problems)
	n.mu.Unlock()
	for _, t := range n.Source.Troubles() {
		p := problem.Problem{Reason: kube.ReasonAPIServer, What: t.Err.Error()}
		if !t.Refused {
			p.About = "away" // with the ports of each attempt in its text
		}
		list = append(list, p)
	}
	return list
}
