package kube

import (
	"context"
	crand "crypto/rand"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"

	"weft/mesh/meshtest/eventually"
	"weft/mesh/secret"
	"weft/prog/kube/kubetest"
)

// keeping is a Keeper with its reports.
type keeping struct {
	*Keeper
	mu       sync.Mutex
	problem  string
	restored int
}

func (c *cluster) keeper(t *testing.T, own Founding) *keeping {
	k := &keeping{}
	k.Keeper = &Keeper{
		Client: c.client(t), Namespace: "weft", Own: own, Supervised: true, Log: slog.New(slog.DiscardHandler), pause: time.Millisecond,
		Problem:  func(text string) { k.mu.Lock(); k.problem = text; k.mu.Unlock() },
		Restored: func(string) { k.mu.Lock(); k.restored++; k.mu.Unlock() },
	}
	return k
}

func (k *keeping) says() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.problem
}

func daemonSet(deleted *meta.Time) *apps.DaemonSet {
	return &apps.DaemonSet{ObjectMeta: meta.ObjectMeta{Namespace: "weft", Name: "weft", DeletionTimestamp: deleted}}
}

// A Secret that is missing or older than the network is restored, so that new nodes join. All agents
// agree, and one of them writes.
func TestKeeperRestoresSecret(t *testing.T) {
	c := newCluster(t, 4)
	c.Set(daemonSet(nil))
	f := run(t, c.bootstrap(t, 0, 0))[0]
	ctx, stop := context.WithCancel(t.Context())
	var all []*keeping
	var group sync.WaitGroup
	for range 3 {
		k := c.keeper(t, f)
		all = append(all, k)
		group.Go(func() {
			if err := k.Run(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	defer func() {
		stop()
		c.HangUp()
		c.http.CloseClientConnections()
		group.Wait()
	}()
	same := func() bool {
		for _, o := range c.All("secrets") {
			var said Founding
			s := o.(*core.Secret)
			named, err := said.read(s.Annotations)
			said.Token, _ = tokenOf(s)
			return err == nil && named && said == f
		}
		return false
	}
	edit := func(change func(*core.Secret)) {
		s := c.secret(t).DeepCopy()
		change(s)
		c.Set(s)
	}
	for name, harm := range map[string]func(){
		"deleted":           func() { c.Delete(c.secret(t)) },
		"without a founder": func() { edit(func(s *core.Secret) { s.Annotations = nil }) },
		"as before it was founded": func() {
			edit(func(s *core.Secret) {
				delete(s.Annotations, annotationFounded)
				s.Annotations[annotationFounder] = "0011223344556677"
			})
		},
		"without a token":                     func() { edit(func(s *core.Secret) { s.Data = nil }) },
		"with a universe that cannot be read": func() { edit(func(s *core.Secret) { s.Annotations[annotationUniverse] = "10.32.0.0/12" }) },
	} {
		harm()
		eventually.Nil(t, soon, "the Secret is restored after this change: "+name, func() error {
			if !same() {
				return fmt.Errorf("it is %+v", c.All("secrets"))
			}
			return nil
		})
	}
	if late := run(t, c.bootstrap(t, 1, 0))[0]; late != f {
		t.Errorf("a new node joined with %+v; want %+v", late, f)
	}
	for _, k := range all {
		if text := k.says(); text != "" {
			t.Errorf("the Secret is correct, but the Keeper reports %q, want nothing", text)
		}
	}
}

// Many agents notice at once, but few of them write.
func TestFewAgentsRestoreSecret(t *testing.T) {
	c := newCluster(t, 1)
	c.Set(daemonSet(nil))
	f := run(t, c.bootstrap(t, 0, 0))[0]
	c.Delete(c.secret(t))
	var posts atomic.Int64
	c.Refuse(func(verb, resource string) int {
		if verb == "post" && resource == "secrets" {
			posts.Add(1)
		}
		return kubetest.Serve
	})
	var group sync.WaitGroup
	for range 100 {
		k := c.keeper(t, f)
		k.pause = 2 * time.Second
		group.Go(func() { k.keep(t.Context(), nil) })
	}
	group.Wait()
	if n := posts.Load(); n > 20 {
		t.Errorf("%d of 100 agents wrote the Secret, want at most 20", n)
	}
}

// While Weft is being removed, the Secret is not restored. A Secret of another network is kept and
// reported.
func TestKeeperDoesNotOverwriteTheSecretOfAnotherNetwork(t *testing.T) {
	other, err := secret.New(crand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	now := meta.Now()
	foreign := func(s *core.Secret) { s.Data[tokenKey] = []byte(other.Reveal()) }
	for name, x := range map[string]struct {
		prepare func(*cluster)
		says    string
		present bool
	}{
		"the DaemonSet is gone":          {func(c *cluster) { c.Delete(c.secret(t)) }, "", false},
		"the DaemonSet is being deleted": {func(c *cluster) { c.Delete(c.secret(t)); c.Set(daemonSet(&now)) }, "", false},
		"the namespace is gone": {func(c *cluster) {
			c.Delete(c.secret(t))
			c.Set(daemonSet(nil))
			c.Refuse(func(verb, _ string) int {
				if verb == "post" {
					return http.StatusNotFound
				}
				return kubetest.Serve
			})
		}, "", false},
		"another network's": {func(c *cluster) { c.Set(daemonSet(nil)); s := c.secret(t).DeepCopy(); foreign(s); c.Set(s) }, "another network", true},
		"another founder's": {func(c *cluster) {
			c.Set(daemonSet(nil))
			s := c.secret(t).DeepCopy()
			s.Annotations[annotationFounder] = "0011223344556677"
			c.Set(s)
		}, "0011223344556677", true},
		"a token of another network": {func(c *cluster) {
			c.Set(daemonSet(nil))
			s := c.secret(t).DeepCopy()
			s.Data[tokenKey] = []byte("weft2-of-a-later-version")
			c.Set(s)
		}, "data.token", true},
		"the role of an older release": {func(c *cluster) {
			c.Delete(c.secret(t))
			c.Refuse(func(_, resource string) int {
				if resource == "daemonsets" {
					return http.StatusForbidden
				}
				return kubetest.Serve
			})
		}, "apply Weft's manifest", false},
	} {
		c := newCluster(t, 2)
		f := run(t, c.bootstrap(t, 0, 0))[0]
		x.prepare(c)
		before := fmt.Sprint(c.All("secrets"))
		k := c.keeper(t, f)
		k.keep(t.Context(), nil)
		if text := k.says(); (text == "") != (x.says == "") || !strings.Contains(text, x.says) || k.restored > 0 {
			t.Errorf("%s: the Keeper reports %q, want %q and no restored Secret", name, text, x.says)
		}
		if after := fmt.Sprint(c.All("secrets")); len(c.All("secrets")) > 0 != x.present || after != before {
			t.Errorf("%s: the Secrets changed to %s\nwant: %s", name, after, before)
		}
		if strings.Contains(k.says(), other.Reveal()) || strings.Contains(k.says(), f.Token.Reveal()) {
			t.Errorf("%s: the report contains the token, want it without", name)
		}
	}
}

// No node founds while another Node shows that there is a network, whatever the Secret contains.
func TestNoSecondNetworkIsFounded(t *testing.T) {
	up := core.NodeCondition{Type: core.NodeNetworkUnavailable, Status: core.ConditionFalse, Reason: ReasonUp}
	for name, secretIs := range map[string]func(*cluster){
		"that is missing": func(c *cluster) {},
		"with only a token": func(c *cluster) {
			token, err := secret.New(crand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			c.Set(newSecret("weft", token))
		},
		"whose founder is gone":      func(c *cluster) { stuck(t, c, 2); c.Delete(kubetest.Node("n2", "uid-2")) },
		"whose founder is this node": func(c *cluster) { stuck(t, c, 0) },
	} {
		for shows, show := range map[string]func(*cluster, *Bootstrap){
			"another Node has the condition": func(c *cluster, _ *Bootstrap) {
				n := kubetest.Node("n1", "uid-1", "192.0.2.2")
				n.Status.Conditions = append(n.Status.Conditions, up)
				c.Set(n)
			},
			"another Node's agent answers": func(_ *cluster, b *Bootstrap) {
				b.Answers = func(_ context.Context, a netip.Addr) bool { return a == netip.MustParseAddr("192.0.2.2") }
			},
		} {
			c := newCluster(t, 3)
			secretIs(c)
			b := c.bootstrap(t, 0, 0)
			show(c, b)
			before := fmt.Sprint(c.All("secrets"))
			f, _, err := b.step(t.Context())
			if err == nil || f.Founded || !strings.Contains(err.Error(), "n1") || !strings.Contains(err.Error(), "does not found another one") {
				t.Errorf("Secret %s, %s: the step returned %+v, error %v; want a refusal that names n1", name, shows, f, err)
			}
			if after := fmt.Sprint(c.All("secrets")); after != before {
				t.Errorf("Secret %s, %s: the Secrets changed to %s, want them kept", name, shows, after)
			}
		}
	}
	// Neither this Node's own condition nor that of another network plugin prevents founding.
	c := newCluster(t, 2)
	for n, reason := range []string{ReasonUp, "RouteCreated"} {
		node := kubetest.Node(nodeName(n), fmt.Sprintf("uid-%d", n), "192.0.2.1")
		node.Status.Conditions = append(slices.Clone(node.Status.Conditions), core.NodeCondition{Type: core.NodeNetworkUnavailable, Status: core.ConditionFalse, Reason: reason})
		c.Set(node)
	}
	if f := run(t, c.bootstrap(t, 0, 0))[0]; !f.Founded {
		t.Errorf("the founding is %+v, want one that is founded", f)
	}
	// After the loss of all disks, or the removal of an earlier release, each node removes its own
	// condition.
	c = newCluster(t, 3)
	var all []*Bootstrap
	for n := range 3 {
		node := kubetest.Node(nodeName(n), fmt.Sprintf("uid-%d", n), "192.0.2.1")
		node.Status.Conditions = append(node.Status.Conditions, up)
		c.Set(node)
		all = append(all, c.bootstrap(t, n, 0))
	}
	run(t, all...)
}

// A founder whose check for other networks takes long is still the founder.
func TestASlowFounderStaysTheFounder(t *testing.T) {
	c := newCluster(t, 2)
	b := c.bootstrap(t, 0, 0)
	b.Answers = func(context.Context, netip.Addr) bool {
		b.marked = b.marked.Add(-2 * trust) // as if twice the time in trust had passed
		return false
	}
	if f, mine, err := b.Run(t.Context()); err != nil || !mine || f.Founder != b.Self {
		t.Errorf("a slow founder got %+v, mine %v, error %v; want its own founding", f, mine, err)
	}
}
