package reclaim

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"weft/mesh/peer"
	"weft/prog/kube"
)

// The facts are those that peer 1 knows, in a cluster with the Nodes a, b and c.
func TestAddressesAreReclaimedOfSilentPeersWhoseNodesAreGone(t *testing.T) {
	id := func(n byte) peer.ID { return peer.ID{n} }
	p := func(n byte, host string, silent int) resident {
		return resident{ID: id(n), Host: host, Here: silent == 0, Silent: time.Duration(silent) * time.Second}
	}
	self := resident{ID: id(1), Host: "a", Here: true, Silent: time.Hour}
	nodes := func(uids ...string) (out []kube.Node) {
		for _, u := range uids {
			out = append(out, kube.Node{Name: "node-" + u, UID: u, Ready: true})
		}
		return out
	}
	for _, c := range []struct {
		name            string
		peers           []resident
		nodes           []kube.Node
		idle            []byte // the peers that own no addresses
		founder         byte
		founderHost     string
		gone, answering []byte
		turn            int
		cutOff          bool
		startedJustNow  bool
	}{
		{name: "all is well", peers: []resident{p(2, "b", 0), p(3, "c", 0)}, nodes: nodes("a", "b", "c")},
		{name: "deleted and silent", peers: []resident{p(2, "b", 0), p(3, "c", 31)}, nodes: nodes("a", "b"), gone: []byte{3}},
		{name: "deleted and silent, in a cluster of two", peers: []resident{p(3, "c", 31)}, nodes: nodes("a"), gone: []byte{3}},
		{name: "deleted, silent for a moment", peers: []resident{p(2, "b", 0), p(3, "c", 29)}, nodes: nodes("a", "b")},
		{name: "only not ready", peers: []resident{p(2, "b", 0), p(3, "c", 86400)}, nodes: append(nodes("a", "b"), kube.Node{Name: "c", UID: "c"})},
		{name: "deleted, and still answers", peers: []resident{p(2, "b", 0), p(3, "c", 0)}, nodes: nodes("a", "b"), answering: []byte{3}},
		{name: "its Node was replaced by another with the same name, and it is silent", peers: []resident{p(2, "b", 0), p(3, "c", 60)}, nodes: nodes("a", "b", "c2"), gone: []byte{3}},
		{name: "its disk was lost", peers: []resident{p(2, "b", 0), p(3, "c", 60), p(4, "c", 0)}, nodes: nodes("a", "b", "c"), gone: []byte{3}},
		{name: "two lost disks", peers: []resident{p(2, "b", 0), p(3, "c", 60), p(4, "c", 60), p(5, "c", 0)}, nodes: nodes("a", "b", "c"), gone: []byte{3, 4}},
		{name: "two peers of one Node, both silent", peers: []resident{p(2, "b", 0), p(3, "c", 60), p(4, "c", 60)}, nodes: nodes("a", "b", "c")},
		{name: "this peer's own disk was lost", peers: []resident{p(2, "b", 0), p(3, "a", 60)}, nodes: nodes("a", "b"), gone: []byte{3}},
		{name: "it owns nothing", peers: []resident{p(2, "b", 0), p(3, "c", 60)}, nodes: nodes("a", "b"), idle: []byte{3}},
		{name: "it does not announce its Node", peers: []resident{p(2, "b", 0), p(3, "", 60)}, nodes: nodes("a", "b")},
		{name: "cut off from the majority", peers: []resident{p(2, "b", 60), p(3, "c", 60)}, nodes: nodes("a", "b"), cutOff: true},
		{name: "half of the Nodes are no majority", peers: []resident{p(2, "b", 0), p(3, "c", 60), p(4, "d", 60), p(5, "e", 60)}, nodes: nodes("a", "b", "c", "d"), cutOff: true},
		{name: "this peer has heard no other peer", nodes: nodes("a", "b", "c"), founder: 9, founderHost: "gone", cutOff: true},
		{name: "this peer's own Node is deleted", peers: []resident{p(2, "b", 0), p(3, "c", 60)}, nodes: nodes("b"), cutOff: true},
		{name: "no Nodes at all", peers: []resident{p(2, "b", 60)}, cutOff: true},
		{name: "a founder that was never heard, whose Node is gone", peers: []resident{p(2, "b", 0)}, nodes: nodes("a", "b"), founder: 9, founderHost: "c", gone: []byte{9}},
		{name: "a founder that was never heard, whose Node exists", peers: []resident{p(2, "b", 0)}, nodes: nodes("a", "b", "c"), founder: 9, founderHost: "c"},
		{name: "a founder that was never heard, whose disk was lost", peers: []resident{p(2, "b", 0)}, nodes: nodes("a", "b"), founder: 9, founderHost: "b", gone: []byte{9}},
		{name: "a founder that was never heard, just after this peer's start", peers: []resident{p(2, "b", 0)}, nodes: nodes("a", "b"), founder: 9, founderHost: "c", startedJustNow: true},
		{name: "a founder that was heard, on another Node than the Secret names", peers: []resident{p(2, "b", 0), p(9, "d", 60)}, nodes: nodes("a", "b", "d"), founder: 9, founderHost: "c"},
		{name: "the second in turn", peers: []resident{p(0, "b", 0), p(3, "c", 60)}, nodes: nodes("a", "b"), gone: []byte{3}, turn: 1},
	} {
		me := self
		if c.startedJustNow {
			me.Silent = time.Second
		}
		in := census{Self: id(1), Peers: append([]resident{me}, c.peers...), Nodes: c.nodes, Host: c.founderHost, Owners: map[peer.ID]bool{}}
		if c.founder != 0 {
			in.Founder = id(c.founder)
			in.Owners[in.Founder] = true
		}
		for _, x := range in.Peers {
			in.Owners[x.ID] = !slices.Contains(c.idle, x.ID[0])
		}
		v := in.evaluate()
		var got, answering []byte
		for _, g := range v.Gone {
			got = append(got, g.ID[0])
		}
		for _, x := range v.Answering {
			answering = append(answering, x.ID[0])
		}
		if !slices.Equal(got, c.gone) || !slices.Equal(answering, c.answering) || v.Turn != c.turn || v.Cut != c.cutOff {
			t.Errorf("%s: gone %v, answering %v, turn %d, cut off %v; want %v, %v, %d, %v", c.name, got, answering, v.Turn, v.Cut, c.gone, c.answering, c.turn, c.cutOff)
		}
	}
}

// If several peers find the same peer gone, one of them is the first to remove it. Peers on the
// smaller side of a network partition find no peer gone.
func TestPeersTryARemovalOneAfterTheOther(t *testing.T) {
	const all = 7
	var nodes []kube.Node
	for n := range all {
		nodes = append(nodes, kube.Node{UID: fmt.Sprint(n)})
	}
	turns := map[int]bool{}
	for me := range all {
		c := census{Self: peer.ID{byte(me)}, Nodes: nodes, Owners: map[peer.ID]bool{{99}: true}}
		for n := range all {
			c.Peers = append(c.Peers, resident{ID: peer.ID{byte(n)}, Host: fmt.Sprint(n), Here: (n < 4) == (me < 4), Silent: time.Minute})
		}
		c.Peers = append(c.Peers, resident{ID: peer.ID{99}, Host: "deleted", Silent: time.Minute})
		v := c.evaluate()
		if (len(v.Gone) == 1) != (me < 4) || me < 4 && turns[v.Turn] {
			t.Errorf("peer %d: %+v, want one gone peer and a turn of its own on the larger side, else none", me, v)
		}
		turns[v.Turn] = true
	}
}
