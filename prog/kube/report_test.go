package kube

import (
	"context"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	core "k8s.io/api/core/v1"

	"weft/mesh/meshtest/eventually"
	"weft/prog/kube/kubetest"
)

// Events are written on the Node, and the same event is not repeated for a while.
func TestRepeatedEventsAreWrittenOnce(t *testing.T) {
	c := newCluster(t, 1)
	r := NewReporter(c.client(t), "n0", slog.New(slog.DiscardHandler))
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	r.Tell(ReasonReclaimed, "took over 7 addresses")
	r.Tell(ReasonReclaimed, "took over 7 addresses")
	r.Tell(ReasonReclaimed, "took over 8 addresses")
	r.Warn(ReasonMismatch, strings.Repeat("ä", 2000))
	eventually.True(t, soon, "three events are written", func() bool { return len(c.All("events")) >= 3 })
	stop()
	if err := <-done; err != nil || len(c.All("events")) != 3 {
		t.Fatalf("Run returned %v, and the events are %+v; want 3", err, c.All("events"))
	}
	for _, o := range c.All("events") {
		if e := o.(*core.Event); e.InvolvedObject.UID != "uid-0" || len(e.Message) > 1024 || !strings.HasPrefix(e.Name, "n0.") || e.Source.Component != "weft" {
			t.Errorf("the event is %+v; want one of the Node, of at most 1024 bytes", e)
		}
	}
	e, now := event{"Normal", ReasonReclaimed, "later"}, time.Now()
	if !r.fresh(e, now) || r.fresh(e, now.Add(quiet-time.Second)) || !r.fresh(e, now.Add(quiet)) {
		t.Error("the same event was repeated before ten minutes, or not afterwards; want it repeated after ten minutes")
	}
	c.Refuse(func(string, string) int { return http.StatusForbidden })
	if err := r.WarnNow(t.Context(), ReasonInvalidSetting, "x"); err == nil || !strings.Contains(err.Error(), "manifest") {
		t.Errorf("a forbidden event returned %v; want an error with the fix", err)
	}
}

// SetAvailable sets its condition and keeps the Node's other data.
func TestSetAvailableChangesOnlyItsCondition(t *testing.T) {
	c := newCluster(t, 1)
	n := kubetest.Node("n0", "uid-0", "192.0.2.1", "2001:db8::1", "127.0.0.1", "fe80::1%eth0")
	n.Status.Conditions = append(n.Status.Conditions, core.NodeCondition{Type: core.NodeNetworkUnavailable, Status: core.ConditionTrue, Reason: "NoRouteCreated"})
	c.Set(n)
	r := NewReporter(c.client(t), "n0", slog.New(slog.DiscardHandler))
	if before, err := c.client(t).Node(t.Context(), "n0"); err != nil || before.Unavailable != "True" || len(before.Addrs) != 2 {
		t.Errorf("before, the Node is %+v, error %v; want NetworkUnavailable", before, err)
	}
	if err := r.SetAvailable(t.Context()); err != nil {
		t.Fatal(err)
	}
	if after, err := c.client(t).Node(t.Context(), "n0"); err != nil || after.Unavailable != "False" || !after.Up || !after.Ready || after.UID != "uid-0" {
		t.Errorf("after SetAvailable, the Node is %+v, error %v; want it available, and otherwise unchanged", after, err)
	}
	for range 2 { // the second time, there is no condition to remove
		if err := r.TakeBack(t.Context()); err != nil {
			t.Fatal(err)
		}
		if after, err := c.client(t).Node(t.Context(), "n0"); err != nil || after.Unavailable != "" || after.Up || !after.Ready {
			t.Errorf("after TakeBack, the Node is %+v, error %v; want no condition of Weft", after, err)
		}
	}
	c.Set(n) // the condition of another network plugin stays
	if err := r.TakeBack(t.Context()); err != nil {
		t.Fatal(err)
	}
	if after, err := c.client(t).Node(t.Context(), "n0"); err != nil || after.Unavailable != "True" {
		t.Errorf("TakeBack changed another program's condition to %+v, want it kept; error %v", after, err)
	}
	if err := NewReporter(c.client(t), "n7", slog.New(slog.DiscardHandler)).TakeBack(t.Context()); err != nil {
		t.Errorf("TakeBack on a deleted Node returned %v, want nil", err)
	}
}

// Nodes are added, changed and deleted, and stored with the other objects.
func TestSourceFollowsNodes(t *testing.T) {
	api := kubetest.New()
	api.Set(kubetest.Node("n1", "u1", "192.0.2.1"))
	far := kubetest.Node("n2", "u2", "192.0.2.2", "2001:db8::2")
	far.Status.Images = []core.ContainerImage{{Names: []string{"large"}}}
	api.Set(far)
	f := follow(t, api, nil)
	st := f.becomes(t, "known", func(st *State) bool { return st.Live && len(st.Nodes) == 2 })
	if n := st.Nodes["n2"]; n.UID != "u2" || len(n.Addrs) != 2 || !n.Ready {
		t.Errorf("Node n2 is %+v; want UID u2, both addresses, and ready", n)
	}
	notReady := kubetest.Node("n2", "u2", "192.0.2.2")
	notReady.Status.Conditions[0].Status = core.ConditionUnknown
	api.Set(notReady)
	f.becomes(t, "not ready", func(st *State) bool { return !st.Nodes["n2"].Ready && len(st.Nodes["n2"].Addrs) == 1 })
	api.Set(kubetest.Node("n2", "u3", "192.0.2.2"))
	f.becomes(t, "made anew", func(st *State) bool { return st.Nodes["n2"].UID == "u3" })
	api.Delete(kubetest.Node("n2", "u3"))
	f.becomes(t, "gone", func(st *State) bool { return len(st.Nodes) == 1 })
	f.becomes(t, "kept", func(*State) bool { return f.saved.Load() != nil })
	s, err := New(Config{Kept: *f.saved.Load()})
	if err != nil || s.State().Nodes["n1"].UID != "u1" || s.State().Live {
		t.Errorf("with a stored state, New returned %v, and the state is %+v; want the stored Node, not live", err, s.State())
	}
}
