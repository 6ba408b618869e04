package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"weft/ipam"
	"weft/ipam/slot"
	"weft/mesh"
	"weft/mesh/directory"
	"weft/mesh/member"
	"weft/mesh/peer"
	"weft/mesh/secret"
	"weft/prog/kube"
	"weft/prog/state"
)

// These constants say how often a simulated node repeats an action. Nine nodes together act ten times per
// second.
const (
	kubeChanges = 22
	kubeEvery   = 900 * time.Millisecond
)

// simulated is a node that other nodes cannot distinguish from a real node. It has a Node object,
// takes the ring from the cluster's Secret and owns addresses. It announces its pods and confirms the
// announcements of others, with the agent's own code and a real store. It has no data path and no
// policies, and its pods do not exist.
type simulated struct {
	node, api string
	number    int
	store     *state.Store
	mesh      *mesh.Mesh
	ipam      *ipam.Allocator
	directory *mesh.Directory
	documents *mesh.Documents
	pods      []directory.Endpoint // existing pods, the oldest first
	next      int                  // number of the next pod
}

// kubePeer runs a simulated node. args are the API server's URL, the node's number and its number of
// pods. It reads commands: "start" ends when all its pods are announced; "churn" replaces pods, and
// ends when all other nodes have confirmed; "heartbeat" writes its Node's unchanged status repeatedly.
func kubePeer(ctx context.Context, args []string) (err error) {
	p := &simulated{api: args[0]}
	pods, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	if p.number, err = strconv.Atoi(args[1]); err != nil {
		return err
	}
	p.node = kubeNode(p.number)
	if p.store, err = state.Open("/var/lib/weft"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.store.Close()) }()
	if err := p.make(ctx); err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	group, ctx := errgroup.WithContext(ctx)
	for _, run := range []func(context.Context) error{p.mesh.Run, p.ipam.Run, p.directory.Run, p.documents.Run} {
		group.Go(func() error { return run(ctx) })
	}
	out := json.NewEncoder(os.Stdout)
	for in := bufio.NewScanner(os.Stdin); in.Scan() && err == nil; {
		verbs := map[string]func(context.Context) error{
			"start": func(ctx context.Context) error { return p.start(ctx, pods) }, "churn": p.churn,
			"heartbeat": func(ctx context.Context) error { return p.often(ctx, p.heartbeat) },
		}
		start := time.Now()
		var a answer
		if err := verbs[in.Text()](ctx); err != nil {
			a.Error = p.node + ": " + err.Error()
		}
		a.Milliseconds = time.Since(start).Seconds() * 1e3
		err = out.Encode(a)
	}
	stop()
	return errors.Join(err, group.Wait())
}

// record returns the record of a node, without a key, and the addresses of the other nodes.
func (p *simulated) record(ctx context.Context, client *kube.Client) (r peer.Record, targets []string, err error) {
	nodes, err := client.Nodes(ctx)
	r = peer.Record{Nickname: p.node, Port: 6784, Gossip: mesh.Port}
	for _, n := range nodes {
		if n.Name == p.node {
			r.Underlay, r.Host = n.Addrs, n.UID
		} else {
			targets = append(targets, n.Addrs[0].String())
		}
	}
	return r, targets, err
}

// make makes the parts of an agent that communicate with other agents.
func (p *simulated) make(ctx context.Context) error {
	keys, err := p.store.Keys(rand.Reader)
	if err != nil {
		return err
	}
	private, err := wgtypes.NewKey(keys.WireGuard[:])
	if err != nil {
		return err
	}
	client, err := kube.NewClient(&rest.Config{Host: p.api, QPS: -1})
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	self := keys.ID()
	founding, _, err := (&kube.Bootstrap{
		Client: client, Namespace: kube.DefaultNamespace, Node: p.node, Self: self, Random: rand.Reader, Log: log,
		Waiting: func(context.Context, string) {}, Answers: func(context.Context, netip.Addr) bool { return false },
		Universe: func(context.Context, secret.ClusterID) (u slot.Universe, err error) {
			return u, errors.New("a simulated node must not found the ring: start the agent first")
		},
	}).Run(ctx)
	if err != nil {
		return err
	}
	record, targets, err := p.record(ctx, client)
	if err != nil {
		return err
	}
	record.WireGuard = private.PublicKey()
	root := founding.Token.Secret.Root()
	if p.mesh, err = mesh.New(mesh.Config{
		Identity: keys.Identity, Record: record, Root: root.Public().(ed25519.PublicKey),
		Certificate: member.Certify(root, keys.Identity.Public().(ed25519.PublicKey), member.Holder).Encode(),
		Universe:    founding.Universe, Targets: targets, Store: p.store, Port: mesh.Port, Log: log, Changed: nothing,
	}); err != nil {
		return err
	}
	p.directory, err = mesh.NewDirectory(mesh.DirectoryConfig{
		Identity: keys.Identity, Mesh: p.mesh, Store: p.store, Wanted: func(peer.ID) bool { return true }, Log: log, Changed: nothing,
	})
	if err != nil {
		return err
	}
	p.documents, err = mesh.NewDocuments(mesh.DocumentsConfig{Identity: keys.Identity, Mesh: p.mesh, Store: p.store, Now: time.Now, Log: log, Changed: nothing})
	if err != nil {
		return err
	}
	p.ipam = ipam.New(ipam.Config{
		Self: self, Store: p.store, Mesh: p.mesh, Log: log, Cluster: founding.Token.Cluster, Universe: founding.Universe,
		Held: p.directory.Taken, Listed: p.directory.Listed, Changed: nothing,
	})
	p.connect()
	return nil
}

func nothing() {}

// connect carries the replicated states over the mesh, and answers requests.
func (p *simulated) connect() {
	for _, r := range []mesh.Replica{p.ipam, p.ipam.Votes(), p.directory, p.documents} {
		p.mesh.Replicate(r)
	}
	for kind, h := range p.ipam.Handlers() {
		p.mesh.Handle(kind, h)
	}
	for kind, h := range p.directory.Handlers() {
		p.mesh.Handle(kind, h)
	}
	for kind, h := range p.documents.Handlers() {
		p.mesh.Handle(kind, h)
	}
}

// start waits for the ring, and announces the node and its pods.
func (p *simulated) start(ctx context.Context, pods int) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	node, err := p.ipam.Allocate(ctx, "node", nil)
	if err != nil {
		return err
	}
	snap, err := p.ipam.Snapshot(ctx)
	if err != nil {
		return err
	}
	if err := p.mesh.Update(func(r *peer.Record) { r.Ring, r.Node = snap.Ring.ID[:], node }); err != nil {
		return err
	}
	for range pods {
		if err := p.add(ctx); err != nil {
			return err
		}
	}
	return p.directory.Publish(p.pods)
}

// often calls do kubeChanges times, at regular intervals.
func (p *simulated) often(ctx context.Context, do func(ctx context.Context, i int) error) error {
	if err := sleep(ctx, time.Duration(p.number)*kubeEvery/9); err != nil { // nodes must not all change at the same time
		return err
	}
	tick := time.NewTicker(kubeEvery)
	defer tick.Stop()
	for i := range kubeChanges {
		if err := do(ctx, i); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// churn alternately removes and adds a pod.
func (p *simulated) churn(ctx context.Context) error {
	var gone []slot.Slot
	err := p.often(ctx, func(ctx context.Context, i int) error {
		if i%2 == 0 {
			gone = append(gone, p.pods[0].Slots...)
			if err := p.remove(ctx); err != nil {
				return err
			}
		} else if err := errors.Join(p.ask(ctx, http.MethodPost, podOf(p.number, p.next)), p.add(ctx)); err != nil {
			return err
		}
		return p.directory.Publish(p.pods)
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, 30*time.Second, errors.New("not all peers forgot the removed pods"))
	defer cancel()
	for _, s := range gone {
		for p.directory.Taken(s) {
			if err := sleep(ctx, 50*time.Millisecond); err != nil {
				return err
			}
		}
	}
	return nil
}

// heartbeat writes the Node's unchanged status, as a kubelet does every few minutes.
func (p *simulated) heartbeat(ctx context.Context, _ int) error {
	body, err := json.Marshal(map[string]any{"status": map[string]any{"conditions": []core.NodeCondition{
		{Type: core.NodeReady, Status: core.ConditionTrue, Reason: "KubeletReady", LastHeartbeatTime: meta.Now()},
	}}})
	if err != nil {
		return err
	}
	return p.request(ctx, http.MethodPatch, "/api/v1/nodes/"+p.node+"/status", body)
}

// add allocates the address of the next pod.
func (p *simulated) add(ctx context.Context) error {
	pod := podOf(p.number, p.next)
	s, err := p.ipam.Allocate(ctx, pod.uid(), nil)
	if err != nil {
		return err
	}
	p.next++
	p.pods = append(p.pods, pod.endpoint(s))
	return nil
}

// remove removes the oldest pod.
func (p *simulated) remove(ctx context.Context) error {
	oldest := podOf(p.number, p.next-len(p.pods))
	if err := p.ask(ctx, http.MethodDelete, oldest); err != nil {
		return err
	}
	p.pods = p.pods[1:]
	return p.ipam.Free(ctx, oldest.uid())
}

// ask creates or deletes a pod in the API.
func (p *simulated) ask(ctx context.Context, method string, pod kubePod) error {
	path := "/api/v1/namespaces/" + pod.namespace + "/pods"
	if method == http.MethodDelete {
		return p.request(ctx, method, path+"/"+pod.name, nil)
	}
	body, err := json.Marshal(pod.object())
	if err != nil {
		return err
	}
	return p.request(ctx, method, path, body)
}

func (p *simulated) request(ctx context.Context, method, path string, body []byte) error {
	req, err := http.NewRequestWithContext(ctx, method, p.api+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s %s: %s", method, path, resp.Status)
	}
	_, err = io.Copy(io.Discard, resp.Body) // read the whole body, so that the client reuses the connection
	return err
}
