package plan

import (
	"crypto/ed25519"
	"net/netip"
	"slices"
	"testing"

	"weft/ipam/slot"
	"weft/mesh"
	"weft/mesh/peer"
	"weft/prog/agent/agenttest"
	"weft/prog/agent/attach"
	"weft/prog/agent/settings"
)

// inputs are those of a host with one endpoint.
func inputs() Inputs {
	e := attach.Endpoint{Slot: 10}
	e.ContainerID, e.Interface = "c1", "eth0"
	return Inputs{
		View: agenttest.View(), Node: 1, LinkMTU: 1500, Endpoints: []attach.Endpoint{e},
		Route: func(netip.Addr) int { return 1500 }, PresharedKey: func(peer.ID) [32]byte { return [32]byte{7} },
	}
}

func TestTheSameInputsMakeTheSamePlan(t *testing.T) {
	in := inputs()
	if a, b := Desired(in), Desired(in); a.String() != b.String() || a.Node != 1 || len(a.Endpoints) != 1 || a.MTU == 0 {
		t.Errorf("two plans of the same inputs:\n%v\n%v\nwant the same text, with one endpoint", a, b)
	}
}

// Slots that another peer took over are removed from the plan: the node address, and endpoints'
// routes.
func TestLostSlotsLeaveThePlan(t *testing.T) {
	in := inputs()
	in.View.Lost = map[string]slot.Slot{settings.NodeKey: 1, "c1/eth0": 10}
	if p := Desired(in); p.Node != 0 || len(p.Endpoints) != 0 || len(p.Lost) != 1 {
		t.Errorf("plan %+v; want no node address, and the endpoint lost", p)
	}
	in.Node = 2 // claimed after the view was taken
	if p := Desired(in); p.Node != 2 {
		t.Errorf("the plan has the node address %d, want 2: it was claimed after the loss", p.Node)
	}
}

// A record alone gets no tunnel: a member can make up as many records as it likes.
func TestOnlyLivePeersAndOwnersOfTheRingGetTunnels(t *testing.T) {
	record := func(n byte) peer.Record {
		key := ed25519.NewKeyFromSeed(slices.Repeat([]byte{n}, ed25519.SeedSize))
		return peer.Record{
			Identity: key.Public().(ed25519.PublicKey), WireGuard: [32]byte{n}, Gossip: 6783, Port: 6784, MTUs: []uint32{1500},
			Underlay: []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, n})},
		}
	}
	owner, met, stranger := record(2), record(3), record(4)
	in := inputs()
	in.View = agenttest.View(owner.ID())
	id := in.View.Ring.ID
	in.View.Own.Underlay = []netip.Addr{netip.MustParseAddr("192.0.2.1")}
	for _, r := range []*peer.Record{&owner, &met, &stranger} {
		r.Ring = id[:]
	}
	in.View.Peers = []mesh.Peer{{Record: owner}, {Record: met, Met: true}, {Record: stranger}, {Record: peer.Record{Nickname: "no record yet"}}}
	var got []peer.ID
	for _, tunnel := range Desired(in).Tunnels {
		got = append(got, tunnel.Peer)
	}
	if len(got) != 2 || !slices.Contains(got, owner.ID()) || !slices.Contains(got, met.ID()) {
		t.Errorf("tunnels to %v, want to %v and %v", got, owner.ID(), met.ID())
	}
}

func TestKeysStayOutOfPrintedPlans(t *testing.T) {
	in := inputs()
	in.PrivateKey = [32]byte{1, 2, 3}
	if text := Desired(in).String(); slices.Contains([]byte(text), 0) || len(text) > 200 {
		t.Errorf("the printed plan is %q, want a short text without bytes of keys", text)
	}
}
