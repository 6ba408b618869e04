package session

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/memberlist"

	"weft/mesh/meshtest"
	"weft/mesh/meshtest/eventually"
)

// passing returns n hosts in a row. Each reaches only its neighbours, and passes streams on to every other one.
func passing(t *testing.T, n int) []*end {
	t.Helper()
	net := meshtest.New(1)
	ends := make([]*end, n)
	find := func(c *Config) {
		c.Find = func(run string) (memberlist.Address, bool) {
			for _, e := range ends {
				if e.run == run {
					return e.at(), true
				}
			}
			return memberlist.Address{}, false
		}
	}
	for i := range ends {
		ends[i] = start(t, net, i+1, 1, find)
	}
	net.Partition(func(a, b netip.Addr) bool {
		x, y := int(a.As4()[3]), int(b.As4()[3])
		return x-y > 1 || y-x > 1
	})
	return ends
}

func (e *end) askOver(row []memberlist.Address, to memberlist.Address, use Use, timeout time.Duration) (*Stream, error) {
	ctx, end := context.WithTimeout(context.Background(), timeout)
	defer end()
	return e.AskOver(ctx, row, to, use)
}

// A stream goes over one or two members to a host that cannot be dialed. Both ends know each other as on a stream of
// their own, and bytes travel both ways.
func TestStreamsArePassedOn(t *testing.T) {
	for _, hosts := range []int{3, 4} {
		t.Run(fmt.Sprint(hosts-2, " in between"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ends := passing(t, hosts)
				first, last := ends[0], ends[hosts-1]
				if s, err := first.Ask(last.at(), Request, time.Second); err == nil {
					s.Close()
					t.Fatal("a host dialed one that it does not reach, want that it fails")
				}
				var row []memberlist.Address
				for _, e := range ends[1 : hosts-1] {
					row = append(row, e.at())
				}
				s, err := first.askOver(row, last.at(), Request, time.Second)
				if err != nil {
					t.Fatal(err)
				}
				defer s.Close()
				eventually.True(t, time.Second, "the stream is served", func() (ok bool) {
					last.locked(func() { ok = len(last.served) == 1 })
					return ok
				})
				there := last.served[0]
				if s.Peer.Run != last.run || there.Peer.Run != first.run || !bytes.Equal(s.Binding, there.Binding) || s.Use != Request || there.Use != Request {
					t.Errorf("the ends are %+v and %+v, want that they are the two hosts and share a binding", s.Peer, there.Peer)
				}
				if s.Peer.Addr != last.addr {
					t.Errorf("the stream ends at %v, want %v", s.Peer.Addr, last.addr)
				}
				for _, way := range [][2]io.ReadWriter{{s, there}, {there, s}} {
					if err := WriteShort(way[0], []byte("hello")); err != nil {
						t.Fatal(err)
					}
					if got, err := ReadShort(way[1], 100); err != nil || string(got) != "hello" {
						t.Errorf("received %q, %v; want hello", got, err)
					}
				}
				stop(t, ends...)
			})
		})
	}
}

// A member that should pass a stream on, but answers itself, is not taken for the other end. Nobody passes a stream to a
// run that it does not know, nor back.
func TestPassedStreamsEndWhereTheyShould(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ends := passing(t, 3)
		a, b, c := ends[0], ends[1], ends[2]
		row := []memberlist.Address{b.at()}
		for what, to := range map[string]memberlist.Address{
			"a run that ended":        {Addr: c.addr.String(), Name: runName(3, 7)},
			"the run that asks":       a.at(),
			"the run that passes":     b.at(),
			"a run without a name":    {Addr: c.addr.String()},
			"a run with a wrong name": {Addr: c.addr.String(), Name: strings.Repeat("x", maxRun+1)},
		} {
			if s, err := a.askOver(row, to, Request, time.Second); err == nil {
				s.Close()
				t.Errorf("a stream to %s was passed on, want a refusal", what)
			}
		}
		b.cfg.Find = func(string) (memberlist.Address, bool) { return b.at(), true } // itself
		if s, err := a.askOver(row, c.at(), Request, time.Second); err == nil {
			s.Close()
			t.Error("another host answered for the one that was addressed, want an error")
		}
		b.cfg.Find = nil
		_, err := a.askOver(row, c.at(), Request, time.Second)
		if e, ok := errors.AsType[*Refusal](err); !ok || e.Ours || !strings.Contains(err.Error(), meshtest.ID(2).String()+" does not pass the stream on") {
			t.Errorf("a host that passes nothing on says %v, want its refusal with its id", err)
		}
		stop(t, ends...)
	})
}

// What a member lets another one pass on is bounded in number, bytes and time.
func TestPassedStreamsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ends := passing(t, 3)
		a, b, c := ends[0], ends[1], ends[2]
		row := []memberlist.Address{b.at()}
		var open []*Stream
		for {
			s, err := a.askOver(row, c.at(), Request, time.Second)
			if err != nil {
				if !strings.Contains(err.Error(), "as many streams as it may") {
					t.Errorf("the stream after %d fails with %v, want that there are too many", len(open), err)
				}
				break
			}
			open = append(open, s)
		}
		if len(open) != maxPassedOf {
			t.Errorf("%d streams of one member are passed on at once, want %d", len(open), maxPassedOf)
		}
		if s, err := c.askOver(row, a.at(), Request, time.Second); err != nil {
			t.Errorf("meanwhile another member is refused: %v", err)
		} else {
			s.Close()
		}
		c.locked(func() {
			there := c.served[0]
			go func() { _, _ = io.Copy(io.Discard, there) }() // it ends with the stream
		})
		sent := 0
		for chunk := make([]byte, 1024); ; sent += len(chunk) {
			if _, err := open[0].Write(chunk); err != nil {
				break
			}
		}
		if sent > 2*passBytes {
			t.Errorf("%d bytes were passed on, want at most %d and what is on its way", sent, passBytes)
		}
		begun := time.Now()
		if _, err := open[1].Read(make([]byte, 1)); err == nil || time.Since(begun) > passFor {
			t.Errorf("an idle stream ended after %v with %v, want an error within %v", time.Since(begun), err, passFor)
		}
		for _, s := range open {
			s.Close()
		}
		eventually.True(t, time.Second, "no stream is counted any more", func() bool {
			b.passes.mu.Lock()
			defer b.passes.mu.Unlock()
			return b.passes.total == 0 && len(b.passes.of) == 0
		})
		stop(t, ends...)
	})
}
