package topology

import (
	"bytes"
	"encoding/hex"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"weft/mesh/peer"
)

// drawLinks draws Links of which the encoding keeps everything: round trips that begin an order.
func drawLinks(t *rapid.T) Links {
	l := Links{Cut: map[peer.ID]bool{}, RTT: map[peer.ID]time.Duration{}, Refuses: rapid.Bool().Draw(t, "refuses")}
	if order := rapid.IntRange(-1, maxOrder).Draw(t, "usual"); order >= 0 {
		l.Usual = OfOrder(order)
	}
	for _, n := range rapid.SliceOfDistinct(rapid.IntRange(0, 1<<16-1), func(n int) int { return n }).Draw(t, "peers") {
		id := peer.ID{byte(n), 1, byte(n >> 8)}
		if order := rapid.IntRange(-1, maxOrder).Draw(t, "order"); order < 0 {
			l.Cut[id] = true
		} else if OfOrder(order) != l.Usual {
			l.RTT[id] = OfOrder(order)
		}
	}
	return l
}

func TestLinksAreDecodedAsTheyWereEncoded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := drawLinks(t)
		data, err := l.Encode()
		if err != nil {
			t.Fatal(err)
		}
		got, err := DecodeLinks(data)
		if err != nil || !got.Equal(l) {
			t.Fatalf("%+v was decoded as %+v, %v", l, got, err)
		}
		again, err := got.Encode()
		if err != nil || !bytes.Equal(again, data) {
			t.Fatalf("the same links have two encodings: %x and %x, %v", data, again, err)
		}
	})
}

// What counts for the choice of relays survives the encoding, also of round trips that do not begin an order.
func TestEncodingKeepsTheOrderOfRoundTrips(t *testing.T) {
	for _, rtt := range []time.Duration{1, 999 * time.Microsecond, time.Millisecond, 3 * time.Millisecond, 47 * time.Millisecond, time.Hour} {
		id := peer.ID{1}
		data, err := Links{RTT: map[peer.ID]time.Duration{id: rtt}}.Encode()
		if err != nil {
			t.Fatal(err)
		}
		got, err := DecodeLinks(data)
		if want := min(Order(rtt), maxOrder); err != nil || Order(got.RTT[id]) != want {
			t.Errorf("a round trip of %v became %v, %v; want one of order %d", rtt, got.RTT[id], err, want)
		}
	}
}

// Near hosts are one number, not a list. The largest documents fit into a document of the mesh.
func TestLinksAreSmall(t *testing.T) {
	near, worst := Links{Usual: OfOrder(0), RTT: map[peer.ID]time.Duration{}}, Links{Cut: map[peer.ID]bool{}}
	for i := range MaxLinks {
		id := peer.ID{byte(i), byte(i >> 8)}
		near.RTT[id], worst.Cut[id] = 300*time.Microsecond, true
	}
	for _, c := range []struct {
		links Links
		most  int
	}{{near, 10}, {worst, 32<<10 + 10}} {
		data, err := c.links.Encode()
		if err != nil || len(data) > c.most {
			t.Errorf("the encoding of %d links has %d bytes, %v; want at most %d", len(c.links.Cut)+len(c.links.RTT), len(data), err, c.most)
		}
	}
	worst.Cut[peer.ID{1, 1, 1}] = true
	if _, err := worst.Encode(); err == nil {
		t.Errorf("%d links were encoded, want an error", len(worst.Cut))
	}
}

func TestInvalidLinksAreRefused(t *testing.T) {
	const id = "0102030405060708"
	for _, c := range []struct{ hex, says string }{
		{"", "decoding"},
		{"a10147" + id[:14], "cut short"},
		{"a10150" + id + id, "twice"},
		{"a10150" + "02" + id[2:] + id, "wrong order"},
		{"a20148" + id + "02a10148" + id, "twice"},                // cut, and with a round trip
		{"a102a20148" + id + "0248" + id, "twice"},                // two round trips
		{"a10259ffff", "decoding"},                                // a list instead of a map
		{"a1015a00010000" + strings.Repeat("00", 1<<16), "bytes"}, // too long
	} {
		data, err := hex.DecodeString(c.hex)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := DecodeLinks(data); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("decoding %.40s: got the error %v, want one that says %q", c.hex, err, c.says)
		}
	}
}

func TestFieldsOfNewerVersionsAreIgnored(t *testing.T) {
	data, err := linksEncoding.Marshal(map[int]any{1: []byte{1, 2, 3, 4, 5, 6, 7, 8}, 4: true, 9: map[string]any{"new": []int{1, 2}}, 12: "x"})
	if err != nil {
		t.Fatal(err)
	}
	got, err := DecodeLinks(data)
	if err != nil || !got.Refuses || !got.Cut[peer.ID{1, 2, 3, 4, 5, 6, 7, 8}] {
		t.Errorf("links with unknown fields became %+v, %v", got, err)
	}
}

// The round trip that is usual for a peer counts like one that it tells of each.
func TestUsualRoundTripsCountLikeToldOnes(t *testing.T) {
	a, b, one, other := peer.ID{1}, peer.ID{2}, peer.ID{3}, peer.ID{4}
	for _, pair := range [][2]peer.ID{{one, other}, {other, one}} {
		near, far := pair[0], pair[1]
		links := map[peer.ID]Links{
			a: {Cut: map[peer.ID]bool{b: true}, Usual: time.Millisecond, RTT: map[peer.ID]time.Duration{far: 50 * time.Millisecond}},
			b: {Usual: time.Millisecond},
		}
		if got := Relays(a, b, []peer.ID{far, near}, links); len(got) != 1 || got[0] != near {
			t.Errorf("the relays are %v, want the near one, %v", got, near)
		}
	}
}

func FuzzDecodeLinks(f *testing.F) {
	for _, l := range []Links{{}, {Refuses: true, Usual: 1}, {Cut: map[peer.ID]bool{{1}: true, {2}: true}, RTT: map[peer.ID]time.Duration{{3}: time.Second, {4}: 1}}} {
		data, err := l.Encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		l, err := DecodeLinks(data)
		if err != nil {
			return
		}
		if len(l.Cut)+len(l.RTT) > MaxLinks || len(l.Cut)+len(l.RTT) > len(data)/8 {
			t.Fatalf("%d bytes name %d peers", len(data), len(l.Cut)+len(l.RTT))
		}
		again, err := l.Encode()
		if err != nil {
			t.Fatalf("decoded links cannot be encoded: %v", err)
		}
		if _, err := DecodeLinks(again); err != nil {
			t.Fatalf("links that were encoded here are refused: %v", err)
		}
	})
}
