package wire

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"

	"weft/ipam"
	"weft/ipam/slot"
	"weft/mesh"
	"weft/mesh/directory"
	"weft/mesh/meshtest/eventually"
	"weft/mesh/peer"
)

// newcomer is the current agent's part that communicates with peers.
type newcomer struct {
	*mesh.Mesh
	ipam      *ipam.Allocator
	directory *mesh.Directory
	documents *mesh.Documents
}

// newcomer starts delta without a ring, with the given peers as targets.
func (s *stage) newcomer(targets ...int) *newcomer {
	s.t.Helper()
	m, disk := s.today(delta, record(delta), targets...), newShelf()
	d := &newcomer{
		Mesh: m,
		ipam: ipam.New(ipam.Config{Self: m.Self(), Store: disk, Mesh: m, Log: quiet, Cluster: cluster, Universe: universe, Changed: nothing}),
		directory: must(mesh.NewDirectory(mesh.DirectoryConfig{
			Identity: key(delta), Mesh: m, Store: disk, Wanted: func(peer.ID) bool { return true }, Log: quiet, Changed: nothing,
		})),
		documents: must(mesh.NewDocuments(mesh.DocumentsConfig{
			Identity: key(delta), Mesh: m, Store: disk, Now: time.Now, Log: quiet, Changed: nothing,
		})),
	}
	for _, r := range []mesh.Replica{d.ipam, d.ipam.Votes(), d.directory, d.documents} {
		m.Replicate(r)
	}
	for kind, h := range d.ipam.Handlers() {
		m.Handle(kind, h)
	}
	for _, handlers := range []map[string]mesh.Handler{d.directory.Handlers(), d.documents.Handlers()} {
		for kind, h := range handlers {
			m.Handle(kind, h)
		}
	}
	s.run(d.ipam.Run, d.directory.Run, d.documents.Run, m.Run)
	return d
}

// recordedAnswers replies as peers of the recorded version did.
func recordedAnswers(m v1Message) (payload []byte, no string) {
	item := map[string]string{
		"ring": "ipam/ring-answer", "usage": "ipam/usage-answer", "space": "ipam/space-answer",
		"directory/sets": "directory/sets-answer", "documents/missing": "documents/missing-answer",
	}[m.Kind]
	if item == "" {
		return nil, fmt.Sprintf("this version of Weft does not know %q", m.Kind)
	}
	return scene[item], ""
}

// olderState returns a push/pull message of bravo: alpha's recorded message, with bravo's record.
func olderState() []byte {
	parts := must(decode[map[string]cbor.RawMessage](scene["mesh/push-pull"]))
	parts["peers"] = encode(encode([][]byte{scriptedRecord(bravo)}))
	return encode(parts)
}

// understood decodes a state as version 1 does, and verifies its signatures.
func understood(replica string, data []byte) error {
	switch replica {
	case "peers":
		list, err := decode[[][]byte](data)
		for _, r := range list {
			_, e := openRecord(r)
			err = errors.Join(err, e)
		}
		return err
	case "ring":
		r, err := decode[v1Ring](data)
		if err == nil {
			_, err = r.v1Owner(uint32(slotNode))
			if err != nil && len(r.Segments) > 0 { // a delta need not contain the segment of that slot
				first, e := decode[uint32](r.Segments[0][0])
				_, err = r.v1Owner(first)
				err = errors.Join(e, err)
			}
		}
		return err
	case "votes":
		_, err := decode[v1Votes](data)
		return err
	case "directory":
		n, err := decode[v1SetNews](data)
		if err != nil || n.Delta == nil {
			return err
		}
		d, err := decode[v1SetDelta](n.Delta)
		for _, e := range d.Put {
			_, bad := decode[v1Endpoint](e)
			err = errors.Join(err, bad)
		}
		return err
	case "documents":
		n, err := decode[v1DocumentNews](data)
		for _, doc := range n.Documents {
			_, bad := openDocument(doc)
			err = errors.Join(err, bad)
		}
		return err
	}
	return nil // version 1 skips unknown states
}

// understands checks all messages and states that a peer received, and counts them by kind.
func (s *scripted) understands() map[string]int {
	count := map[string]int{}
	for _, data := range s.messages() {
		e, err := decode[v1Envelope](data)
		switch {
		case err != nil:
		case e.Kind == v1Delta:
			count["delta of "+e.Replica]++
			err = understood(e.Replica, e.Payload)
		default:
			var m v1Message
			m, _, err = openMessage(e.Payload)
			count["request or reply "+m.Kind]++
		}
		if err != nil {
			s.t.Errorf("%s received a message that version 1 cannot read: %v\n%s", names[s.n], err, toHex("message", data))
		}
	}
	for _, data := range s.states() {
		parts, err := decode[map[string][]byte](data)
		for replica, part := range parts {
			count["state of "+replica]++
			err = errors.Join(err, understood(replica, part))
		}
		if err != nil {
			s.t.Errorf("%s received a state that version 1 cannot read: %v\n%s", names[s.n], err, toHex("state", data))
		}
	}
	return count
}

// exchanges is a time in which each peer has exchanged whole states more than once: memberlist does so once a
// minute.
const exchanges = 3 * time.Minute

// A peer of the current version joins peers of each recorded version. The older peers are scripted:
// their states and replies were recorded, and what they receive is decoded by the rules of their
// version. The test shows that the current peer learns records, ring, endpoints and documents
// from the older peers. The current peer also gets an address by their grant, and they can read all
// that it sends.
//
// Current peers refuse peers of protocol version 1. So in this test these have a greeting and records
// with a certificate: an agent that is upgraded still has the other data, and sends it.
//
// The test does not show how older code behaves, since that code is not here. It does not cover
// memberlist's own protocol either, whose compatibility that library promises.
func TestCurrentPeerJoinsOlderPeers(t *testing.T) {
	for _, version := range versions() {
		data, _ := load(t, version)
		scene = data
		t.Run(version, func(t *testing.T) {
			onStage(t, func(t *testing.T, s *stage) {
				a := s.scripted(&scripted{n: alpha, state: renewPushPull(scene["mesh/push-pull"]), answer: recordedAnswers})
				b := s.scripted(&scripted{n: bravo, state: olderState(), answer: recordedAnswers}, alpha)
				d := s.newcomer(alpha)
				learns(t, s, d)
				speaks(t, d)
				for _, p := range []*scripted{a, b} {
					asks(t, p)
				}
				time.Sleep(exchanges) // by then delta has started a push/pull itself
				for _, p := range []*scripted{a, b} {
					heard := p.understands()
					for _, what := range []string{"state of peers", "state of ring", "state of directory", "state of documents"} {
						if heard[what] == 0 {
							t.Errorf("%s received no %s, want at least one; received %v", names[p.n], what, heard)
						}
					}
				}
				if heard := a.understands(); heard["delta of directory"] == 0 || heard["delta of documents"] == 0 || heard["request or reply space"] == 0 {
					t.Errorf("alpha received %v, want deltas of directory and documents, and a request for space", heard)
				}
			})
		})
	}
}

// learns waits until delta knows what alpha and bravo know.
func learns(t *testing.T, s *stage, d *newcomer) {
	t.Helper()
	eventually.True(t, time.Minute, "delta reaches alpha and bravo", func() bool { return d.Reachable(id(alpha)) && d.Reachable(id(bravo)) })
	eventually.True(t, 5*time.Minute, "delta knows the records", func() bool { return strings.Count(describePeers(d.Mesh), "knows ") == 2 })
	eventually.True(t, exchanges, "delta knows the ring", func() bool {
		owner, _ := must(d.ipam.Snapshot(context.Background())).Ring.Owner(slotFar)
		return owner == id(bravo)
	})
	eventually.True(t, exchanges, "delta knows the endpoints", func() bool {
		e, ok := d.directory.At(slotWeb, must(d.ipam.Snapshot(context.Background())).Ring)
		return ok && e.Name == "web" && e.Labels["app"] == "web" && e.Owner == id(alpha)
	})
	eventually.True(t, exchanges, "delta knows the documents", func() bool {
		doc := d.documents.Get("networkpolicy", "default/web")
		return d.documents.Synced() && doc != nil && string(doc.Body) == policyBody && d.documents.Get("networkpolicy", "default/old") == nil
	})
	if r := d.Rejections(); len(r) > 0 {
		t.Errorf("delta rejected peers, want none: %+v", r)
	}
}

// speaks has delta allocate an address, and send everything that an agent sends.
func speaks(t *testing.T, d *newcomer) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	got, err := d.ipam.Allocate(ctx, "new/eth0", nil)
	if err != nil {
		t.Fatal(err)
	}
	publish := func(endpoints ...directory.Endpoint) error { return d.directory.Publish(endpoints) }
	e := directory.Endpoint{ID: "new/eth0", Slots: []slot.Slot{got}, Name: "new", Ports: []directory.Port{{Name: "http", Protocol: "tcp", Number: 80}}}
	renamed := e
	renamed.Name = "newer"
	if err := errors.Join(
		d.Update(func(r *peer.Record) { r.Ring = ringID[:] }),
		publish(e), publish(renamed),
		d.documents.Write([]mesh.Change{{Kind: "networkpolicy", Name: "default/web", Body: []byte(policyBody + "# changed\n")}}),
	); err != nil {
		t.Error(err)
	}
	time.Sleep(5 * time.Second)
}

// asks sends all kinds of requests to delta from a peer of an older version.
func asks(t *testing.T, p *scripted) {
	t.Helper()
	reply := func(kind string, payload []byte) v1Message {
		t.Helper()
		data := p.ask(delta, kind, payload)
		if data == nil {
			t.Fatalf("%s gets no reply to %s, want one", names[p.n], kind)
		}
		m, _, err := openMessage(must(decode[v1Envelope](data)).Payload)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	if r := must(decode[v1Ring](reply("ring", nil).Payload)); len(r.Segments) < 2 {
		t.Errorf("delta's reply has the ring %+v, want at least 2 segments", r)
	}
	if u := must(decode[v1Usage](reply("usage", nil).Payload)); u.Active != 1 || u.Free == 0 {
		t.Errorf("delta's reply has the usage %+v, want one active address, and free ones", u)
	}
	sets := must(decode[[][]byte](reply("directory/sets", encode([][8]byte{[8]byte(id(delta))})).Payload))
	if len(sets) != 1 {
		t.Fatalf("delta's reply has %d sets, want 1", len(sets))
	}
	if _, endpoints, err := openSet(sets[0]); err != nil || len(endpoints) != 1 || endpoints[0].Name != "newer" {
		t.Errorf("delta's reply has the endpoints %+v, error %v; want one with the name newer", endpoints, err)
	}
	answer := must(decode[v1DocumentAnswer](reply("documents/missing", scene["documents/missing-all"]).Payload))
	changed := 0
	for _, data := range answer.Documents {
		doc, err := openDocument(data)
		if err != nil {
			t.Error(err)
		}
		if bytes.Contains(doc.Body, []byte("# changed")) && doc.Version > uint64(len(answer.Documents)) { // higher than the version of any document it knew
			changed++
		}
	}
	if changed != 1 {
		t.Errorf("the reply of host delta has %d documents, %d of them changed; want 1 changed", len(answer.Documents), changed)
	}
	if no := reply("weather/forecast", []byte("tomorrow")).Error; !strings.Contains(no, `this version of Weft does not know "weather/forecast"`) {
		t.Errorf("a request of unknown kind got the error %q, want it to name the kind", no)
	}
}

// A newer peer adds unknown fields, states and messages. It shares a mesh with a current and an
// older peer. The current peer reads the data that it knows, passes signed data on to the older
// peer unchanged, and takes no harm from unknown data.
func TestNewerPeersWorkWithCurrentAndOlderPeers(t *testing.T) {
	data, _ := load(t, latest())
	scene = data
	onStage(t, func(t *testing.T, s *stage) {
		set, policy, itsRecord := newerSet(data["directory/set"]), newerDocument(data["documents/policy"]), newerRecord(scriptedRecord(alpha))
		held := must(directory.Decode(set)).Held()
		newer := &scripted{n: alpha, hello: newerHello(greeting(alpha)), state: states(map[string][]byte{
			"peers": encode([][]byte{itsRecord}), "ring": newerRing(data["ring/founded"]), "weather": []byte("fine"),
			"directory": withFields(encode(v1SetNews{id(alpha), []v1SetHeld{{id(alpha), held.Version, held.Digest}}, nil})),
			"documents": withFields(encode(v1DocumentNews{From: id(alpha), Documents: [][]byte{policy}, Synced: true})),
		}), answer: func(m v1Message) ([]byte, string) {
			switch m.Kind {
			case "directory/sets":
				return encode([][]byte{set}), ""
			case "documents/missing": // a document can arrive before the record of its writer
				return encode(v1DocumentAnswer{Documents: [][]byte{policy}, Synced: true}), ""
			}
			return recordedAnswers(m)
		}}
		s.net.Partition(func(a, b netip.Addr) bool { // so that all data from one to the other passes delta
			return a != b && a != address(delta).Addr() && b != address(delta).Addr()
		})
		d := s.newcomer()
		time.Sleep(time.Second)
		s.scripted(newer, delta)
		for _, message := range [][]byte{
			encode(v1Envelope{Kind: 9, Payload: []byte("of a kind that is not known")}),
			encode(map[uint64]any{1: 9, 2: 7, 3: "not even bytes"}),
			encode(v1Envelope{Kind: v1Delta, Replica: "weather", Payload: []byte("rain")}),
			withFields(encode(v1Envelope{Kind: v1Delta, Replica: "ring", Payload: newerRing(data["ring/granted"])})),
		} {
			newer.send(id(delta), message)
		}
		ring := func() (owner peer.ID) {
			owner, _ = must(d.ipam.Snapshot(context.Background())).Ring.Owner(0x4000)
			return owner
		}
		eventually.True(t, time.Minute, "delta has merged the newer peer's ring", func() bool { return ring() == id(charlie) })
		eventually.True(t, time.Minute, "delta has fetched the newer peer's endpoints", func() bool {
			e, ok := d.directory.At(slotWeb, must(d.ipam.Snapshot(context.Background())).Ring)
			return ok && e.Name == "web"
		})
		eventually.True(t, time.Minute, "delta has read the newer peer's document", func() bool { return d.documents.Get("networkpolicy", "default/web") != nil })

		older := s.scripted(&scripted{n: bravo, state: states(map[string][]byte{"peers": encode([][]byte{scriptedRecord(bravo)})})}, delta)
		time.Sleep(time.Minute)
		older.understands()
		getsUnchanged(t, older, itsRecord, set, policy)
		if r := d.Rejections(); len(r) > 0 {
			t.Errorf("delta rejected peers, want none: %+v", r)
		}
	})
}

// getsUnchanged checks what an older peer receives from a newer one through delta.
func getsUnchanged(t *testing.T, older *scripted, record, set, policy []byte) {
	t.Helper()
	found := false
	for _, data := range older.states() {
		for _, r := range must(decode[[][]byte](must(decode[map[string][]byte](data))["peers"])) {
			found = found || bytes.Equal(r, record)
		}
	}
	if !found {
		t.Error("the older peer did not receive the record, want it as it was signed")
	}
	payload := func(kind string, payload []byte) []byte {
		m, _, err := openMessage(must(decode[v1Envelope](older.ask(delta, kind, payload))).Payload)
		if err != nil || m.Error != "" {
			t.Errorf("%s: %v, %s", kind, err, m.Error)
		}
		return m.Payload
	}
	same := func(b []byte) func([]byte) bool { return func(o []byte) bool { return bytes.Equal(b, o) } }
	if sets := must(decode[[][]byte](payload("directory/sets", encode([][8]byte{[8]byte(id(alpha))})))); !slices.ContainsFunc(sets, same(set)) {
		t.Error("the older peer did not receive the set, want it as it was signed")
	}
	if a := must(decode[v1DocumentAnswer](payload("documents/missing", data0))); !slices.ContainsFunc(a.Documents, same(policy)) {
		t.Error("the older peer did not receive the document, want it as it was signed")
	}
}

// data0 is an empty CBOR array.
var data0 = encode([]int{})
