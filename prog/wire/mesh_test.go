package wire

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"

	"weft/mesh"
	"weft/mesh/meshtest/eventually"
	"weft/mesh/peer"
)

// These items are greetings, push/pull and messages of the mesh. They are captured from the simulated
// network, and replayed on it.

var meshItems = map[string]item{
	"mesh/hello":            {what: "memberlist's metadata of a peer: protocol, cluster (not since version 3) and universe; since version 3 signed, with a certificate", read: readHello, newer: newerHello},
	"mesh/hello-joining":    {what: "the same of a peer that knows neither cluster nor universe", read: readHello, newer: newerHello},
	"mesh/push-pull":        {what: "push/pull of alpha, in the ring", read: readPushPull, newer: newerPushPull},
	"mesh/push-pull-voting": {what: "push/pull of alpha, while there is no ring", read: readPushPull, newer: newerPushPull},
	"mesh/delta":            {what: "a message: alpha's record changed", read: readDelta, newer: newerPeersDelta},
	"mesh/request":          {what: "a message: alpha asks bravo for usage", read: readRequest, newer: newerMessage},
	"mesh/reply":            {what: "a message: alpha's answer", read: readReply, newer: newerMessage},
	"mesh/refusal":          {what: "a message: alpha's answer to a kind of request that it does not know", read: readReply, newer: newerMessage},
}

// newerPushPull adds an unknown state and newer records.
func newerPushPull(data []byte) []byte {
	m := must(decode[map[string]cbor.RawMessage](data))
	m["weather"] = encode(encode("fine"))
	m["peers"] = wrapped(each(wrapped(newerRecord)))(m["peers"])
	return encode(m)
}

// newerHello adds unknown fields to a greeting, and to its signed content.
func newerHello(data []byte) []byte {
	if w := must(decode[v3Signed](data)); w.Content != nil {
		data = signHello(holder(must(decode[v3Hello](w.Content)).Identity), withFields(w.Content))
	}
	return withFields(data)
}

// renamed verifies a captured greeting of alpha, and signs it again under alpha's name in the corpus:
// the name of a run ends with a random number.
func renamed(name string, data []byte) []byte {
	h, content, err := openHello(data, name, address(alpha))
	if err != nil || !bytes.Equal(h.Certificate, certificate(alpha)) {
		panic(fmt.Sprintf("the greeting of alpha is invalid, or has another certificate: %v", err))
	}
	return signHello(alpha, content)
}

func newerPeersDelta(data []byte) []byte {
	return withFields(within(data, 3, wrapped(each(wrapped(newerRecord)))))
}

// fixedID replaces the random number of alpha's request when it is recorded.
const fixedID = 0x0000000100000001

func produceMesh(t *testing.T) map[string][]byte {
	t.Helper()
	states0, sets, docs, votes := produceStates(t), produceDirectory(t), produceDocuments(t), produceIPAM(t)
	replicas := []*static{
		{name: "ring", full: states0["ring/founded"]}, {name: "directory", full: sets["directory/full"]}, {name: "documents", full: docs["documents/full"]},
	}
	all := map[string][]byte{}
	onStage(t, func(t *testing.T, s *stage) {
		a := s.today(alpha, settled(alpha))
		for _, r := range replicas {
			a.Replicate(r)
		}
		a.Handle("usage", func(context.Context, peer.ID, []byte) ([]byte, error) { return votes["ipam/usage-answer"], nil })
		s.run(a.Run)
		time.Sleep(time.Second)
		b := s.scripted(&scripted{n: bravo, answer: func(v1Message) ([]byte, string) { return nil, "" }}, alpha)
		eventually.True(t, 10*time.Second, "they meet", func() bool { return a.Reachable(id(bravo)) && len(b.states()) > 0 })
		all["mesh/hello"] = renamed(b.run(alpha))
		all["mesh/push-pull"] = b.states()[0]
		if err := a.Update(func(r *peer.Record) { r.Node = slotNode + 1 }); err != nil {
			t.Fatal(err)
		}
		eventually.True(t, 10*time.Second, "the change is told", func() bool { return len(b.messages()) > 0 })
		all["mesh/delta"] = b.messages()[0]
		must(a.Request(t.Context(), id(bravo), "usage", []byte("anything")))
		for _, data := range b.messages() {
			if must(decode[v1Envelope](data)).Kind == v1Request {
				all["mesh/request"] = aimed(data, map[uint64]any{1: uint64(fixedID)})
			}
		}
		all["mesh/reply"], all["mesh/refusal"] = b.ask(alpha, "usage", nil), b.ask(alpha, "no/such/thing", nil)
	})
	onStage(t, func(t *testing.T, s *stage) {
		b := s.scripted(&scripted{n: bravo})
		a := must(mesh.New(mesh.Config{
			Identity: key(alpha), Record: record(alpha), Root: rootPublic(), Certificate: certificate(alpha), Store: newShelf(),
			Targets: []string{address(bravo).Addr().String()}, Port: 6783, Log: quiet, Changed: nothing, Transport: s.net.Join(address(alpha)),
		}))
		a.Replicate(&static{name: "votes", full: votes["ipam/votes-full"]})
		s.run(a.Run)
		eventually.True(t, 10*time.Second, "they meet", func() bool { return len(b.states()) > 0 })
		all["mesh/hello-joining"] = renamed(b.run(alpha))
		all["mesh/push-pull-voting"] = b.states()[0]
	})
	return all
}

// meet lets a scripted alpha join delta, and returns the effect on delta.
func meet(t *testing.T, a *scripted, then func(s *stage, d *mesh.Mesh, replicas []*static) string) (out string) {
	t.Helper()
	onStage(t, func(t *testing.T, s *stage) {
		d := s.today(delta, record(delta))
		replicas := []*static{{name: "ring"}, {name: "votes"}, {name: "directory"}, {name: "documents"}}
		for _, r := range replicas {
			d.Replicate(r)
		}
		d.Handle("usage", func(_ context.Context, from peer.ID, payload []byte) ([]byte, error) {
			return fmt.Appendf(nil, "%s said %q", nameOf(from), payload), nil
		})
		s.run(d.Run)
		time.Sleep(time.Second)
		a.n = alpha
		s.scripted(a, delta)
		time.Sleep(5 * time.Second)
		out = then(s, d, replicas)
	})
	return out
}

func readHello(t *testing.T, data []byte) string {
	t.Helper()
	return meet(t, &scripted{hello: data}, func(_ *stage, d *mesh.Mesh, _ []*static) string {
		return tell(show(map[string]any{"let in": d.Reachable(id(alpha))}), describeRejections(d))
	})
}

func describeRejections(d *mesh.Mesh) (out string) {
	for _, r := range d.Rejections() {
		out += fmt.Sprintf("refused: %s\n", r.Reason)
	}
	return out
}

func readPushPull(t *testing.T, data []byte) string {
	t.Helper()
	got := map[string][]byte{}
	out := meet(t, &scripted{state: data, unproven: true}, func(_ *stage, d *mesh.Mesh, replicas []*static) string {
		for _, r := range replicas {
			if data := r.first(); data != nil {
				got[r.name] = data
			}
		}
		return tell(describePeers(d), describeRejections(d))
	})
	for _, name := range sorted(got) {
		out += fmt.Sprintf("hears of %s:\n", name)
		switch name {
		case "ring":
			out += readRing(t, got[name])
		case "votes":
			out += readVotes(t, got[name])
		case "directory":
			out += readDirectoryNews(t, got[name])
		case "documents":
			out += readDocumentNews(t, got[name])
		}
	}
	return out
}

func readDelta(t *testing.T, data []byte) string {
	t.Helper()
	a := &scripted{}
	return meet(t, a, func(_ *stage, d *mesh.Mesh, _ []*static) string {
		a.send(id(delta), data)
		time.Sleep(time.Second)
		return describePeers(d)
	})
}

// readRequest returns the reply to a recorded request. The request gets a new receiver, since the
// recorded one is for another run of a peer. It gets a new signature, since peers serve no request
// twice.
func readRequest(t *testing.T, data []byte) string {
	t.Helper()
	a := &scripted{}
	return meet(t, a, func(_ *stage, _ *mesh.Mesh, _ []*static) string {
		ignored := a.exchange(delta, fixedID, data)
		name, _ := a.run(delta)
		answer := a.exchange(delta, fixedID, aimed(data, map[uint64]any{3: [8]byte(id(delta)), 8: name}))
		if answer == nil {
			return "no answer\n"
		}
		m, _, err := openMessage(must(decode[v1Envelope](answer)).Payload)
		return show(map[string]any{"served as it was recorded": ignored != nil, "error": err, "answer": m.Payload, "refused": m.Error})
	})
}

// readReply returns the effect of a recorded reply on the requester. The reply first gets the
// number of the request that it answers now.
func readReply(t *testing.T, data []byte) string {
	t.Helper()
	a := &scripted{}
	return meet(t, a, func(_ *stage, d *mesh.Mesh, _ []*static) string {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		go func() {
			for range 20 {
				time.Sleep(100 * time.Millisecond)
				for _, heard := range a.messages() {
					e := must(decode[v1Envelope](heard))
					if m, _, err := openMessage(e.Payload); e.Kind == v1Request && err == nil {
						a.send(id(delta), aimed(data, map[uint64]any{1: m.ID, 3: m.From}))
					}
				}
			}
		}()
		answer, err := d.Request(ctx, id(alpha), "usage", nil)
		if err != nil && strings.Contains(err.Error(), id(alpha).String()) {
			err = fmt.Errorf("no answer of alpha")
		}
		return show(map[string]any{"error": err, "answer": answer})
	})
}
