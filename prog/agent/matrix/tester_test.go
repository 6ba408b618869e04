package matrix

import (
	"errors"
	"io"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/icmp"

	"weft/router/endpoint"
	"weft/router/packet"
)

// wire carries the frames of one tester to others, by the destination of the packet.
type wire struct {
	in     chan []byte
	others map[netip.Addr]*wire

	mu    sync.Mutex
	loses func(frame []byte) bool
	fails error
}

func (w *wire) Read(b []byte) (int, error) {
	frame := <-w.in
	if frame == nil {
		return 0, io.EOF
	}
	return copy(b, frame), nil
}

func (w *wire) Write(frame []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fails != nil {
		return 0, w.fails
	}
	if w.loses != nil && w.loses(frame) {
		return len(frame), nil
	}
	_, to, _ := packet.Addresses(frame[ethernet:])
	if o := w.others[to]; o != nil {
		o.in <- slices.Clone(frame)
	}
	return len(frame), nil
}

// set decides which frames are lost, and whether writing fails.
func (w *wire) set(loses func(frame []byte) bool, fails error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.loses, w.fails = loses, fails
}

var (
	a4, a6 = netip.MustParseAddr("10.32.0.1"), netip.MustParseAddr("fd00::1")
	b4, b6 = netip.MustParseAddr("10.40.0.1"), netip.MustParseAddr("fd00::2")
	nobody = netip.MustParseAddr("10.48.0.1")
	macs   = endpoint.Pair{HostMAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, ContainerMAC: net.HardwareAddr{2, 0, 0, 0, 0, 2}}
)

// connected runs f with two testers that are connected.
func connected(t *testing.T, f func(a, b *tester)) {
	synctest.Test(t, func(t *testing.T) {
		wa, wb := &wire{in: make(chan []byte, 100)}, &wire{in: make(chan []byte, 100)}
		others := map[netip.Addr]*wire{a4: wa, a6: wa, b4: wb, b6: wb}
		wa.others, wb.others = others, others
		defer func() {
			wa.in <- nil
			wb.in <- nil
		}()
		f(newTester(wa, macs, []netip.Addr{a4, a6}, 1400, 7), newTester(wb, macs, []netip.Addr{b4, b6}, 1400, 7))
	})
}

func TestTestersReachEachOtherInBothFamilies(t *testing.T) {
	connected(t, func(a, b *tester) {
		start := time.Now()
		for _, from := range []*tester{a, b, a} {
			if r := from.talk([]netip.Addr{a4, a6, b4, b6}); len(r.Failed) > 0 || time.Since(start) > 0 {
				t.Errorf("failed %v after %v, want that all answer at once", r.Failed, time.Since(start))
			}
		}
		r := a.talk([]netip.Addr{nobody, b6})
		if !slices.Equal(slices.Collect(maps.Keys(r.Failed)), []netip.Addr{nobody}) || time.Since(start) != attempts*patience {
			t.Errorf("failed %v after %v, want only %v", r.Failed, time.Since(start), nobody)
		}
	})
}

// A lost packet is repeated; a packet of another size, of an earlier order or to another address is no answer.
func TestOnlyTheAnswerToARequestCounts(t *testing.T) {
	connected(t, func(a, b *tester) {
		losses := 0
		b.frames.(*wire).set(func([]byte) bool { losses++; return losses < attempts }, nil)
		if r := a.talk([]netip.Addr{b4}); len(r.Failed) > 0 {
			t.Errorf("failed %v after two losses, want the third request to be answered", r.Failed)
		}
		for what, wrong := range map[string]echo{
			"another size":     {Echo: icmp.Echo{ID: 7, Seq: 2, Data: []byte("x")}, from: b4, to: a4},
			"an earlier order": {Echo: icmp.Echo{ID: 7, Seq: 1, Data: a.data(b4)}, from: b4, to: a4},
			"another tester":   {Echo: icmp.Echo{ID: 8, Seq: 2, Data: a.data(b4)}, from: b4, to: a4},
			"another address":  {Echo: icmp.Echo{ID: 7, Seq: 2, Data: a.data(b4)}, from: b4, to: nobody},
		} {
			a.mu.Lock()
			a.seq = 1
			a.mu.Unlock()
			b.frames.(*wire).set(func([]byte) bool {
				p, err := wrong.packet()
				if err != nil {
					t.Error(err)
				}
				a.frames.(*wire).in <- packet.Frame(macs.HostMAC, macs.ContainerMAC, p)
				return true
			}, nil)
			if r := a.talk([]netip.Addr{b4}); !strings.Contains(r.Failed[b4], "no answer to 3 echo requests of 1400 bytes") {
				t.Errorf("%s: failed %v, want no answer", what, r.Failed)
			}
		}
		a.frames.(*wire).set(nil, errors.New("the link is down"))
		if r := a.talk([]netip.Addr{b4}); r.Failed[b4] != "the link is down" {
			t.Errorf("failed %v, want why nothing was sent", r.Failed)
		}
	})
}

// A test endpoint without IPv6 asks nobody by IPv6.
func TestAFamilyThatAHostLacksIsLeftOut(t *testing.T) {
	connected(t, func(a, _ *tester) {
		a.addresses = []netip.Addr{a4}
		if r := a.talk([]netip.Addr{b4, netip.MustParseAddr("fd00::9")}); len(r.Failed) > 0 {
			t.Errorf("failed %v, want IPv6 to be left out", r.Failed)
		}
	})
}

// What is read was sent as it is; other frames are ignored.
func FuzzEcho(f *testing.F) {
	for _, e := range []echo{{icmp.Echo{ID: 1, Seq: 2, Data: []byte("data")}, a4, b4, true}, {icmp.Echo{ID: 1, Seq: 2}, a6, b6, false}} {
		p, err := e.packet()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(packet.Frame(macs.HostMAC, macs.ContainerMAC, p))
	}
	f.Fuzz(func(t *testing.T, frame []byte) {
		e, ok := parse(frame)
		if !ok {
			return
		}
		p, err := e.packet()
		if err != nil {
			t.Fatal(err)
		}
		again, ok := parse(packet.Frame(macs.HostMAC, macs.ContainerMAC, p))
		if !ok || again.from != e.from || again.to != e.to || again.request != e.request || again.ID != e.ID || again.Seq != e.Seq || string(again.Data) != string(e.Data) {
			t.Errorf("%+v was read again as %+v", e, again)
		}
	})
}
