package mesh

import (
	"bytes"
	"context"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/memberlist"

	"weft/mesh/meshtest"
	"weft/mesh/meshtest/eventually"
	"weft/mesh/secret"
)

// A host to which no other host can connect gets replies on the streams that it opened.
func TestHostBehindNATGetsReplies(t *testing.T) {
	for name, behind := range map[string]func(*meshtest.Network, netip.Addr){"a firewall": (*meshtest.Network).Firewall, "NAT": (*meshtest.Network).NAT} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &cluster{t, meshtest.New(41)}
				s.net.HangDials()
				behind(s.net, address(2).Addr())
				a, b := s.start(1, nil, nil), s.start(2, nil, []string{address(1).Addr().String()})
				eventually.True(t, 10*time.Second, "host b reaches host a", func() bool { return b.Reachable(a.Self()) })
				for range 3 {
					ctx, cancel := context.WithTimeout(t.Context(), time.Second)
					got, err := b.Request(ctx, a.Self(), "echo", []byte("hello"))
					if want := b.Self().String() + " hello"; err != nil || string(got) != want {
						t.Errorf("the echo returned %q, error %v; want %q", got, err, want)
					}
					if _, err := b.Request(ctx, a.Self(), "echo", nil); err == nil || !strings.HasSuffix(err.Error(), "refused: nothing to echo") {
						t.Errorf("a refused request returned %v; want the peer's reason", err)
					}
					cancel()
				}
				if n := a.echoed.Load(); n != 6 {
					t.Errorf("6 requests were handled %d times; want 6", n)
				}
				s.end(a, b)
			})
		})
	}
}

// A request ends with its context, and leaves no stream open.
func TestRequestEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &cluster{t, meshtest.New(42)}
		a := s.start(1, nil, nil)
		b := s.start(2, nil, []string{address(1).Addr().String()})
		eventually.True(t, 10*time.Second, "host b reaches host a", func() bool { return b.Reachable(a.Self()) })
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		if _, err := b.Request(ctx, a.Self(), "slow", nil); err == nil || time.Since(start) != time.Second {
			t.Errorf("the request ended after %v with %v, want 1s and an error", time.Since(start), err)
		}
		s.end(a, b)
	})
}

// memberlist parses a request on a stream as a user message, so that older versions receive it.
func TestMemberlistParsesRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net, heard := meshtest.New(43), make(chan []byte, 1)
		conf := memberlist.DefaultLANConfig()
		conf.Name, conf.Transport, conf.SecretKey, conf.LogOutput = "old", net.Join(address(1)), secret.Secret{1}.GossipKey(), discard{}
		conf.Delegate = hearer{heard: heard}
		list, err := memberlist.Create(conf)
		if err != nil {
			t.Fatal(err)
		}
		d, err := newAdmission(net.Join(address(2)), &dialer{}, secret.Secret{1}.GossipKey(), func(string, string) {}, func(*stream) bool { return false })
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range [][]byte{[]byte("x"), bytes.Repeat([]byte("long "), 20000)} {
			conn, err := d.Transport.DialTimeout(address(1).String(), time.Second)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := conn.Write(d.seal(want)); err != nil {
				t.Error(err)
			}
			if got := <-heard; !bytes.Equal(got, want) {
				t.Errorf("memberlist received %d bytes; want %d", len(got), len(want))
			}
			conn.Close()
		}
		_, _ = list.Shutdown(), d.Shutdown()
		time.Sleep(2 * time.Minute)
		synctest.Wait()
	})
}

type discard struct{}

func (discard) Write(b []byte) (int, error) { return len(b), nil }

// hearer is a delegate that passes on user messages.
type hearer struct{ heard chan []byte }

func (h hearer) NotifyMsg(b []byte)              { h.heard <- bytes.Clone(b) }
func (hearer) NodeMeta(int) []byte               { return nil }
func (hearer) GetBroadcasts(int, int) [][]byte   { return nil }
func (hearer) LocalState(bool) []byte            { return nil }
func (hearer) MergeRemoteState(_ []byte, _ bool) {}
