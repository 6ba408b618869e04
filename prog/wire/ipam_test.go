package wire

import (
	"context"
	"encoding/binary"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"weft/ipam"
	"weft/ipam/paxos"
	"weft/ipam/ring"
	"weft/ipam/slot"
	"weft/mesh/meshtest"
	"weft/mesh/peer"
)

// These items are requests between allocators and their answers, and the state of the vote,
// which gossip replicates.

var ipamItems = map[string]item{
	"ipam/ring-answer":      {what: "the answer to request ring: the whole ring (the request's payload is empty)", read: readRing, newer: newerRing},
	"ipam/usage-answer":     {what: "the answer to request usage (the request's payload is empty)", read: readUsage, newer: withFields},
	"ipam/space-answer":     {what: "the answer to requests space and pressed (the requests' payload is empty): a grant to delta", read: readGrant, newer: newerRing},
	"ipam/claim-request":    {what: "request claim: a slot, 4 bytes", read: readClaim},
	"ipam/claim-answer":     {what: "its answer: a grant of one slot to alpha", read: readRing, newer: newerRing},
	"ipam/removal-request":  {what: "request removal: whether charlie is dead; its id and 0", read: readRemoval},
	"ipam/removal-given-up": {what: "request removal: never mind; the id and 1", read: readRemoval},
	"ipam/removal-answer":   {what: "its answer: the ring", read: readRing, newer: newerRing},
	"ipam/inherit-request":  {what: "request inherit: what alpha leaves to bravo (its answer is empty)", read: readInherit, newer: newerRing},
	"ipam/votes-full":       {what: "push/pull: the votes, while there is no ring", read: readVotes, newer: newerVotes},
}

// allocator runs a single allocator with a ring.
func allocator(t *testing.T, n int, s *station, r ring.Ring) (a *ipam.Allocator, stop func()) {
	t.Helper()
	return allocatorWith(t, s, ipam.Config{Self: id(n), Found: &r})
}

func allocatorWith(t *testing.T, s *station, cfg ipam.Config) (a *ipam.Allocator, stop func()) {
	t.Helper()
	cfg.Store, cfg.Mesh, cfg.Log, cfg.Changed = newShelf(), s, quiet, nothing
	a = ipam.New(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	return a, func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		synctest.Wait()
	}
}

type refusal string

func (r refusal) Error() string   { return string(r) }
func (r refusal) Refused() string { return string(r) }

// passing answers requests with the handlers of another allocator.
func passing(t *testing.T, from int, to *ipam.Allocator) func(meshtest.Asked) ([]byte, error) {
	return func(q meshtest.Asked) ([]byte, error) {
		data, err := to.Handlers()[q.Kind](t.Context(), id(from), q.Payload)
		if err != nil {
			return nil, refusal(err.Error())
		}
		return data, nil
	}
}

func produceIPAM(t *testing.T) map[string][]byte {
	t.Helper()
	all := map[string][]byte{}
	synctest.Test(t, func(t *testing.T) {
		there, here := among([]int{alpha, charlie}), among([]int{bravo})
		b, stopB := allocator(t, bravo, there, founded())
		a, stopA := allocator(t, alpha, here, founded())
		here.Reply = passing(t, alpha, b)
		answer := func(a *ipam.Allocator, from int, kind string, payload []byte) []byte {
			return must(a.Handlers()[kind](t.Context(), id(from), payload))
		}
		must(a.Allocate(t.Context(), "c0ffee/eth0", nil))
		must(a.Allocate(t.Context(), "old/eth0", nil))
		if err := errors.Join(a.Free(t.Context(), "old/eth0"), a.Claim(t.Context(), "far/eth0", slotFar, nil)); err != nil {
			t.Fatal(err)
		}
		all["ipam/claim-request"], all["ipam/claim-answer"] = here.questions("claim")[0], there.last()
		all["ipam/usage-answer"] = answer(a, delta, "usage", nil)
		all["ipam/space-answer"] = answer(a, delta, "space", nil)

		if _, err := a.RemovePeer(t.Context(), id(charlie), true); err == nil {
			t.Error("Remove(charlie) succeeded, want an error: charlie owns no slots")
		}
		removal := here.questions("removal")
		all["ipam/removal-request"], all["ipam/removal-given-up"] = removal[0], removal[1]
		all["ipam/ring-answer"] = answer(b, alpha, "ring", nil)
		there.Peers = among([]int{alpha}).Peers
		all["ipam/removal-answer"] = answer(b, alpha, "removal", removal[0])
		if _, err := a.Leave(t.Context()); err != nil {
			t.Fatal(err)
		}
		all["ipam/inherit-request"] = here.questions("inherit")[0]
		stopA()
		stopB()
	})
	synctest.Test(t, func(t *testing.T) {
		v, stop := allocatorWith(t, &station{}, ipam.Config{Self: id(charlie), Elect: &ipam.Election{
			Terms: paxos.Terms{Expect: 5, V4: universe.V4}, Elsewhere: func() bool { return true },
		}})
		all["ipam/votes-full"] = v.Votes().Full()
		stop()
	})
	return all
}

// readUsage returns how the requester decodes the reply.
func readUsage(t *testing.T, data []byte) (out string) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		a, stop := allocator(t, delta, among([]int{alpha}, func(meshtest.Asked) ([]byte, error) { return data, nil }), founded())
		for p, u := range a.Usage(t.Context(), []peer.ID{id(alpha)}) {
			out += tell("of "+nameOf(p)+"\n", show(u))
		}
		stop()
	})
	return out
}

// readGrant returns the effect of a reply on delta's request for space.
func readGrant(t *testing.T, data []byte) (out string) {
	t.Helper()
	usage := scene["ipam/usage-answer"]
	synctest.Test(t, func(t *testing.T) {
		s := among([]int{alpha}, func(q meshtest.Asked) ([]byte, error) {
			if q.Kind == "usage" {
				return usage, nil
			}
			return data, nil
		})
		a, stop := allocator(t, delta, s, founded())
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		got, err := a.Allocate(ctx, "new/eth0", nil)
		out = show(map[string]any{"error": err, "first address": universe.Addr4(got)})
		stop()
	})
	return tell(readRing(t, data), out)
}

// serve returns an allocator's reply to a request from alpha, and its ring afterwards.
func serve(t *testing.T, n int, kind string, others []int, data []byte) (out string) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		a, stop := allocator(t, n, among(others), founded())
		answer, err := a.Handlers()[kind](t.Context(), id(alpha), data)
		snap := must(a.Snapshot(t.Context()))
		out = tell(show(map[string]any{"error": err, "answered": len(answer) > 0}), "the ring is then\n", describeRing(snap.Ring))
		stop()
	})
	return out
}

func readClaim(t *testing.T, data []byte) string {
	t.Helper()
	want := "no slot\n"
	if len(data) == 4 {
		want = universe.Addr4(slot.Slot(binary.BigEndian.Uint32(data))).String() + "\n"
	}
	return tell(want, serve(t, bravo, "claim", nil, data))
}

// readRemoval shows the effect of a removal request by the replies to the requests after it.
func readRemoval(t *testing.T, data []byte) (out string) {
	t.Helper()
	asked := scene["ipam/removal-request"]
	synctest.Test(t, func(t *testing.T) {
		s := among([]int{charlie})
		s.Down = s.Peers
		a, stop := allocator(t, bravo, s, founded())
		ask := func(from int, data []byte) error {
			_, err := a.Handlers()["removal"](t.Context(), id(from), data)
			return err
		}
		first, then, other := ask(alpha, asked), ask(alpha, data), ask(delta, asked)
		out = show(map[string]any{"1 alpha, who asks, is told": first, "2 alpha, who says this, is told": then, "3 delta, who asks next, is told": other})
		stop()
	})
	return out
}

func readInherit(t *testing.T, data []byte) string {
	t.Helper()
	return serve(t, bravo, "inherit", nil, data)
}
