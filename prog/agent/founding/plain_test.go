package founding

import (
	"context"
	"testing"

	"weft/ipam"
	"weft/ipam/ring"
	"weft/mesh/peer"
	"weft/mesh/secret"
	"weft/prog/agent/config"
	"weft/prog/agent/statedir"
	"weft/prog/agent/trust"
	"weft/router/routertest"
)

func TestMain(m *testing.M) { routertest.Main(m) }

// plain lets a host with a state folder decide, in a network namespace where nothing is routed.
func plain(t *testing.T, dir string, o config.Options) (f Founding, err error) {
	t.Helper()
	store := open(t, dir)
	defer store.Close()
	o.StateDir = dir
	routertest.New(t).Do(func() { f, err = Plain{Options: o, Store: store}.Found(t.Context()) })
	return f, err
}

// folder makes a state folder with a token.
func folder(t *testing.T, token secret.Token) string {
	t.Helper()
	dir := t.TempDir()
	if err := statedir.WriteSecret(dir, token); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestAHostWithoutTargetsFoundsARing(t *testing.T) {
	password, err := secret.FromPassword("a password of all hosts", "")
	if err != nil {
		t.Fatal(err)
	}
	dir := folder(t, password)
	f, err := plain(t, dir, config.Options{})
	if err != nil || f.Ring == nil || f.Election != nil || len(f.Ring.Owned()[f.Trust.Self]) != 1 {
		t.Fatalf("%+v, error %v; want a ring that this host owns alone, and no vote", f, err)
	}
	if kept, err := statedir.Secret(dir); err != nil || kept.Cluster.IsZero() || kept.Secret != password.Secret || f.Ring.Cluster != kept.Cluster {
		t.Errorf("the stored token has no cluster id, or another one than the ring; error %v; want the ring's", err)
	}
}

func TestAHostWithTargetsVotes(t *testing.T) {
	dir := folder(t, secret.Token{Cluster: secret.ClusterID{1}})
	// 127.0.0.1 is this host itself.
	f, err := plain(t, dir, config.Options{Targets: []string{"192.0.2.2", "127.0.0.1", "192.0.2.3:6783"}})
	if err != nil || f.Ring != nil || f.Election == nil || f.Election.Terms.Expect != 3 || len(f.Targets) != 3 {
		t.Fatalf("%+v, error %v; want a vote of 3, and all targets", f, err)
	}
	if _, cluster, u := f.Election.Candidate(); cluster != f.Trust.Token.Cluster || u.Validate() != nil {
		t.Errorf("the candidate has cluster %x and universe %v, want the token's cluster, and a valid universe", cluster, u)
	}
	if f, err = plain(t, dir, config.Options{Init: config.Init{Expect: 5}}); err != nil || f.Election == nil || f.Election.Terms.Expect != 5 || len(f.Targets) != 3 {
		t.Errorf("with --ipalloc-init consensus=5: %+v, error %v; want a vote of 5", f, err)
	}
}

// With --discover a host without targets founds only if it finds no other host.
func TestAHostThatDiscoversFoundsOnlyIfItFindsNone(t *testing.T) {
	for _, alone := range []bool{true, false} {
		dir := folder(t, secret.Token{Cluster: secret.ClusterID{1}})
		store := open(t, dir)
		var f Founding
		var err error
		routertest.New(t).Do(func() {
			f, err = Plain{Options: config.Options{StateDir: dir, Discover: true, GossipPort: 6783}, Store: store, Seek: func(context.Context, trust.Trust) (bool, error) { return alone, nil }}.Found(t.Context())
		})
		store.Close()
		if err != nil || (f.Ring != nil) != alone || f.Election != nil {
			t.Errorf("finds no other host: %v: %+v, error %v; want a ring only then, and no vote", alone, f, err)
		}
	}
	f, err := plain(t, folder(t, secret.Token{Cluster: secret.ClusterID{1}}), config.Options{Discover: true, GossipPort: 6783, Targets: []string{"192.0.2.2"}})
	if err != nil || f.Ring != nil || f.Election == nil {
		t.Errorf("with a target: %+v, error %v; want a vote", f, err)
	}
}

func TestSeedsMakeTheSameRingOnAllHosts(t *testing.T) {
	token := secret.Token{Cluster: secret.ClusterID{1}}
	var rings []*ring.Ring
	for _, seeds := range [][]peer.ID{{{1}, {2}}, {{2}, {1}, {2}}} {
		f, err := plain(t, folder(t, token), config.Options{Init: config.Init{Seeds: seeds}, Targets: []string{"192.0.2.2"}})
		if err != nil || f.Ring == nil || f.Election != nil {
			t.Fatalf("%+v, error %v; want a ring, and no vote", f, err)
		}
		rings = append(rings, f.Ring)
	}
	if !rings[0].Equal(*rings[1]) || len(rings[0].Owned()) != 2 {
		t.Errorf("the rings are %v and %v, want equal ones with two owners", rings[0], rings[1])
	}
	if _, err := plain(t, folder(t, secret.Token{}), config.Options{Init: config.Init{Seeds: []peer.ID{{1}}}}); err == nil {
		t.Error("seeds without a cluster id were accepted, want an error: each host would make another ring")
	}
}

func TestAnObserverAndAHostWithARingFoundNoRing(t *testing.T) {
	dir := folder(t, secret.Token{Cluster: secret.ClusterID{1}})
	if f, err := plain(t, dir, config.Options{Init: config.Init{Observer: true}}); err != nil || f.Ring != nil || f.Election != nil {
		t.Errorf("an observer: %+v, error %v; want no ring, and no vote", f, err)
	}
	if err := statedir.MarkLaunched(dir, true); err != nil {
		t.Fatal(err)
	}
	store := open(t, dir)
	if err := store.Update(ipam.Change{Ring: []byte("a ring")}); err != nil {
		t.Fatal(err)
	}
	store.Close()
	if f, err := plain(t, dir, config.Options{}); err != nil || f.Ring != nil || f.Election != nil || statedir.Launched(dir) != nil {
		t.Errorf("on a host with a ring: founding %+v, error %v, stored decision of launch %v; want no new ring, no vote, and no decision left", f, err, statedir.Launched(dir))
	}
}
