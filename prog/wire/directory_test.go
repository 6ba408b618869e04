package wire

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"weft/ipam/slot"
	"weft/mesh"
	"weft/mesh/directory"
	"weft/mesh/meshtest"
	"weft/mesh/peer"
)

// These items contain endpoints: as sets, in gossip, in requests and on disk.

var directoryItems = map[string]item{
	"directory/set":          {what: "all endpoints of alpha", read: readSet, newer: newerSet},
	"directory/set-first":    {what: "all endpoints of alpha, one version before", read: readSet, newer: newerSet},
	"directory/news-held":    {what: "gossip: alpha has its first set", read: readFirstNews, newer: newerHeld},
	"directory/news-delta":   {what: "gossip: what changed between the two sets", read: readDirectoryNews, newer: newerDelta},
	"directory/full":         {what: "push/pull: which sets alpha has", read: readDirectoryNews, newer: newerHeld},
	"directory/sets-request": {what: "request directory/sets: whose sets are wanted", read: readSetsRequest},
	"directory/sets-answer":  {what: "its answer", read: readSetsAnswer, newer: each(wrapped(newerSet))},
	"directory/held-request": {what: "request directory/held: which version alpha has of its own set", read: readHeldRequest, newer: withFields},
	"directory/held-answer":  {what: "its answer: which version of alpha's set bravo has", read: readHeldAnswer, newer: withFields},
	"disk/endpoints-own":     {what: "in bucket directory: alpha's own set, with a released slot that other peers may still map to its former endpoint", read: readOwnSet, newer: withFields},
	"disk/endpoints-another": {what: "in bucket directory: the set of another peer", read: readSet, newer: newerSet},
}

func newerHeld(data []byte) []byte { return withFields(within(data, 2, each(withFields))) }

// newerDelta changes the recorded set into one with endpoints of a newer version.
func newerDelta(data []byte) []byte {
	n := must(decode[v1SetNews](data))
	d := must(decode[v1SetDelta](n.Delta))
	for i, e := range d.Put {
		d.Put[i] = newerEndpoint(e)
	}
	s := must(decode[v1Set](scene["directory/set-first"]))
	gone := map[string]bool{}
	for _, name := range d.Gone {
		gone[name] = true
	}
	all := map[string][]byte{}
	for _, e := range s.Endpoints {
		all[must(decode[v1Endpoint](e)).ID] = e
	}
	for _, e := range d.Put {
		all[must(decode[v1Endpoint](e)).ID] = e
	}
	var list [][]byte
	var ids []string
	for name := range all {
		if !gone[name] {
			ids = append(ids, name)
		}
	}
	slices.Sort(ids)
	for _, name := range ids {
		list = append(list, all[name])
	}
	d.Signature = sign(holder(s.Identity), v1ForSet, setContent(d.Owner, d.To, list))
	n.Delta = withFields(encode(d))
	return withFields(encode(n))
}

var endpointsBefore = []directory.Endpoint{
	{ID: "node", Slots: []slot.Slot{slotNode}, Name: "alpha"},
	{
		ID: "c0ffee/eth0", Slots: []slot.Slot{slotWeb, slotDB}, Name: "web", Namespace: "default", Labels: map[string]string{"app": "web", "tier": "front"},
		Aliases: []string{"www.default"}, Ports: []directory.Port{{Name: "http", Protocol: "tcp", Number: 8080}, {Name: "dns", Protocol: "udp", Number: 53}},
	},
	{ID: "old/eth0", Slots: []slot.Slot{9}, Name: "old"},
}

var endpointsAfter = []directory.Endpoint{
	endpointsBefore[0],
	{ID: "c0ffee/eth0", Slots: []slot.Slot{slotWeb, slotDB}, Name: "web", Namespace: "default", Labels: map[string]string{"app": "web"}, IPv4Only: true},
	{ID: "name/printer", Name: "printer", Outside: []netip.Addr{netip.MustParseAddr("198.51.100.7"), netip.MustParseAddr("2001:db8::7")}},
}

// directoryOf returns a directory for one peer that has the given sets.
func directoryOf(n int, s *station, disk *shelf, sets ...[]byte) *mesh.Directory {
	return must(mesh.NewDirectory(mesh.DirectoryConfig{
		Identity: key(n), Mesh: s, Store: disk, Sets: sets, Wanted: func(peer.ID) bool { return true }, Log: quiet, Changed: nothing,
	}))
}

// during runs a component for the duration d.
func during(t *testing.T, run func(context.Context) error, d time.Duration) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	time.Sleep(d)
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	synctest.Wait()
}

func produceDirectory(t *testing.T) map[string][]byte {
	t.Helper()
	all := map[string][]byte{}
	synctest.Test(t, func(t *testing.T) {
		there, disk := among([]int{bravo}), newShelf()
		a := directoryOf(alpha, there, disk)
		ask := func(d *mesh.Directory, kind string, from int, payload []byte) []byte {
			return must(d.Handlers()[kind](t.Context(), id(from), payload))
		}
		first := func(sets []byte) []byte { return must(decode[[][]byte](sets))[0] }
		if err := a.Publish(endpointsBefore); err != nil {
			t.Fatal(err)
		}
		all["directory/news-held"] = there.last()
		whose := encode([][8]byte{[8]byte(id(alpha))})
		all["directory/set-first"] = first(ask(a, "directory/sets", bravo, whose))
		if err := a.Publish(endpointsAfter); err != nil {
			t.Fatal(err)
		}
		all["directory/news-delta"], all["directory/full"], all["disk/endpoints-own"] = there.last(), a.Full(), disk.Sets()[id(alpha)]

		here, theirs := among([]int{alpha}, func(q meshtest.Asked) ([]byte, error) {
			return ask(a, q.Kind, bravo, q.Payload), nil
		}), newShelf()
		b := directoryOf(bravo, here, theirs)
		if _, err := b.Merge(a.Full()); err != nil {
			t.Fatal(err)
		}
		during(t, b.Run, 2*time.Second)
		all["directory/sets-request"] = here.questions("directory/sets")[0]
		all["directory/sets-answer"] = ask(a, "directory/sets", bravo, all["directory/sets-request"])
		all["directory/set"], all["disk/endpoints-another"] = first(all["directory/sets-answer"]), theirs.Sets()[id(alpha)]

		during(t, a.Run, 20*time.Second) // the directory asks bravo to confirm that the old endpoint is forgotten
		all["directory/held-request"] = there.questions("directory/held")[0]
		all["directory/held-answer"] = ask(b, "directory/held", alpha, all["directory/held-request"])
	})
	return all
}

func readSet(t *testing.T, data []byte) string {
	t.Helper()
	s, err := directory.Decode(data)
	if err != nil {
		return show(err)
	}
	return tell(fmt.Sprintf("version %d of the endpoints of %s\n", s.Version, nameOf(s.Owner)), show(s.Endpoints()))
}

// readDirectoryNews returns the effect of gossip on a peer that has alpha's first set.
func readDirectoryNews(t *testing.T, data []byte) string {
	t.Helper()
	return readNews(t, data, scene["directory/set-first"])
}

// readFirstNews returns the effect of gossip on a peer that has no sets.
func readFirstNews(t *testing.T, data []byte) string {
	t.Helper()
	return readNews(t, data)
}

func readNews(t *testing.T, data []byte, before ...[]byte) (out string) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := among([]int{alpha, charlie})
		d := directoryOf(echo, s, newShelf(), before...)
		passedOn, err := d.Merge(data)
		during(t, d.Run, time.Second)
		out = tell(show(map[string]any{"error": err, "passed on": len(passedOn) > 0}), describeSets(d), s.describe())
	})
	return out
}

// describeSets lists the versions of sets. It omits digests, which depend on unknown fields.
func describeSets(d *mesh.Directory) (out string) {
	for _, h := range d.Held() {
		out += fmt.Sprintf("version %d of the endpoints of %s:", h.Version, nameOf(h.Owner))
		for _, n := range d.Listed(h.Owner) {
			out += fmt.Sprintf(" %d", n)
		}
		out += "\n"
	}
	return out
}

func (s *station) describe() (out string) {
	for _, q := range s.Requests("") {
		out += fmt.Sprintf("asks %s for %s: %x\n", nameOf(q.To), q.Kind, q.Payload)
	}
	return out
}

func readSetsRequest(t *testing.T, data []byte) string {
	t.Helper()
	d := directoryOf(alpha, &station{}, newShelf(), scene["directory/set"])
	answer, err := d.Handlers()["directory/sets"](t.Context(), id(bravo), data)
	if err != nil {
		return show(err)
	}
	out := "is answered with\n"
	for _, set := range must(decode[[][]byte](answer)) {
		out += readSet(t, set)
	}
	return out
}

// readSetsAnswer returns the effect of a reply on the requester.
func readSetsAnswer(t *testing.T, data []byte) (out string) {
	t.Helper()
	news := scene["directory/full"]
	synctest.Test(t, func(t *testing.T) {
		d := directoryOf(echo, among([]int{alpha}, func(meshtest.Asked) ([]byte, error) { return data, nil }), newShelf())
		_, err := d.Merge(news)
		during(t, d.Run, time.Second)
		out = tell(show(map[string]any{"error": err}), describeSets(d))
	})
	return out
}

func readHeldRequest(t *testing.T, data []byte) string {
	t.Helper()
	d := directoryOf(bravo, &station{}, newShelf(), scene["directory/set"])
	answer, err := d.Handlers()["directory/held"](t.Context(), id(alpha), data)
	return show(map[string]any{"error": err, "answer": answer})
}

// readHeldAnswer returns whether the reply makes alpha free the slot that it released.
func readHeldAnswer(t *testing.T, data []byte) (out string) {
	t.Helper()
	own := scene["disk/endpoints-own"]
	synctest.Test(t, func(t *testing.T) {
		d := directoryOf(alpha, among([]int{bravo}, func(meshtest.Asked) ([]byte, error) { return data, nil }), newShelf(), own)
		before := d.Taken(9)
		during(t, d.Run, 20*time.Second)
		_, _, why := d.Stuck()
		out = show(map[string]any{"slot 9 was taken": before, "is taken": d.Taken(9), "error": why})
	})
	return out
}

func readOwnSet(t *testing.T, data []byte) string {
	t.Helper()
	d := directoryOf(alpha, &station{}, newShelf(), data)
	return tell(describeSets(d), show(map[string]any{"slot 9 is taken": d.Taken(9), "slot 10 is taken": d.Taken(10)}))
}
