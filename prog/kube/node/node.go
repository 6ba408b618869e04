// Package node represents this host as a Node of a Kubernetes cluster. It has the API server's data
// about the Node and its pods, and writes events and a condition on the Node. It performs the agent's
// duties to the cluster. It never changes policies or pods.
//
// A Node owns the problems that were reported about the cluster, and the last Node object that was
// read. Run owns all goroutines. A Node is safe for concurrent use.
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

// Store persists the API server's last answers.
type Store interface {
	Kubernetes() (json.RawMessage, error)
	SaveKubernetes([]byte) error
}

// Config configures a Node.
type Config struct {
	Kubeconfig string // path of a file; empty: use the service account of the agent's pod
	Name       string // the name of the Node object (see Name)
	Namespace  string // the namespace of the Secret; empty: the pod's own namespace, else kube.DefaultNamespace
	Store      Store
	Log        *slog.Logger
	// Changed is called when the API server's data change. It must not block.
	Changed func()
}

// Node is this host in its cluster.
type Node struct {
	Client *kube.Client
	Source *kube.Source
	Report *kube.Reporter

	cfg   Config
	noded chan struct{} // signals that Nodes may have changed

	mu       sync.Mutex
	own      kube.Node // last object read, kept while it is deleted
	problems []problem.Problem
}

// New makes a Node with the stored data. It sends no request to the API server.
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

// Name returns the name of this host's Node object: the given one, else the one in the pod's
// environment, else the host's name.
func Name(given string) string {
	if given != "" {
		return given
	}
	if name := os.Getenv("NODE_NAME"); name != "" {
		return name
	}
	name, _ := os.Hostname() // if it is empty, no pod is found, which is reported
	return strings.ToLower(name)
}

// Namespace returns the namespace of the Secret.
func (n *Node) Namespace() string { return n.cfg.Namespace }

// Name returns the name of the Node object.
func (n *Node) Name() string { return n.cfg.Name }

// Nickname returns this host's name for messages.
func (n *Node) Nickname() string { return n.cfg.Name[:min(len(n.cfg.Name), peer.MaxNickname)] }

// Own returns the last object of this host's Node that was read, or the zero value. It is kept while
// the Node is deleted, since other peers know this peer by its UID.
func (n *Node) Own() kube.Node {
	n.mu.Lock()
	defer n.mu.Unlock()
	if st := n.Source.State(); st != nil && st.Nodes[n.cfg.Name].UID != "" {
		n.own = st.Nodes[n.cfg.Name]
	}
	return n.own
}

// Ask reads this host's Node from the API server, before the source follows it.
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

// Warn reports a problem on the Node, in the log and in the status.
func (n *Node) Warn(p problem.Problem) {
	n.mu.Lock()
	known := slices.Contains(n.problems, p)
	if !known {
		n.problems = append(n.problems, p)
	}
	n.mu.Unlock()
	if !known {
		n.cfg.Log.Warn("problem with the cluster", "reason", p.Reason, "problem", p.String())
	}
	n.Report.Warn(p.Reason, p.String())
}

// clear removes a problem from the status. The log and the events keep it.
func (n *Node) clear(p problem.Problem) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if i := slices.Index(n.problems, p); i >= 0 {
		n.problems = slices.Delete(n.problems, i, i+1)
		n.cfg.Log.Info("warning cleared", "warning", p.String())
	}
}

// one returns a function that reports a single kind of problem. Each problem replaces the one before,
// and the zero value clears it.
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

// Problems returns the problems with the cluster, and the reasons why the API server's data may be
// outdated.
func (n *Node) Problems() []problem.Problem {
	n.mu.Lock()
	list := slices.Clone(n.problems)
	n.mu.Unlock()
	for _, t := range n.Source.Troubles() {
		p := problem.Problem{Reason: kube.ReasonAPIServer, What: t.Err.Error()}
		if !t.Refused {
			p.About = "away" // its text changes with each attempt, since it has ports
		}
		list = append(list, p)
	}
	return list
}
