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

// What a later version could write: the items of the corpus with fields that nobody knows
// yet, signed again where that is the sender's to do.

// withFields adds fields to a map: a number that is not taken, with something nested, and a
// name, which no version uses for a field so far.
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

// each changes all elements of an array.
func each(change func([]byte) []byte) func([]byte) []byte {
	return func(data []byte) []byte {
		list := must(decode[[]cbor.RawMessage](data))
		for i := range list {
			list[i] = change(list[i])
		}
		return encode(list)
	}
}

// wrapped changes what is CBOR inside a byte string.
func wrapped(change func([]byte) []byte) func([]byte) []byte {
	return func(data []byte) []byte { return encode(change(must(decode[[]byte](data)))) }
}

// holder is the member of the cast with an identity.
func holder(identity []byte) int {
	for n := range names {
		if p := id(n); idOf(identity) == [8]byte(p) {
			return n
		}
	}
	panic("nobody has this identity")
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

// newerSet has more in each endpoint, and in their ports.
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

// newerRing has more to say of each segment, and of the ring.
func newerRing(data []byte) []byte {
	more := func(segment []byte) []byte {
		return encode(append(must(decode[[]cbor.RawMessage](segment)), encode("more"), encode([]int{1})))
	}
	return withFields(within(data, 5, each(more)))
}

// newerMessage has more in the envelope, around what is signed, and in it.
func newerMessage(data []byte) []byte {
	e := must(decode[v1Envelope](data))
	s := must(decode[v1Sealed](e.Payload))
	m := must(decode[v1Message](s.Message))
	n := holder(must(openRecord(s.Record)).Identity)
	if [8]byte(id(n)) != m.From {
		panic("the record is not the sender's")
	}
	s.Message = withFields(s.Message)
	s.Signature = sign(n, v1ForMessage, s.Message)
	e.Payload = withFields(encode(s))
	return withFields(encode(e))
}

// longer is raw bytes with more behind them.
func longer(data []byte) []byte { return append(bytes.Clone(data), 7) }

// What a newer version adds is skipped: what is known means the same.
func TestTodayReadsWhatANewerVersionAdds(t *testing.T) {
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
					t.Fatal("nothing was added")
				}
				if got := it.read(t, newer); got != meaning[name] {
					t.Errorf("it means\n%s\nand without what was added\n%s", got, meaning[name])
				}
			})
		}
	}
}

// What somebody signed is passed on as it came, with what is not known here.
func TestWhatIsSignedIsPassedOnUnchanged(t *testing.T) {
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
			t.Errorf("%s came as\n%sand is passed on as\n%s", name, toHex("", came), toHex("", left))
		}
	}

	came := newerDelta(data["directory/news-delta"])
	passedOn, err := directoryOf(echo, &station{}, newShelf(), data["directory/set-first"]).Merge(came)
	if err != nil || !bytes.Equal(must(decode[v1SetNews](passedOn)).Delta, must(decode[v1SetNews](came)).Delta) {
		t.Errorf("a delta of endpoints is passed on as %x, %v", passedOn, err)
	}
	came = newerNews(data["documents/news-documents"])
	passedOn, err = documentsOf(echo, among([]int{alpha}), newShelf()).Merge(came)
	if err != nil || !slices.EqualFunc(must(decode[v1DocumentNews](passedOn)).Documents, must(decode[v1DocumentNews](came)).Documents, bytes.Equal) {
		t.Errorf("documents are passed on as %x, %v", passedOn, err)
	}
}

// Rings and votes are made anew by every merge: what is not known of them is skipped, and not
// passed on. Who knows more keeps it, and says it again.
func TestWhatIsMergedIsMadeAnew(t *testing.T) {
	data, _ := load(t, latest())
	for _, name := range []string{"ring/whole", "ring/granted"} {
		if again := must(ring.Decode(newerRing(data[name]))).Encode(); !bytes.Equal(again, data[name]) {
			t.Errorf("%s becomes %x", name, again)
		}
	}
	if again := must(paxos.Decode(newerVotes(data["votes/decided"]))).Encode(); !bytes.Equal(again, data["votes/decided"]) {
		t.Errorf("votes become %x", again)
	}
}

// Requests that are bytes without fields have no room for more: a newer version asks for
// something else by another name. What is too long is refused, and changes nothing.
func TestBytesWithoutFieldsHaveNoRoom(t *testing.T) {
	data, _ := load(t, latest())
	scene = data
	for name, want := range map[string]string{"ipam/claim-request": "invalid claim: it has 5 bytes, want 4", "ipam/removal-request": "invalid removal: it has 10 bytes, want 9"} {
		if got := items()[name].read(t, longer(data[name])); !strings.Contains(got, want) {
			t.Errorf("%s with more: %s", name, got)
		}
	}
}
