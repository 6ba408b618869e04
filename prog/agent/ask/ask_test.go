package ask

import (
	"context"
	"errors"
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"weft/mesh/peer"
)

// slow is a mesh of peers that take their time to answer.
type slow struct {
	peers  int
	takes  func(n byte) time.Duration
	absent byte // the first byte of the peer that cannot be reached; 0: all can be reached

	now, most atomic.Int32 // the number of requests under way, now and at most
}

func (s *slow) Others() (ids []peer.ID) {
	for n := range s.peers {
		ids = append(ids, peer.ID{byte(n + 1)})
	}
	return ids
}

func (s *slow) Reachable(id peer.ID) bool { return id[0] != s.absent }

func (s *slow) Request(ctx context.Context, to peer.ID, kind string, payload []byte) ([]byte, error) {
	if n := s.now.Add(1); n > s.most.Load() {
		s.most.Store(n)
	}
	defer s.now.Add(-1)
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(s.takes(to[0])):
		return append([]byte(kind+" "), payload...), nil
	}
}

func TestAtMostSixteenRequestsRunAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, begun, answers := &slow{peers: 40, takes: func(byte) time.Duration { return time.Second }}, time.Now(), 0
		All(t.Context(), s, "usage", []byte("now"), func(_ peer.ID, answer []byte, err error) {
			if answers++; err != nil || string(answer) != "usage now" {
				t.Errorf("answer %q, error %v; want the request's text, and no error", answer, err)
			}
		})
		if took := time.Since(begun); s.most.Load() != 16 || answers != 40 || took != 3*time.Second {
			t.Errorf("at most %d peers were asked at once, and %d answered, after %v; want 16, 40, 3s", s.most.Load(), answers, took)
		}
	})
}

// Calls of f never overlap, so f needs no lock.
func TestAnswersComeOneAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &slow{peers: 100, takes: func(byte) time.Duration { return time.Second }}
		var collecting atomic.Int32
		All(t.Context(), s, "usage", nil, func(peer.ID, []byte, error) {
			if n := collecting.Add(1); n != 1 {
				t.Errorf("f runs %d times at once, want once", n)
			}
			runtime.Gosched() // another call of f would run here, if it were allowed
			collecting.Add(-1)
		})
	})
}

func TestASilentPeerTimesOutAndDelaysNoOtherPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &slow{peers: 3, absent: 3, takes: func(n byte) time.Duration {
			if n == 1 {
				return time.Hour
			}
			return time.Second
		}}
		begun, after, errs := time.Now(), map[byte]time.Duration{}, map[byte]error{}
		All(t.Context(), s, "usage", nil, func(id peer.ID, _ []byte, err error) { after[id[0]], errs[id[0]] = time.Since(begun), err })
		if !errors.Is(errs[1], context.DeadlineExceeded) || after[1] != Timeout {
			t.Errorf("the silent peer: error %v after %v, want its deadline after Timeout", errs[1], after[1])
		}
		if errs[2] != nil || after[2] != time.Second {
			t.Errorf("the slow peer: error %v after %v, want an answer after 1s", errs[2], after[2])
		}
		if !errors.Is(errs[3], ErrUnreachable) || after[3] != 0 {
			t.Errorf("the unreachable peer: error %v after %v, want ErrUnreachable at once", errs[3], after[3])
		}
	})
}

func TestCancellingTheCallerEndsAllRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, begun, answers := &slow{peers: 20, takes: func(byte) time.Duration { return time.Hour }}, time.Now(), 0
		ctx, stop := context.WithTimeout(t.Context(), time.Second)
		defer stop()
		All(ctx, s, "usage", nil, func(_ peer.ID, _ []byte, err error) {
			if answers++; err == nil {
				t.Error("a request that the caller ended got an answer, want an error")
			}
		})
		if took := time.Since(begun); took != time.Second || answers != 20 {
			t.Errorf("%d calls of f after %v, want 20 after 1s", answers, took)
		}
	})
}

// One member's requests are limited, and do not use up those of another.
func TestLimitIsPerMember(t *testing.T) {
	l, now, allowed := Limit{Every: time.Second, Burst: 4}, time.Unix(1000, 0), 0
	for range 100 {
		if l.Allow(peer.ID{1}, now) {
			allowed++
		}
	}
	if allowed != 4 || !l.Allow(peer.ID{2}, now) || !l.Allow(peer.ID{1}, now.Add(time.Second)) || l.Allow(peer.ID{1}, now.Add(time.Second)) {
		t.Errorf("%d requests at once are allowed; want 4, one of another member, and one more of the first each second", allowed)
	}
}
