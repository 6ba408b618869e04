package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"weft/prog/lab"
)

// kubeSize is the size of a cluster.
type kubeSize struct{ nodes, pods, policies int } // pods is the number on each node

func (s *kubeSize) parse(text string) error {
	_, err := fmt.Sscanf(text, "%d,%d,%d", &s.nodes, &s.pods, &s.policies)
	if err != nil || s.nodes < 2 || s.pods < 1 || s.policies < 0 {
		return fmt.Errorf("invalid size of the cluster: want NODES,PODS,POLICIES, such as 10,100,200")
	}
	return nil
}

// kubernetes measures the cost of one agent in a cluster. At the same time it measures an agent in
// a cluster of four nodes without pods and policies. The agents and the containers on their hosts
// are real. The other nodes (see simulated) and the API server (prog/kube/kubetest) are simulated.
func kubernetes(ctx context.Context, b *bench) (err error) {
	var sides [2]*kubeSide
	for i, size := range []kubeSize{b.kube, {4, 0, 0}} {
		side := &kubeSide{bench: b, kubeSize: size}
		sides[i] = side
		defer func() { err = errors.Join(err, side.down()) }()
		if err := side.up(ctx); err != nil {
			return err
		}
	}
	m := &kubeFigures{
		resident: comparison{what: "resident, MiB"}, own: comparison{what: "of that, anonymous (heap, stacks), MiB"},
		heap: comparison{what: "Go's heap in use, MiB"}, after: comparison{what: "resident at the end, MiB"},
		rest: comparison{what: "processor at rest, % of a core"}, churn: comparison{what: "processor while pods of other nodes come and go, % of a core"},
		heartbeat: comparison{what: "processor while Nodes send heartbeats, % of a core"},
	}
	if err := m.atRest(ctx, sides); err != nil {
		return err
	}
	churn, err := m.busy(ctx, sides, &m.churn, "churn")
	if err != nil {
		return err
	}
	heartbeat, err := m.busy(ctx, sides, &m.heartbeat, "heartbeat")
	if err != nil {
		return err
	}
	if err := errors.Join(sides[0].memory(ctx, &m.after.ours, &samples{}), sides[1].memory(ctx, &m.after.theirs, &samples{})); err != nil {
		return err
	}
	title := fmt.Sprintf("One agent in Kubernetes: %d nodes, %d pods, %d of those on this host, %d policies", b.kube.nodes, b.kube.nodes*b.kube.pods, b.kube.pods, b.kube.policies)
	printComparisons(os.Stdout, title, "agent", "three peers, no pods, no policies", m.resident, m.own, m.heap, m.rest, m.churn, m.heartbeat, m.after)
	printFigures(os.Stdout, fmt.Sprintf("One agent in Kubernetes: cost of one change (%d of each, ten a second, cost at rest subtracted)", (b.kube.nodes-1)*kubeChanges), "processor time, ms",
		figure{what: "a pod comes or goes on another node", ours: churn}, figure{what: "a Node's heartbeat", ours: heartbeat})
	return nil
}

// kubeFigures are the measurements of the agents of both sides.
type kubeFigures struct{ resident, own, heap, rest, churn, heartbeat, after comparison }

func (m *kubeFigures) atRest(ctx context.Context, sides [2]*kubeSide) error {
	if err := sleep(ctx, idleTime); err != nil {
		return err
	}
	const turns = 3
	for range turns {
		if err := kubeWatch(ctx, sides, &m.rest, func() error { return sleep(ctx, idleTime/turns) }); err != nil {
			return err
		}
		if err := errors.Join(sides[0].memory(ctx, &m.resident.ours, &m.own.ours), sides[1].memory(ctx, &m.resident.theirs, &m.own.theirs)); err != nil {
			return err
		}
	}
	for i, into := range []*samples{&m.heap.ours, &m.heap.theirs} {
		bytes, err := sides[i].metric(ctx, "go_memstats_heap_inuse_bytes")
		if err != nil {
			return err
		}
		into.add(bytes / (1 << 20))
	}
	return nil
}

// busy measures the agents while the simulated nodes of the large cluster repeat an action. It returns
// the cost of one action in ms, without the idle cost.
func (m *kubeFigures) busy(ctx context.Context, sides [2]*kubeSide, into *comparison, verb string) (samples, error) {
	start := time.Now()
	if err := kubeWatch(ctx, sides, into, func() error { return sides[0].each(verb) }); err != nil {
		return nil, err
	}
	took := time.Since(start).Seconds()
	share := (into.ours.median() - m.rest.ours.median()) / 100
	return samples{1000 * took * share / float64(len(sides[0].peers)*kubeChanges)}, nil
}

// kubeWatch measures the processor time of the agents of both sides while f runs.
func kubeWatch(ctx context.Context, sides [2]*kubeSide, into *comparison, f func() error) error {
	var before [2]float64
	var err error
	for i, s := range sides {
		if before[i], err = processorTime(ctx, s.lab, "h1", s.agent); err != nil {
			return err
		}
	}
	start := time.Now()
	if err := f(); err != nil {
		return err
	}
	took := time.Since(start).Seconds()
	for i, to := range []*samples{&into.ours, &into.theirs} {
		used, err := processorTime(ctx, sides[i].lab, "h1", sides[i].agent)
		if err != nil {
			return err
		}
		to.add(100 * (used - before[i]) / took)
	}
	return nil
}

// kubeSide is a cluster: h1 has the agent and its containers, the following hosts are the other nodes,
// and the last host is the API server.
type kubeSide struct {
	*bench
	kubeSize

	lab     *lab.Lab
	agent   int // process id of the agent
	peers   []*remote
	runtime *remote
	ends    []func() error
}

func (s *kubeSide) up(ctx context.Context) (err error) {
	l, down, err := s.bench.up(ctx, lab.Options{Name: fmt.Sprint("kube-", s.nodes), Hosts: s.nodes + 1, Bare: true})
	if err != nil {
		return err
	}
	s.lab = l
	s.ends = append(s.ends, func() (err error) { down(&err); return err })
	url, err := s.serve(ctx)
	if err != nil {
		return err
	}
	if err := s.launch(ctx, url); err != nil {
		return err
	}
	s.ends = append(s.ends, func() error { return s.all((*remote).stop) })
	for n := 1; n < s.nodes; n++ {
		p, err := s.startRemote(ctx, l, kubeNode(n), "kube-peer", url, strconv.Itoa(n), strconv.Itoa(s.pods))
		if err != nil {
			return err
		}
		s.peers = append(s.peers, p)
	}
	if err := s.each("start"); err != nil {
		return err
	}
	if err := s.attach(ctx); err != nil {
		return err
	}
	return s.settled(ctx)
}

func (s *kubeSide) down() error {
	var errs []error
	for i := range s.ends {
		errs = append(errs, s.ends[len(s.ends)-1-i]())
	}
	return errors.Join(errs...)
}

// serve starts the API server.
func (s *kubeSide) serve(ctx context.Context) (url string, err error) {
	args := []string{s.self, "kube-api", strconv.Itoa(s.pods), strconv.Itoa(s.policies)}
	for n := range s.nodes {
		addr, err := s.lab.UnderlayAddr(kubeNode(n))
		if err != nil {
			return "", err
		}
		args = append(args, addr.String())
	}
	last := kubeNode(s.nodes)
	if _, err := s.lab.Background(ctx, last, "serving", args...); err != nil { // the server ends with its host
		return "", err
	}
	addr, err := s.lab.UnderlayAddr(last)
	return fmt.Sprintf("http://%v:8080", addr), err
}

// launch starts the agent, which founds the ring.
func (s *kubeSide) launch(ctx context.Context, url string) error {
	config := filepath.Join(s.tmp, fmt.Sprint("kubeconfig-", s.nodes))
	text := fmt.Sprintf("apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: %q}}]\ncontexts: [{name: c, context: {cluster: c}}]\ncurrent-context: c\n", url)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return err
	}
	_, err := s.lab.Exec(ctx, "h1", nil, "env", "WEFT_KUBECONFIG="+config, "WEFT_NODE_NAME="+kubeNode(0), "weft", "launch", "--kubernetes", "--wait=40s")
	if err != nil {
		return err
	}
	status, err := s.lab.Status(ctx)
	if err != nil {
		return err
	}
	if pids := status.Hosts[0].Agent; len(pids) == 1 {
		s.agent = pids[0]
		return nil
	}
	return fmt.Errorf("the agents on h1 are %v; want one", status.Hosts[0].Agent)
}

// each sends a command to all simulated nodes at once.
func (s *kubeSide) each(verb string) error {
	return s.all(func(p *remote) error { _, err := p.do(verb); return err })
}

func (s *kubeSide) all(f func(*remote) error) error {
	var group errgroup.Group
	for _, p := range s.peers {
		group.Go(func() error { return f(p) })
	}
	return group.Wait()
}

// attach does what the kubelet and the container runtime do for the pods of h1.
func (s *kubeSide) attach(ctx context.Context) (err error) {
	if s.pods == 0 {
		return nil
	}
	if s.runtime, err = s.startRemote(ctx, s.lab, "h1", "cni-runtime", "/etc/cni/net.d", "/opt/cni/bin"); err != nil {
		return err
	}
	s.ends = append(s.ends, s.runtime.stop)
	for i := range s.pods {
		p := podOf(0, i)
		if _, err := s.runtime.do(strings.Join([]string{"add", p.namespace, p.name, p.uid()}, " ")); err != nil {
			return err
		}
	}
	return nil
}

// settled waits until the agent knows all pods and enforces the policies of its host's pods. Only
// then are measurements meaningful.
func (s *kubeSide) settled(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, 30*time.Second, errors.New("after 30 s the agent still does not know all pods and policies"))
	defer cancel()
	for {
		var got [3]float64
		for i, name := range []string{"weft_dns_entries", "weft_policy_isolated_endpoints", `weft_policies{mode="enforced"}`} {
			if got[i], err = s.metric(ctx, name); err != nil {
				return err
			}
		}
		if got == [3]float64{float64(s.nodes * s.pods), float64(s.pods), float64(s.policies)} {
			return nil
		}
		if err := sleep(ctx, time.Second); err != nil {
			return fmt.Errorf("%w: got names, isolated endpoints and policies %v", err, got)
		}
	}
}

// metric returns one of the agent's metrics.
func (s *kubeSide) metric(ctx context.Context, name string) (float64, error) {
	text, err := s.lab.Exec(ctx, "h1", nil, s.self, "fetch", "http://127.0.0.1:6784/metrics")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			return strconv.ParseFloat(strings.TrimSpace(value), 64)
		}
	}
	return 0, fmt.Errorf("no metric %s", name)
}

// memory measures the agent's resident memory, and the part that is not backed by files.
func (s *kubeSide) memory(ctx context.Context, resident, own *samples) error {
	rollup, err := s.lab.Exec(ctx, "h1", nil, "cat", fmt.Sprintf("/proc/%d/smaps_rollup", s.agent))
	if err != nil {
		return err
	}
	for line := range strings.Lines(rollup) {
		fields := strings.Fields(line)
		if len(fields) != 3 || fields[0] != "Rss:" && fields[0] != "Anonymous:" {
			continue
		}
		kib, err := strconv.ParseFloat(fields[1], 64)
		if err != nil {
			return err
		}
		if fields[0] == "Rss:" {
			resident.add(kib / 1024)
		} else {
			own.add(kib / 1024)
		}
	}
	return nil
}
