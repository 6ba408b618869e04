package incluster

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"weft/mesh/meshtest/eventually"
	"weft/prog/api"
	"weft/prog/kube/kubetest"
	"weft/prog/lab"
	"weft/prog/lab/labtest"
)

func TestMain(m *testing.M) {
	labtest.Main(m, map[string]func([]string) error{"serve": serve, "ask": ask})
}

// serve runs the API server with a Node for every NAME=UID=ADDRESS.
func serve(args []string) error {
	server := kubetest.New()
	for _, a := range args {
		part := strings.Split(a, "=")
		server.Set(kubetest.Node(part[0], part[1], part[2]))
	}
	return server.Serve(":8080", func() { fmt.Fprintln(os.Stderr, "serving") })
}

// ask sends METHOD PATH to the API server with standard input as body, and prints the answer.
func ask(args []string) error {
	req, err := http.NewRequest(args[0], "http://127.0.0.1:8080"+args[1], os.Stdin)
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

// cluster is a lab whose last host runs the API server.
type cluster struct {
	*lab.Lab
	t      *testing.T
	nodes  []string
	server string
	config string
}

func newCluster(t *testing.T, nodes int) *cluster {
	c := &cluster{Lab: labtest.New(t, lab.Options{Hosts: nodes + 1, Bare: true}), t: t, server: fmt.Sprintf("h%d", nodes+1)}
	c.nodes = c.Hosts()[:nodes]
	addr, err := c.UnderlayAddr(c.server)
	if err != nil {
		t.Fatal(err)
	}
	c.config = filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf("apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: \"http://%v:8080\"}}]\ncontexts: [{name: c, context: {cluster: c}}]\ncurrent-context: c\n", addr)
	if err := os.WriteFile(c.config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return c
}

// serve starts the API server with all Nodes.
func (c *cluster) serve() {
	c.t.Helper()
	var nodes []string
	for _, h := range c.nodes {
		addr, err := c.UnderlayAddr(h)
		if err != nil {
			c.t.Fatal(err)
		}
		nodes = append(nodes, fmt.Sprintf("%s=uid-%s=%v", h, h, addr))
	}
	if _, err := c.Background(context.WithoutCancel(c.t.Context()), c.server, "serving", labtest.Tool(c.t, "serve", nodes...)...); err != nil {
		c.t.Fatal(err)
	}
}

// ask sends a request to the API server.
func (c *cluster) ask(method, path, body string) string {
	c.t.Helper()
	out, err := c.Exec(c.t.Context(), c.server, strings.NewReader(body), labtest.Tool(c.t, "ask", method, path)...)
	if err != nil {
		c.t.Fatal(err)
	}
	return out
}

// launch starts an agent as a Node, and waits until it is ready.
func (c *cluster) launch(host string, env ...string) error { return c.launchOf("weft", host, env...) }

// launchOf is launch with another program than the one that is tested.
func (c *cluster) launchOf(program, host string, env ...string) error {
	args := append([]string{"env"}, env...)
	_, err := c.Exec(c.t.Context(), host, nil, append(args, "WEFT_KUBECONFIG="+c.config, "WEFT_NODE_NAME="+host, program, "launch", "--kubernetes", "--wait=40s")...)
	return err
}

func (c *cluster) report(host string) api.Report {
	c.t.Helper()
	return labtest.Report(c.t, c.Lab, host)
}

// owns is how many addresses the peer with an id has, as a host knows it.
func (c *cluster) owns(host, id string) (slots uint64) {
	for _, o := range c.report(host).IPAM.Owners {
		if o.Peer == id {
			slots = o.Slots
		}
	}
	return slots
}

// reclaimed returns the number of events about reclaimed addresses. An agent writes its event after
// the ring has changed.
func (c *cluster) reclaimed() int {
	c.t.Helper()
	return strings.Count(c.ask("GET", "/api/v1/events", ""), `"AddressesReclaimed"`)
}

// Nodes that start at once, before their API server, make one ring. The addresses of a deleted Node
// are reclaimed once, but only after its agent stopped answering. A Node that starts without the API
// server uses its stored state.
func TestNodesFoundJoinAndAreReclaimed(t *testing.T) {
	c := newCluster(t, 3)
	var starting sync.WaitGroup
	for _, h := range c.nodes {
		starting.Go(func() {
			if err := c.launch(h); err != nil {
				t.Errorf("launch on %s returned %v, want success", h, err)
			}
		})
	}
	eventually.True(c.t, 20*time.Second, "h1 reports what it waits for", func() bool {
		out, _ := c.Exec(t.Context(), "h1", nil, "weft", "status") // the error is ignored: h1 is not ready
		return strings.Contains(out, "does not answer") && strings.Contains(out, ":8080")
	})
	c.serve()
	starting.Wait()
	if t.Failed() {
		return
	}
	rings, ids := map[string]bool{}, map[string]string{}
	for _, h := range c.nodes {
		r := c.report(h)
		rings[r.IPAM.Ring], ids[h] = true, r.Router.ID
		if r.Router.Nickname != h || len(r.Router.Targets) != 2 {
			t.Errorf("%s is ready as %s, with the targets %+v; want its name, and the other hosts as targets", h, r.Router.Nickname, r.Router.Targets)
		}
		eventually.True(c.t, 10*time.Second, h+"'s network is available", func() bool {
			return strings.Contains(c.ask("GET", "/api/v1/nodes/"+h, ""), "WeftIsUp")
		})
	}
	if len(rings) != 1 || rings[""] {
		t.Fatalf("got several rings, want one: %v", rings)
	}
	eventually.True(c.t, 20*time.Second, "all hosts have addresses", func() bool {
		return c.owns("h1", ids["h1"]) > 0 && c.owns("h1", ids["h2"]) > 0 && c.owns("h1", ids["h3"]) > 0
	})

	// Delete h3's Node while h3 answers; then silence h3 too.
	c.ask("DELETE", "/api/v1/nodes/h3", "")
	eventually.True(c.t, 10*time.Second, "an event says that h3 still answers", func() bool {
		return strings.Contains(c.ask("GET", "/api/v1/events", ""), "DeletedNodeAnswers")
	})
	time.Sleep(5 * time.Second)
	if c.owns("h1", ids["h3"]) == 0 {
		t.Error("h3's addresses were reclaimed while h3 answered, want them kept")
	}
	if err := c.PowerOff(t.Context(), "h3"); err != nil {
		t.Fatal(err)
	}
	gone := time.Now()
	eventually.True(c.t, 90*time.Second, "h3's addresses are reclaimed", func() bool { return c.owns("h1", ids["h3"]) == 0 && c.owns("h2", ids["h3"]) == 0 })
	t.Logf("reclaimed after %v", time.Since(gone).Round(time.Second))
	for _, h := range c.nodes[:2] {
		if r := c.report(h); r.IPAM.Generation != 2 || len(r.Router.Targets) != 1 {
			t.Errorf("%s has ring generation %d and targets %+v after the removal of h3, want 2 and one target", h, r.IPAM.Generation, r.Router.Targets)
		}
	}
	eventually.True(c.t, 10*time.Second, "one event says that h3's addresses were reclaimed", func() bool { return c.reclaimed() == 1 })

	// h2's disk is lost. A new peer runs on the Node, and the addresses of the old peer are reclaimed.
	if err := c.Kill(t.Context(), "h2", "agent"); err != nil {
		t.Fatal(err)
	}
	if out, err := c.Exec(t.Context(), "h2", nil, "sh", "-c", "rm -r /var/lib/weft/*"); err != nil {
		t.Fatal(err, out)
	}
	if err := c.launch("h2"); err != nil {
		t.Fatal(err)
	}
	old := ids["h2"]
	if ids["h2"] = c.report("h2").Router.ID; ids["h2"] == old {
		t.Fatalf("after the loss of its disk, h2 has the peer id %s as before, want a new id", old)
	}
	eventually.True(c.t, 90*time.Second, "the old h2's addresses are reclaimed", func() bool { return c.owns("h1", old) == 0 && c.owns("h2", old) == 0 })
	eventually.True(c.t, 10*time.Second, "another event says that addresses were reclaimed", func() bool { return c.reclaimed() == 2 })

	// Without the API server, an agent with its disk starts and knows its peers.
	if err := c.PowerOff(t.Context(), c.server); err != nil {
		t.Fatal(err)
	}
	if err := c.Stop(t.Context(), "h2"); err != nil {
		t.Fatal(err)
	}
	if err := c.launch("h2"); err != nil {
		t.Error(err)
	}
	if r := c.report("h2"); !rings[r.IPAM.Ring] || r.Router.ID != ids["h2"] {
		t.Errorf("after a restart without the API server, h2 has the ring %s and the id %s, want those from before", r.IPAM.Ring, r.Router.ID)
	}
}

// The Secret is deleted while no agent runs, and a new node starts. The new node founds no second network
// and reports what it waits for. It joins once an agent of the network has restored the Secret.
func TestSecretDeletedWhileAllAgentsAreDown(t *testing.T) {
	c := newCluster(t, 3)
	c.serve()
	for _, h := range c.nodes[:2] {
		if err := c.launch(h); err != nil {
			t.Fatal(err)
		}
		eventually.True(c.t, 10*time.Second, h+"'s network is available", func() bool {
			return strings.Contains(c.ask("GET", "/api/v1/nodes/"+h, ""), "WeftIsUp")
		})
	}
	ring := c.report("h1").IPAM.Ring
	for _, h := range c.nodes[:2] {
		if err := c.Kill(t.Context(), h, "agent"); err != nil {
			t.Fatal(err)
		}
	}
	const secret = "/api/v1/namespaces/weft/secrets/weft"
	c.ask("DELETE", secret, "")
	joined := make(chan error, 1)
	go func() { joined <- c.launch("h3") }()
	eventually.True(c.t, 20*time.Second, "h3 reports that there is a network", func() bool {
		out, _ := c.Exec(t.Context(), "h3", nil, "weft", "status") // the error is ignored: h3 is not ready
		return strings.Contains(out, "does not found another one") && (strings.Contains(out, "node h1") || strings.Contains(out, "node h2"))
	})
	if out := c.ask("GET", "/api/v1/secrets", ""); strings.Contains(out, `"Secret"`) {
		t.Fatalf("the API server has Secrets, want none: h3 must not create one: %s", out)
	}
	if err := c.launch("h2"); err != nil {
		t.Fatal(err)
	}
	if err := <-joined; err != nil {
		t.Error(err)
	}
	if r := c.report("h3"); r.IPAM.Ring != ring {
		t.Errorf("h3 is in the ring %s, want %s", r.IPAM.Ring, ring)
	}
}

// An agent with an invalid setting ends, and reports the setting in an event on its Node.
func TestInvalidSettingEndsTheAgent(t *testing.T) {
	c := newCluster(t, 1)
	c.serve()
	_, err := c.Exec(t.Context(), "h1", nil, "env", "WEFT_KUBECONFIG="+c.config, "WEFT_NODE_NAME=h1", "WEFT_MTU=big", "weft", "agent", "--kubernetes")
	if err == nil || !strings.Contains(err.Error(), "WEFT_MTU") {
		t.Errorf("the agent with an invalid setting returned %v, want an error about WEFT_MTU", err)
	}
	if events := c.ask("GET", "/api/v1/events", ""); !strings.Contains(events, "InvalidSetting") || !strings.Contains(events, "WEFT_MTU") {
		t.Errorf("want an event InvalidSetting about WEFT_MTU, got %s", events)
	}
}
