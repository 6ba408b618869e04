package wire

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/fxamacker/cbor/v2"

	"weft/ipam/paxos"
	"weft/ipam/ring"
	"weft/mesh/directory"
	"weft/mesh/document"
	"weft/mesh/peer"
)

// The functions here make what a later version could write: the items of the corpus with unknown
// fields, signed again where the sender signs.

// withFields adds two fields to a map: a nested value with an unused number, and one with a text
// key. No version uses text keys so far.
func withFields(data []byte) []byte {
	m := must(decode[map[any]cbor.RawMessage](data))
	m[uint64(99)] = encode(map[string]any{"since": 2, "list": []any{1, "two", nil, 3.5, cbor.Tag{Number: 1, Content: 7}}})
	m["later"] = encode(true)
	return encode(m)
}

// within changes one field of a map.
func within(data []byte, field uint64, change func([]byte) []byte) []byte {
	m := must(decode[map[any]cbor.RawMessage](data))
	m[field] = change(m[field])
	return encode(m)
}

// each applies change to all elements of an array.
func each(change func([]byte) []byte) func([]byte) []byte {
	return func(data []byte) []byte {
		list := must(decode[[]cbor.RawMessage](data))
		for i := range list {
			list[i] = change(list[i])
		}
		return encode(list)
	}
}

// wrapped applies change to the CBOR inside a byte string.
func wrapped(change func([]byte) []byte) func([]byte) []byte {
	return func(data []byte) []byte { return encode(change(must(decode[[]byte](data)))) }
}

// holder returns the peer of the corpus that has the given identity.
func holder(identity []byte) int {
	for n := range names {
		if p := id(n); idOf(identity) == [8]byte(p) {
			return n
		}
	}
	panic("no peer of the corpus has this identity")
}

func newerRecord(data []byte) []byte {
	w := must(decode[v1Signed](data))
	n := holder(must(decode[v1Record](w.Content)).Identity)
	w.Content = withFields(w.Content)
	return encode(v1Signed{w.Content, sign(n, v1ForRecord, w.Content)})
}

func newerDocument(data []byte) []byte {
	w := must(decode[v1Signed](data))
	n := holder(must(decode[v1Content](w.Content)).Writer)
	w.Content = withFields(w.Content)
	return encode(v1Signed{w.Content, sign(n, v1ForDocument, w.Content)})
}

// newerSet adds unknown fields to each endpoint and to its ports.
func newerSet(data []byte) []byte {
	s := must(decode[v1Set](data))
	for i, e := range s.Endpoints {
		s.Endpoints[i] = newerEndpoint(e)
	}
	n := holder(s.Identity)
	s.Signature = sign(n, v1ForSet, setContent(idOf(s.Identity), s.Version, s.Endpoints))
	return encode(s)
}

func newerEndpoint(data []byte) []byte {
	if len(must(decode[v1Endpoint](data)).Ports) > 0 {
		data = within(data, 7, each(withFields))
	}
	return withFields(data)
}

// newerRing adds unknown data to the ring and to each segment.
func newerRing(data []byte) []byte {
	more := func(segment []byte) []byte {
		return encode(append(must(decode[[]cbor.RawMessage](segment)), encode("more"), encode([]int{1})))
	}
	return withFields(within(data, 5, each(more)))
}

// newerMessage adds unknown fields to the envelope and to its signed content.
func newerMessage(data []byte) []byte {
	e := must(decode[v1Envelope](data))
	s := must(decode[v1Sealed](e.Payload))
	m := must(decode[v1Message](s.Message))
	n := holder(must(openRecord(s.Record)).Identity)
	if [8]byte(id(n)) != m.From {
		panic("the message contains a record of another peer than its sender")
	}
	s.Message = withFields(s.Message)
	s.Signature = sign(n, v1ForMessage, s.Message)
	e.Payload = withFields(encode(s))
	return withFields(encode(e))
}

// longer appends a byte to a value that is not CBOR.
func longer(data []byte) []byte { return append(bytes.Clone(data), 7) }

// Unknown fields of a newer version are skipped; known fields keep their meaning.
func TestUnknownFieldsAreSkipped(t *testing.T) {
	for _, version := range versions() {
		data, meaning := load(t, version)
		scene = data
		for _, name := range sorted(data) {
			it := items()[name]
			if it.newer == nil {
				continue
			}
			t.Run(version+"/"+name, func(t *testing.T) {
				newer := it.newer(data[name])
				if bytes.Equal(newer, data[name]) {
					t.Fatal("newer, the function that adds unknown fields, changed nothing; want added bytes")
				}
				if got, want := it.read(t, newer), meaningToday(version, name, meaning[name]); got != want {
					t.Errorf("got the meaning\n%s\nwant, as without unknown fields\n%s", got, want)
				}
			})
		}
	}
}

// Signed data is relayed unchanged, including unknown fields.
func TestSignedDataIsRelayedUnchanged(t *testing.T) {
	data, _ := load(t, latest())
	scene = data
	record := func(b []byte) []byte { return must(peer.Decode(b)).Encode() }
	set := func(b []byte) []byte { return must(directory.Decode(b)).Encode() }
	doc := func(b []byte) []byte { return must(document.Decode(b)).Encode() }
	for name, again := range map[string]func([]byte) []byte{
		"peer/running": record, "directory/set": set, "documents/policy": doc, "documents/tombstone": doc,
	} {
		came := items()[name].newer(data[name])
		if left := again(came); !bytes.Equal(left, came) {
			t.Errorf("%s was received as\n%sand relayed as\n%s, want no difference", name, toHex("", came), toHex("", left))
		}
	}

	came := newerDelta(data["directory/news-delta"])
	passedOn, err := directoryOf(echo, &station{}, newShelf(), data["directory/set-first"]).Merge(came)
	if err != nil || !bytes.Equal(must(decode[v1SetNews](passedOn)).Delta, must(decode[v1SetNews](came)).Delta) {
		t.Errorf("a delta of endpoints is relayed as %x, error %v; want it unchanged", passedOn, err)
	}
	came = newerNews(data["documents/news-documents"])
	passedOn, err = documentsOf(echo, among([]int{alpha}), newShelf()).Merge(came)
	if err != nil || !slices.EqualFunc(must(decode[v1DocumentNews](passedOn)).Documents, must(decode[v1DocumentNews](came)).Documents, bytes.Equal) {
		t.Errorf("documents are relayed as %x, error %v; want them unchanged", passedOn, err)
	}
}

// Every merge encodes rings and votes anew, without unknown fields. Peers that know those fields
// keep them, and send them again.
func TestMergedStatesLoseUnknownFields(t *testing.T) {
	data, _ := load(t, latest())
	for _, name := range []string{"ring/whole", "ring/granted"} {
		if again := must(ring.Decode(newerRing(data[name]))).Encode(); !bytes.Equal(again, data[name]) {
			t.Errorf("%s with unknown fields is encoded as %x, want it without them", name, again)
		}
	}
	if again := must(paxos.Decode(newerVotes(data["votes/decided"]))).Encode(); !bytes.Equal(again, data["votes/decided"]) {
		t.Errorf("votes with unknown fields are encoded as %x, want them without these fields", again)
	}
}

// Requests without fields have no room for additions: a newer version uses another kind of
// request. A payload that is too long is refused without effect.
func TestFixedSizeRequestsWithLongerPayloadsAreRefused(t *testing.T) {
	data, _ := load(t, latest())
	scene = data
	for name, want := range map[string]string{"ipam/claim-request": "invalid claim: it has 5 bytes, want 4", "ipam/removal-request": "invalid removal: it has 10 bytes, want 9"} {
		if got := items()[name].read(t, longer(data[name])); !strings.Contains(got, want) {
			t.Errorf("%s with an additional byte: got %s, want it refused for its length", name, got)
		}
	}
}
