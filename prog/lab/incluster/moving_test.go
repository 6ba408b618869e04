package incluster

import (
	"context"
	"encoding/json"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"weft/mesh/meshtest/eventually"
	"weft/prog/lab/labtest"
	"weft/prog/lab/probe"
)

// pings sends pings between the node addresses of two Nodes, through their tunnel, until the returned function
// is called.
func (c *cluster) pings(from, to string) (stop func() []probe.Result) {
	c.t.Helper()
	in, end := io.Pipe()
	done := make(chan string, 1)
	args := []string{"weft", "probe", "icmp", "--until-eof", "--count", "1000000", "--interval", "20ms", "--timeout", "5s", "--json"}
	for _, a := range c.report(to).Router.Node {
		args = append(args, a.String())
	}
	go func() {
		out, _ := c.Exec(context.WithoutCancel(c.t.Context()), from, in, args...) // the result says whether a ping was lost
		done <- out
	}()
	return func() (results []probe.Result) {
		c.t.Helper()
		end.Close()
		out := <-done
		if err := json.Unmarshal([]byte(out), &results); err != nil {
			c.t.Fatalf("the pings from %s to %s have no result: %v: %s", from, to, err, out)
		}
		return results
	}
}

// connected waits until all Nodes have all others as peers.
func (c *cluster) connected() {
	c.t.Helper()
	for _, h := range c.nodes {
		eventually.True(c.t, 30*time.Second, h+" is ready and connected to all others", func() bool {
			r, ready := c.report(h), 0
			for _, o := range r.IPAM.Owners {
				if o.Self || o.Reachable {
					ready++
				}
			}
			return r.Ready && ready == len(c.nodes)
		})
	}
}

// The agents of a cluster are replaced one by one by those of protocol version 2, as a DaemonSet does. Both
// versions say why they refuse each other. The tunnels stay, and no ping is lost.
func TestAClusterMovesFromTheVersionBefore(t *testing.T) {
	old := filepath.Join(labtest.Earlier(t, labtest.BeforeSessions), "weft")
	c := newCluster(t, 3)
	c.serve()
	launch := func(host, program string) {
		t.Helper()
		if err := c.launchOf(program, host); err != nil {
			t.Fatal(err)
		}
	}
	for _, h := range c.nodes {
		launch(h, old)
	}
	c.connected()
	ring := c.report("h1").IPAM.Ring
	flows := map[string]func() []probe.Result{}
	for from, to := range map[string]string{"h1": "h2", "h2": "h3", "h3": "h1"} {
		eventually.True(t, 20*time.Second, from+" reaches "+to, func() bool {
			_, err := c.Exec(t.Context(), from, nil, "weft", "probe", "icmp", "--count", "1", c.report(to).Router.Node[0].String())
			return err == nil
		})
		flows[from] = c.pings(from, to)
	}
	for i, h := range c.nodes {
		if _, err := c.Exec(t.Context(), h, nil, old, "stop"); err != nil {
			t.Fatal(err)
		}
		launch(h, "weft")
		if i == len(c.nodes)-1 {
			break
		}
		eventually.True(t, 30*time.Second, h+" names the nodes of the older version", func() bool {
			out, _ := c.Exec(t.Context(), h, nil, "weft", "status") // the exit code only says whether the host is ready
			return strings.Contains(out, "older version of Weft")
		})
	}
	c.connected()
	if now := c.report("h3").IPAM.Ring; now != ring {
		t.Errorf("after the upgrade the ring is %s, want %s", now, ring)
	}
	for from, stop := range flows {
		for _, r := range stop() {
			if !r.OK() || r.Sent < 50 {
				t.Errorf("pings from %s: %+v; want at least 50, and none lost", from, r)
			}
			t.Logf("pings from %s to %v: %d sent, %d lost", from, r.Addr, r.Sent, r.Lost)
		}
	}
}
