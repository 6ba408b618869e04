package meshtest

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"weft/mesh/peer"
)

// words is a replica whose state is the set of all words received.
type words struct {
	mu   sync.Mutex
	said map[string]bool
}

func (*words) Name() string { return "words" }

func (w *words) Full() []byte { return []byte(w.String()) }

func (w *words) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []byte
	for _, word := range slices.Sorted(maps.Keys(w.said)) {
		out = append(out, word...)
	}
	return string(out)
}

func (w *words) Merge(data []byte) (news []byte, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for word := range bytes.SplitSeq(data, nil) { // each letter is a word
		if !w.said[string(word)] {
			w.said[string(word)] = true
			news = append(news, word...)
		}
	}
	return news, nil
}

func cluster(c *Cluster, n int, twin func()) (hosts []*Host, states []*words) {
	echo := func(_ context.Context, from peer.ID, payload []byte) ([]byte, error) {
		if len(payload) == 0 {
			return nil, errors.New("nothing to say")
		}
		return append(payload, from[0]), nil
	}
	for i := range n {
		hosts = append(hosts, c.Host(peer.ID{byte(i + 1)}, nil))
		states = append(states, &words{said: map[string]bool{}})
		hosts[i].Start(0, HostConfig{Replicas: []Replica{states[i]}, Handlers: map[string]Handler{"echo": echo}, Twin: twin})
	}
	time.Sleep(joinLag)
	return hosts, states
}

// Deltas spread in spite of loss, and across a partition after it has healed.
func TestDeltasSpreadDespiteLossAndPartition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := NewCluster(1)
		defer c.Close()
		c.SetConditions(Conditions{Loss: 0.3, Duplicate: 0.3, Delay: time.Second})
		hosts, states := cluster(c, 8, nil)
		heard := func(want string) (n int) {
			for _, s := range states {
				if s.String() == want {
					n++
				}
			}
			return n
		}
		say := func(i int, word string) {
			_, _ = states[i].Merge([]byte(word))
			hosts[i].Broadcast("words", []byte(word))
		}
		say(0, "a")
		time.Sleep(time.Minute)
		if n := heard("a"); n != 8 {
			t.Errorf("%d of 8 hosts received the broadcast; want all", n)
		}
		c.Partition(func(n *Host) int { return int(n.id[0]) % 2 })
		say(0, "b")
		time.Sleep(time.Minute)
		if n := heard("ab"); n != 4 {
			t.Errorf("%d hosts have the word during the partition, want 4", n)
		}
		if hosts[0].Reachable(hosts[1].id) || !hosts[0].Reachable(hosts[2].id) || len(hosts[0].Others()) != 7 {
			t.Error("during the partition host 1 is reachable, host 2 is not, or Others lacks peers; want only host 2 reachable, and 7 others")
		}
		c.Heal()
		time.Sleep(time.Minute)
		if n := heard("ab"); n != 8 {
			t.Errorf("after the partition %d of 8 hosts have the word; want all", n)
		}
	})
}

// Requests are answered, refused or time out. A stopped peer still counts as reachable until the
// stop is noticed, and the state that it announced is kept.
func TestRequestsAreAnsweredRefusedOrTimeOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := NewCluster(1)
		defer c.Close()
		hosts, _ := cluster(c, 2, nil)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if got, err := hosts[0].Request(ctx, hosts[1].id, "echo", []byte{7}); err != nil || !bytes.Equal(got, []byte{7, 1}) {
			t.Errorf("the echo returned %v, error %v; want [7 1]", got, err)
		}
		if _, err := hosts[0].Request(ctx, hosts[1].id, "echo", nil); !errors.Is(err, refused("nothing to say")) {
			t.Errorf("a refused request returned %v; want its refusal", err)
		}
		hosts[1].Announce(Stopped)
		if err := hosts[1].Stop(); err != nil {
			t.Error(err)
		}
		if !hosts[0].Reachable(hosts[1].id) {
			t.Error("right after its stop the host is unreachable; want it reachable until the stop is noticed")
		}
		if _, err := hosts[0].Request(ctx, hosts[1].id, "echo", []byte{7}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("before the stop is noticed: got %v, want DeadlineExceeded", err)
		}
		if _, err := hosts[0].Request(t.Context(), hosts[1].id, "echo", []byte{7}); !errors.Is(err, ErrUnreachable) || !hosts[0].Stopped(hosts[1].id) {
			t.Errorf("after the stop is noticed: got %v, want ErrUnreachable", err)
		}
	})
}

// If two runs of one peer reach each other, Twin of the later one is called.
func TestLaterRunWithSameIdentityIsNotified(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := NewCluster(1)
		defer c.Close()
		told := 0
		hosts, _ := cluster(c, 1, func() { t.Error("the earlier run of the host was called; want only the later one") })
		twin := c.Host(hosts[0].id, hosts[0].Known())
		twin.Start(1, HostConfig{Twin: func() { told++; _ = twin.Stop() }})
		time.Sleep(time.Minute)
		synctest.Wait()
		if told != 0 {
			t.Error("the two runs do not reach each other, but Twin was called; want no call")
		}
		c.Heal()
		time.Sleep(TwinLag)
		synctest.Wait()
		if told != 1 {
			t.Errorf("the later run was told %d times, want once", told)
		}
	})
}

// A host runs until it stops, and its error is not lost. Its requests are counted, and it can be slow.
func TestHostRunsUntilItStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := NewCluster(1)
		echo := func(_ context.Context, _ peer.ID, payload []byte) ([]byte, error) { return payload, nil }
		errBroken := errors.New("broken")
		a, b := c.Host(ID(1), nil), c.Host(ID(2), nil)
		a.Start(0, HostConfig{Run: func(ctx context.Context) error { <-ctx.Done(); return errBroken }})
		b.Start(0, HostConfig{Handlers: map[string]Handler{"echo": echo}})
		time.Sleep(joinLag)
		b.Slow(3 * time.Second)
		start := time.Now()
		if _, err := a.Request(t.Context(), ID(2), "echo", []byte{7}); err != nil || time.Since(start) < 3*time.Second {
			t.Errorf("a reply after %v, %v, want one after 3 s", time.Since(start), err)
		}
		if a.Requests("echo") != 1 || a.Requests("other") != 0 || c.Requests("") != 1 {
			t.Errorf("%d and %d requests were counted, %d in all; want 1, 0 and 1", a.Requests("echo"), a.Requests("other"), c.Requests(""))
		}
		c.Isolate(a)
		time.Sleep(failLag)
		if a.Reachable(ID(2)) {
			t.Error("an isolated host reaches another host; want it unreachable")
		}
		if err := c.Stop(); !errors.Is(err, errBroken) {
			t.Errorf("the hosts ended with %v, want %v", err, errBroken)
		}
	})
}
