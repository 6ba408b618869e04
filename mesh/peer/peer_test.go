package peer

import (
	"bytes"
	"crypto/ed25519"
	"net/netip"
	"strings"
	"testing"

	"github.com/fxamacker/cbor/v2"
)

func key(n byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{n}, ed25519.SeedSize))
}

func sample() Record {
	return Record{
		WireGuard: [32]byte{1, 2}, Nickname: "h1", Port: 6784, Gossip: 6783, Node: 7, Sequence: 3,
		Underlay: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}, Ring: []byte{9},
	}
}

func TestRecordIsSignedByItsPeer(t *testing.T) {
	s, err := Sign(sample(), key(1))
	if err != nil {
		t.Fatal(err)
	}
	got, err := Decode(s.Encode())
	if err != nil || got.Record.ID() != IDOf(key(1).Public().(ed25519.PublicKey)) || got.Record.Underlay[1] != sample().Underlay[1] {
		t.Fatalf("decoding the encoded record returned %+v, error %v; want the sample", got, err)
	}
	// The second peer signs a record in the name of the first.
	forged := Signed{payload: s.payload, signature: ed25519.Sign(key(2), append([]byte(context), s.payload...))}
	if _, err := Decode(forged.Encode()); err == nil {
		t.Error("the signature of another peer was accepted; want an error")
	}
	// The first peer's key signs the same bytes without the context.
	forged.signature = ed25519.Sign(key(1), s.payload)
	if _, err := Decode(forged.Encode()); err == nil {
		t.Error("a signature without its context was accepted; want an error")
	}
}

// An older version of Weft passes on a field that a newer version added.
func TestUnknownFieldsArePassedOn(t *testing.T) {
	newer := map[int]any{1: []byte(key(1).Public().(ed25519.PublicKey)), 3: "h1", 7: 4, 99: "new field"}
	payload := must(encoding.Marshal(newer))
	s := Signed{payload: payload, signature: ed25519.Sign(key(1), append([]byte(context), payload...))}
	got, err := Decode(s.Encode())
	if err != nil {
		t.Fatal(err)
	}
	var back map[int]any
	if err := cbor.Unmarshal(got.payload, &back); err != nil || back[99] != "new field" {
		t.Errorf("the record is passed on with the fields %v, error %v; want the unknown field kept", back, err)
	}
	if _, err := Decode(got.Encode()); err != nil {
		t.Error(err)
	}
}

// A record without Host has the same bytes as before the field existed, so that older peers can
// read it.
func TestHostUIDInPeerRecordIsOptional(t *testing.T) {
	r := sample()
	plain, err := Sign(r, key(1))
	if err != nil {
		t.Fatal(err)
	}
	var fields map[int]any
	if err := cbor.Unmarshal(plain.payload, &fields); err != nil || fields[11] != nil {
		t.Errorf("a record without a host is encoded with the fields %v, error %v; want no field 11", fields, err)
	}
	r.Host = "0b0d6a1c-3f5e-4d58-8b1f-2c7f0a8d9e11"
	named, err := Sign(r, key(1))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := Decode(named.Encode()); err != nil || got.Record.Host != r.Host {
		t.Errorf("decoding a record with a host returned %+v, error %v; want its host", got.Record, err)
	}
}

// A record lists the MTUs of its links; records of older versions do not.
func TestLinkMTUsInPeerRecordAreOptional(t *testing.T) {
	r := sample()
	plain, err := Sign(r, key(1))
	if err != nil {
		t.Fatal(err)
	}
	var fields map[int]any
	if err := cbor.Unmarshal(plain.payload, &fields); err != nil || fields[13] != nil {
		t.Errorf("a record without MTUs is encoded with the fields %v, error %v; want no field 13", fields, err)
	}
	r.MTUs = []uint32{1500}
	for _, s := range []Record{sample(), r} {
		signed, err := Sign(s, key(1))
		if err != nil {
			t.Fatal(err)
		}
		got, err := Decode(signed.Encode())
		if err != nil {
			t.Fatal(err)
		}
		want := 0
		if len(s.MTUs) > 0 {
			want = 1500
		}
		if m := got.Record.MTU(r.Underlay[0]); m != want {
			t.Errorf("the first link's MTU is %d, want %d", m, want)
		}
		if m := got.Record.MTU(r.Underlay[1]); m != 0 {
			t.Errorf("the second link's MTU is %d, want 0: unknown", m)
		}
	}
}

func TestSupersedesIsTotalOrder(t *testing.T) {
	r := sample()
	a, _ := Sign(r, key(1))
	r.Nickname = "other"
	b, _ := Sign(r, key(1))
	r.Sequence++
	c, _ := Sign(r, key(1))
	if a.Supersedes(b) == b.Supersedes(a) || a.Supersedes(a) || !c.Supersedes(a) || !c.Supersedes(b) || a.Supersedes(c) {
		t.Error("Supersedes is no total order; want one, since otherwise two peers could keep different records")
	}
}

func TestInvalidRecordsAreRefused(t *testing.T) {
	for name, change := range map[string]func(*Record){
		"long nickname":      func(r *Record) { r.Nickname = strings.Repeat("x", MaxNickname+1) },
		"terminal escape":    func(r *Record) { r.Nickname = "h1\x1b[2J" },
		"reversed text":      func(r *Record) { r.Nickname = "h1\u202e2h" },
		"invalid UTF-8":      func(r *Record) { r.Nickname = "h1\xff" },
		"too many addresses": func(r *Record) { r.Underlay = make([]netip.Addr, MaxUnderlay+1) },
		"too many MTUs":      func(r *Record) { r.MTUs = make([]uint32, MaxUnderlay+1) },
		"long host":          func(r *Record) { r.Host = strings.Repeat("x", MaxHost+1) },
		"unprintable host":   func(r *Record) { r.Host = "\x1b[2J" },
		"loopback":           func(r *Record) { r.Underlay = []netip.Addr{netip.MustParseAddr("127.0.0.1")} },
		"multicast":          func(r *Record) { r.Underlay = []netip.Addr{netip.MustParseAddr("ff02::1")} },
		"zone":               func(r *Record) { r.Underlay = []netip.Addr{netip.MustParseAddr("fe80::1%eth0")} },
		"long ring id":       func(r *Record) { r.Ring = make([]byte, 17) },
		"invalid address":    func(r *Record) { r.Underlay = []netip.Addr{{}} },
		"unspecified host":   func(r *Record) { r.Underlay = []netip.Addr{netip.IPv4Unspecified()} },
	} {
		r := sample()
		change(&r)
		if _, err := Sign(r, key(1)); err == nil {
			t.Errorf("%s: Sign accepted the invalid record; want an error", name)
		}
	}
}

func TestParseIDRefusesInvalidIDs(t *testing.T) {
	id := IDOf(key(1).Public().(ed25519.PublicKey))
	if got, err := ParseID(id.String()); err != nil || got != id {
		t.Errorf("parsing the text of an id returned %v, error %v; want the id", got, err)
	}
	for _, bad := range []string{"", "12", "zz" + id.String()[2:], id.String() + "00"} {
		if _, err := ParseID(bad); err == nil {
			t.Errorf("ParseID accepted the invalid id %q; want an error", bad)
		}
	}
}

func FuzzDecode(f *testing.F) {
	s, _ := Sign(sample(), key(1))
	f.Add(s.Encode())
	f.Add(must(encoding.Marshal(wire{})))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := Decode(data)
		if err != nil {
			return
		}
		if again, err := Decode(s.Encode()); err != nil || again.Record.ID() != s.Record.ID() {
			t.Fatalf("encoding and decoding again returned another record or error %v; want the same record", err)
		}
	})
}
