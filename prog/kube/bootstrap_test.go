package kube

import (
	"context"
	crand "crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"weft/ipam/slot"
	"weft/mesh/peer"
	"weft/mesh/secret"
	"weft/prog/kube/kubetest"
)

// cluster is an API server with nodes that start.
type cluster struct {
	*kubetest.Server
	http *httptest.Server
}

func newCluster(t *testing.T, nodes int) *cluster {
	t.Helper()
	c := &cluster{Server: kubetest.New()}
	for n := range nodes {
		c.Set(kubetest.Node(nodeName(n), fmt.Sprintf("uid-%d", n), fmt.Sprintf("192.0.2.%d", n+1)))
	}
	c.http = httptest.NewServer(c.Server)
	t.Cleanup(c.http.Close)
	return c
}

func nodeName(n int) string { return fmt.Sprintf("n%d", n) }

func (c *cluster) client(t *testing.T) *Client {
	t.Helper()
	client, err := NewClient(&rest.Config{Host: c.http.URL, QPS: -1})
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// bootstrap returns node n's Bootstrap. disk selects its peer id, as after the loss of a disk.
func (c *cluster) bootstrap(t *testing.T, n int, disk byte) *Bootstrap {
	client := c.client(t)
	return &Bootstrap{
		Client: client, Namespace: "weft", Node: nodeName(n), Self: peer.ID{byte(n + 1), disk}, Random: crand.Reader,
		Universe: func(ctx context.Context, id secret.ClusterID) (slot.Universe, error) {
			return client.Universe(ctx, slot.Universe{}, id)
		},
		Answers: func(context.Context, netip.Addr) bool { return false },
		Log:     slog.New(slog.DiscardHandler), Waiting: func(context.Context, string) {}, pause: 5 * time.Millisecond,
	}
}

func (c *cluster) secret(t *testing.T) *core.Secret {
	t.Helper()
	s, err := c.client(t).secret(t.Context(), "weft")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// run runs several Bootstraps at once, and returns their results.
func run(t *testing.T, all ...*Bootstrap) []Founding {
	t.Helper()
	out, mine := make([]Founding, len(all)), make([]bool, len(all))
	var group sync.WaitGroup
	ctx, stop := context.WithTimeout(t.Context(), 20*time.Second)
	defer stop()
	for i, b := range all {
		group.Go(func() {
			var err error
			if out[i], mine[i], err = b.Run(ctx); err != nil {
				t.Errorf("%s: Run returned %v, want a founding", b.Node, err)
			}
		})
	}
	group.Wait()
	founders := 0
	for i, f := range out {
		if f != out[0] {
			t.Errorf("two nodes have the foundings %+v and %+v, want the same", f, out[0])
		}
		if mine[i] {
			founders++
			if f.Founder != all[i].Self {
				t.Errorf("%s claims that it founded the ring of %v, want its own", all[i].Node, f.Founder)
			}
		}
	}
	if founders > 1 {
		t.Errorf("%d nodes claim that they founded, want at most one", founders)
	}
	return out
}

// Nodes that start at once agree on one founder, one token and one universe.
func TestNodesAgreeOnOneFounder(t *testing.T) {
	c := newCluster(t, 12)
	var all []*Bootstrap
	for n := range 12 {
		all = append(all, c.bootstrap(t, n, 0))
	}
	f := run(t, all...)[0]
	if !f.Founded || f.Token.Cluster.IsZero() || f.Universe != (slot.Universe{V4: slot.DefaultV4, V6: f.Token.Cluster.V6()}) || f.Node != nodeName(int(f.Founder[0])-1) {
		t.Errorf("the founding is %+v; want one that is founded, with default ranges and the founder's Node", f)
	}
	// Later nodes get the same founding, and report that they did not found it; nor did the founder
	// after a restart.
	for _, b := range []*Bootstrap{c.bootstrap(t, 3, 1), c.bootstrap(t, int(f.Founder[0])-1, 0)} {
		if later, mine, err := b.Run(t.Context()); err != nil || later != f || mine {
			t.Errorf("a later node got %+v, mine %v, error %v; want the same founding", later, mine, err)
		}
	}
	if s := c.secret(t); strings.Contains(fmt.Sprint(s.Annotations, s.Labels), f.Token.Reveal()) || s.Annotations["weft.dev/founded"] != "true" {
		t.Errorf("the annotations are %v; want founded, and no token", s.Annotations)
	}
}

// stuck leaves a Secret with a founder that never sets "founded".
func stuck(t *testing.T, c *cluster, n int) *Bootstrap {
	t.Helper()
	b := c.bootstrap(t, n, 0)
	if _, _, err := b.step(t.Context()); !errors.Is(err, errAgain) {
		t.Fatal(err)
	}
	return b
}

// Nodes wait for a founder whose Node exists, and name it. Once its Node is gone or registered again,
// exactly one other node takes over. If the first founder returns, it uses the
// ring of the new founder.
func TestAnotherNodeFoundsWhenFounderIsGone(t *testing.T) {
	for name, end := range map[string]func(*cluster){
		"deleted":   func(c *cluster) { c.Delete(kubetest.Node("n0", "uid-0")) },
		"made anew": func(c *cluster) { c.Set(kubetest.Node("n0", "uid-new", "192.0.2.1")) },
	} {
		c := newCluster(t, 5)
		founder := stuck(t, c, 0)
		token := c.secret(t).Data["token"]
		var all []*Bootstrap
		for n := 1; n < 5; n++ {
			all = append(all, c.bootstrap(t, n, 0))
		}
		said := make(chan string, 10)
		all[0].Waiting = func(_ context.Context, why string) { said <- why }
		go func() {
			if why := <-said; !strings.Contains(why, "n0") || !strings.Contains(why, "founds the ring") {
				t.Errorf("%s: the reason for waiting is %q; want the founder's node", name, why)
			}
			end(c)
		}()
		f := run(t, all...)[0]
		if f.Founder == founder.Self || !f.Founded || f.Token.Reveal() != string(token) {
			t.Errorf("%s: the founding is %+v; want a new founder, and the token unchanged", name, f)
		}
		if name == "made anew" {
			if late, mine, err := founder.Run(t.Context()); err != nil || late != f || mine {
				t.Errorf("%s: the first founder got %+v, mine %v, error %v; want the new founding", name, late, mine, err)
			}
		}
	}
}

// A founder that restarts with its disk continues to found. If its disk was lost, the new peer on the
// same Node becomes the founder.
func TestTheFoundersNodeFoundsEvenIfItsDiskWasLost(t *testing.T) {
	for disk := range byte(2) {
		c := newCluster(t, 2)
		stuck(t, c, 0)
		f := run(t, c.bootstrap(t, 0, disk), c.bootstrap(t, 1, 0))[0]
		if f.Node != "n0" || f.Founder != (peer.ID{1, disk}) || !f.Founded {
			t.Errorf("with disk %d the founding is %+v; want the peer of that disk as the founder", disk, f)
		}
	}
}

// An operator's Secret provides the token; the nodes complete the rest.
func TestTheTokenInAnOperatorsSecretIsUsed(t *testing.T) {
	token, err := secret.New(crand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := newCluster(t, 4)
	made := &core.Secret{ObjectMeta: meta.ObjectMeta{Namespace: "weft", Name: "weft"}, Data: map[string][]byte{"token": []byte(token.Reveal() + "\n")}}
	c.Set(made)
	f := run(t, c.bootstrap(t, 0, 0), c.bootstrap(t, 1, 0), c.bootstrap(t, 2, 0), c.bootstrap(t, 3, 0))[0]
	if f.Token != token {
		t.Error("the founding has another token, want the operator's")
	}
	password, err := secret.FromPassword("long enough a password", "")
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"torn": "weft1-abc", "none": "", "a password's": password.Reveal()} {
		made = made.DeepCopy()
		made.Annotations, made.Data["token"] = nil, []byte(text)
		c.Set(made)
		if _, _, err := c.bootstrap(t, 0, 0).step(t.Context()); err == nil || !strings.Contains(err.Error(), "data.token") || text != "" && strings.Contains(err.Error(), text) {
			t.Errorf("%s: the error is %v; want one that names data.token, without the token", name, err)
		}
	}
}

// If the API server refuses or is down, Run reports it and retries.
func TestBootstrapRetriesFailedRequests(t *testing.T) {
	for name, situation := range map[string]struct {
		code int
		says string
	}{
		"forbidden": {http.StatusForbidden, "manifest"},
		"down":      {kubetest.Break, "can reach it"},
		"broken":    {http.StatusInternalServerError, "http://127.0.0.1"},
	} {
		c := newCluster(t, 1)
		c.Refuse(func(string, string) int { return situation.code })
		b := c.bootstrap(t, 0, 0)
		said := make(chan string, 10)
		b.Waiting = func(_ context.Context, why string) {
			said <- why
			c.Refuse(nil)
		}
		f := run(t, b)[0]
		if why := <-said; !strings.Contains(why, situation.says) || !f.Founded {
			t.Errorf("%s: the reason for waiting is %q, then the founding %+v; want the cause as the reason, and then a founding", name, why, f)
		}
	}
	c := newCluster(t, 0)
	if _, _, err := c.bootstrap(t, 7, 0).step(t.Context()); err == nil || !strings.Contains(err.Error(), "n7") || !strings.Contains(err.Error(), "NODE_NAME") {
		t.Errorf("without a Node the error is %v; want one that names the Node and NODE_NAME", err)
	}
}

// While requests and answers are lost, requests fail, and Nodes are registered again, all nodes agree
// on one founding, and at most one node founded.
func TestAtMostOneNodeFoundsDespiteFaults(t *testing.T) {
	for seed := range uint64(60) {
		random := rand.New(rand.NewPCG(seed, 1))
		nodes := 2 + random.IntN(5)
		c := newCluster(t, nodes)
		var mu sync.Mutex
		gone := 0
		c.Refuse(func(string, string) int {
			mu.Lock()
			defer mu.Unlock()
			if gone < nodes-2 && random.IntN(40) == 0 { // the Node is deleted and registered again; its agent does not notice, and continues
				c.Set(kubetest.Node(nodeName(gone), fmt.Sprintf("uid-%d-new", gone), "192.0.2.99"))
				gone++
			}
			switch random.IntN(12) {
			case 0:
				return kubetest.Break
			case 1:
				return kubetest.Lose
			case 2:
				return http.StatusInternalServerError
			}
			return kubetest.Serve
		})
		var all []*Bootstrap
		for n := range nodes {
			all = append(all, c.bootstrap(t, n, 0))
			all[n].pause = time.Millisecond
		}
		run(t, all...)
		if t.Failed() {
			t.Fatalf("the test failed with seed %d", seed)
		}
	}
}

func configMap(text string) *core.ConfigMap {
	return &core.ConfigMap{ObjectMeta: meta.ObjectMeta{Namespace: "kube-system", Name: "kube-proxy"}, Data: map[string]string{"config.conf": "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n" + text}}
}

func TestUniverseComesFromSettingsOrKubeProxy(t *testing.T) {
	id := secret.ClusterID{1}
	own := func(four string) slot.Universe { return slot.Universe{V4: netip.MustParsePrefix(four), V6: id.V6()} }
	both := slot.Universe{V4: netip.MustParsePrefix("10.1.0.0/16"), V6: netip.MustParsePrefix("fd00:1::/64")}
	for _, c := range []struct {
		name, proxy, services, host string
		asked, want                 slot.Universe
		refused                     string
	}{
		{name: "nothing is known", want: own("10.32.0.0/12")},
		{name: "kube-proxy", proxy: "clusterCIDR: 10.244.0.0/16\n", want: own("10.244.0.0/16")},
		{name: "kube-proxy, both", proxy: "clusterCIDR: 10.1.0.0/16,fd00:1::/56\n", want: both},
		{name: "kube-proxy has an empty clusterCIDR", proxy: "clusterCIDR: \"\"\n", want: own("10.32.0.0/12")},
		{name: "a setting wins", proxy: "clusterCIDR: 10.244.0.0/16\n", asked: both, want: both},
		{name: "a setting for IPv4 only", proxy: "clusterCIDR: 10.244.0.0/16\n", asked: slot.Universe{V4: both.V4}, want: own("10.1.0.0/16")},
		{name: "the range contains the services", services: "10.96.0.0/12", asked: own("10.96.0.0/11"), refused: "10.96.0.0/12"},
		{name: "the range lies within the services", services: "10.96.0.0/12", asked: own("10.97.0.0/16"), refused: "WEFT_IPALLOC_RANGE"},
		{name: "the range and the services are disjoint", services: "10.96.0.0/12", want: own("10.32.0.0/12")},
		{name: "an older server whose service overlaps", host: "10.33.0.1", refused: "10.33.0.1"},
		{name: "an older server whose service does not overlap", host: "10.96.0.1", want: own("10.32.0.0/12")},
		{name: "too small", proxy: "clusterCIDR: 10.244.0.0/29\n", refused: "/28"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Setenv("KUBERNETES_SERVICE_HOST", c.host)
			cl := newCluster(t, 1)
			if c.proxy != "" {
				cl.Set(configMap(c.proxy))
			}
			if c.services != "" {
				cl.Set(&networking.ServiceCIDR{ObjectMeta: meta.ObjectMeta{Name: "kubernetes"}, Spec: networking.ServiceCIDRSpec{CIDRs: []string{c.services}}})
			} else {
				cl.Refuse(func(_, resource string) int {
					if resource == "servicecidrs" {
						return http.StatusNotFound
					}
					return 0
				})
			}
			u, err := cl.client(t).Universe(t.Context(), c.asked, id)
			_, refused := errors.AsType[*RefusedError](err)
			if refused != (c.refused != "") || refused && !strings.Contains(err.Error(), c.refused) || !refused && (err != nil || u != c.want) {
				t.Errorf("the universe is %v, error %v; want %v, or a refusal with %q", u, err, c.want, c.refused)
			}
		})
	}
}

func TestOtherPodRangesOfKubeProxyAreReported(t *testing.T) {
	u := slot.Universe{V4: netip.MustParsePrefix("10.32.0.0/12"), V6: netip.MustParsePrefix("fd00:1::/96")}
	for _, c := range []struct {
		proxy ProxyConfig
		bad   bool
	}{
		{ProxyConfig{}, false},
		{ProxyConfig{ClusterCIDR: "10.32.0.0/12"}, false},
		{ProxyConfig{ClusterCIDR: "10.0.0.0/8,fd00:1::/56"}, false},
		{ProxyConfig{ClusterCIDR: "10.244.0.0/16"}, true},
		{ProxyConfig{ClusterCIDR: "10.32.0.0/16"}, true}, // the range is only a part of the universe
		{ProxyConfig{ClusterCIDR: "10.32.0.0/12,fd00:2::/56"}, true},
		{ProxyConfig{ClusterCIDR: "10.244.0.0/16", DetectLocalMode: "InterfaceNamePrefix"}, false},
		{ProxyConfig{DetectLocalMode: "NodeCIDR"}, true},
	} {
		if got := c.proxy.Mismatch(u, true).String(); (got != "") != c.bad || c.bad && !strings.Contains(got, "masquerades") {
			t.Errorf("kube-proxy's configuration %+v gives the problem %q, want one only for a mismatch", c.proxy, got)
		}
		if got := c.proxy.Mismatch(u, false).String(); strings.Contains(c.proxy.ClusterCIDR, "fd00:2") && got != "" {
			t.Errorf("without IPv6 the problem is %q, want none", got)
		}
	}
}
