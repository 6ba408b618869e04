package mesh

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync"

	"github.com/fxamacker/cbor/v2"
	"github.com/hashicorp/memberlist"

	"weft/mesh/peer"
)

// hello is what a peer says of itself in memberlist's node metadata (at most 512
// bytes): enough to refuse one that does not belong here before anything is merged.
type hello struct {
	Version uint         `cbor:"1,keyasint"`
	Cluster [16]byte     `cbor:"2,keyasint"` // zero while it is not known
	V4      netip.Prefix `cbor:"3,keyasint"` // the universe; zero while it is not known
}

// refuse reports why two peers cannot be in one mesh.
func (h hello) refuse(o hello) error {
	switch {
	case h.Version != o.Version:
		return fmt.Errorf("it speaks version %d of the protocol, this peer version %d: upgrade the older one", o.Version, h.Version)
	case h.V4.IsValid() && o.V4.IsValid() && h.V4 != o.V4:
		return fmt.Errorf("its universe is %v, this peer's is %v: launch both with the same --ipalloc-range", o.V4, h.V4)
	}
	return nil
}

const unreadable = "its greeting cannot be read: another program with this secret, or a version of Weft that is much newer than this peer's"

// readHello reads a greeting. Of one of another version no more than that needs to be
// readable: it is refused by its version.
func readHello(data []byte, ours uint) (h hello, err error) {
	if err = decoding.Unmarshal(data, &h); err == nil {
		return h, nil
	}
	var other struct {
		Version uint `cbor:"1,keyasint"`
	}
	if e := decoding.Unmarshal(data, &other); e == nil && other.Version != 0 && other.Version != ours {
		return hello{Version: other.Version}, nil
	}
	return hello{}, err
}

// envelope is every message between two peers.
type envelope struct {
	Kind    uint   `cbor:"1,keyasint"`
	Replica string `cbor:"2,keyasint,omitempty"` // of a delta
	Payload []byte `cbor:"3,keyasint,omitempty"`
}

const (
	kindDelta   = 1
	kindRequest = 2
	kindReply   = 3
)

// maxGossip is the largest delta that travels by gossip: a UDP packet of
// memberlist holds 1,400 bytes with its own and the cipher's overhead. Larger
// ones are sent reliably to a few peers, who pass on what is news to them.
const (
	maxGossip   = 1200
	someNodes   = 3
	promptNodes = 8
)

// retransmits is how often each peer passes a piece of news on, times the digits of the
// number of peers. With memberlist's 4, of 99 peers one missed one piece of news in 30
// without any loss, until the next push/pull; with 8 one in 100,000.
const retransmits = 8

var (
	encoding = must(cbor.CoreDetEncOptions().EncMode())
	decoding = must(cbor.DecOptions{DupMapKey: cbor.DupMapKeyEnforcedAPF, MaxArrayElements: 1 << 17, MaxMapPairs: 1 << 10, MaxNestedLevels: 16}.DecMode())
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err) // constant options, or our own types
	}
	return v
}

func encode(v any) []byte { return must(encoding.Marshal(v)) }

// Broadcast tells all peers a delta that is this peer's own news. It does not
// block. A few peers hear it at once, the others by gossip.
func (m *Mesh) Broadcast(replica string, delta []byte) {
	m.passOn(replica, delta)
	if m.speaks() && len(delta) <= maxGossip {
		go m.sendNow(encode(envelope{Kind: kindDelta, Replica: replica, Payload: delta}))
	}
}

// passOn leaves a delta to gossip.
func (m *Mesh) passOn(replica string, delta []byte) {
	if !m.speaks() {
		return // push/pull carries it once we have joined
	}
	e := envelope{Kind: kindDelta, Replica: replica, Payload: delta}
	if len(delta) <= maxGossip {
		m.queue.QueueBroadcast(broadcast(encode(e)))
		return
	}
	go m.sendToSome(e)
}

// speaks reports whether anything may be said in this peer's name: as long as another host
// may have the same, that one's word counts.
func (m *Mesh) speaks() bool { return m.running() && m.Confirmed() }

// sendNow sends a message to a few random peers by UDP, without waiting for the
// next round of gossip.
func (m *Mesh) sendNow(data []byte) {
	for i, n := range m.members.shuffled() {
		if i < promptNodes {
			_ = m.list.SendBestEffort(n, data) // gossip repeats it
		}
	}
}

// sendToSome sends a message reliably to a few random peers, to all of them at once:
// one that does not answer takes its time.
func (m *Mesh) sendToSome(e envelope) {
	data, nodes := encode(e), m.members.shuffled()
	var group sync.WaitGroup
	for _, n := range nodes[:min(len(nodes), someNodes)] {
		group.Go(func() { _ = m.list.SendReliable(n, data) }) // push/pull brings it all the same
	}
	group.Wait()
}

// broadcast is a message in memberlist's queue; states never invalidate each
// other there, since a later delta need not contain an earlier one.
type broadcast []byte

func (broadcast) Invalidates(memberlist.Broadcast) bool { return false }
func (b broadcast) Message() []byte                     { return b }
func (broadcast) Finished()                             {}
func (broadcast) UniqueBroadcast()                      {}

// delegate is how memberlist speaks to us.
type delegate struct{ m *Mesh }

func (d delegate) NodeMeta(int) []byte {
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	return encode(d.m.hello)
}

// NotifyMsg must not block memberlist: what does not fit is dropped, and healed by
// push/pull or the sender's deadline.
func (d delegate) NotifyMsg(data []byte) {
	select {
	case d.m.inbox <- append([]byte(nil), data...):
	default:
	}
}

func (d delegate) GetBroadcasts(overhead, limit int) [][]byte {
	return d.m.queue.GetBroadcasts(overhead, limit)
}

func (d delegate) LocalState(bool) []byte {
	states := map[string][]byte{}
	if !d.m.speaks() {
		return encode(states)
	}
	for name, r := range d.m.replicas {
		if full := r.Full(); full != nil {
			states[name] = full
		}
	}
	return encode(states)
}

func (d delegate) MergeRemoteState(data []byte, _ bool) {
	var states map[string][]byte
	if err := decoding.Unmarshal(data, &states); err != nil {
		d.m.cfg.Log.Warn("unreadable state from a peer", "err", err)
		return
	}
	for name, state := range states {
		d.m.merge(name, state)
	}
	d.m.noteJoined() // memberlist has taken in the members before this
}

// merge gives a state to its replica, and passes on what was news.
func (m *Mesh) merge(name string, state []byte) {
	r, ok := m.replicas[name]
	if !ok {
		return // of a newer version
	}
	news, err := r.Merge(state)
	if err != nil {
		m.cfg.Log.Warn("state from a peer not merged", "replica", name, "err", err)
	}
	if news != nil {
		m.passOn(name, news)
	}
}

// consume handles messages, one after the other.
func (m *Mesh) consume(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case data := <-m.inbox:
			m.receive(ctx, data)
		}
	}
}

func (m *Mesh) receive(ctx context.Context, data []byte) {
	var e envelope
	if err := decoding.Unmarshal(data, &e); err != nil {
		m.cfg.Log.Debug("unreadable message from a peer", "err", err)
		return
	}
	switch e.Kind {
	case kindDelta:
		m.merge(e.Replica, e.Payload)
	case kindRequest:
		m.serve(ctx, e.Payload, nil)
	case kindReply:
		m.deliver(e.Payload)
	}
}

// events keep track of who can be reached.
type events struct{ m *Mesh }

func (e events) NotifyJoin(n *memberlist.Node) {
	if n.Name != e.m.name {
		e.m.members.join(n)
	}
	e.m.believe(n)
}

func (e events) NotifyLeave(n *memberlist.Node) {
	e.m.members.leave(n.Name)
	e.m.disbelieve(n.Name)
	e.m.ways.forget(n.Name)
}

func (events) NotifyUpdate(*memberlist.Node) {}

func idOfNode(name string) (peer.ID, bool) {
	head, _, _ := strings.Cut(name, "-")
	id, err := peer.ParseID(head)
	return id, err == nil
}

// gate refuses peers that do not belong here, at the door and in rumours.
type gate struct{ m *Mesh }

func (g gate) NotifyMerge(nodes []*memberlist.Node) error {
	for _, n := range nodes {
		if err := g.belongs(n); err != nil {
			return err
		}
	}
	return nil
}

// maxNodeName is longer than any name of a run, see nodeName.
const maxNodeName = 64

// NotifyAlive also refuses what no peer says: memberlist has no bound of its own, and all that
// it takes in is a part of every exchange of states.
func (g gate) NotifyAlive(n *memberlist.Node) error {
	if n.Name == g.m.name {
		return nil
	}
	_, isRun := idOfNode(n.Name)
	if !isRun || len(n.Name) > maxNodeName || len(n.Meta) > memberlist.MetaMaxSize {
		return fmt.Errorf("mesh: %v: a name of %d bytes and a greeting of %d are no peer's", n.Addr, len(n.Name), len(n.Meta))
	}
	if !g.m.members.room(n.Name) {
		return fmt.Errorf("mesh: %v: no room for more than %d members", n.Addr, maxPeers)
	}
	return g.belongs(n)
}

func (g gate) belongs(n *memberlist.Node) error {
	if n.Name == g.m.name {
		return nil
	}
	g.m.mu.Lock()
	ours := g.m.hello
	g.m.mu.Unlock()
	theirs, err := readHello(n.Meta, ours.Version)
	if err != nil {
		g.m.reject(n.Addr.String(), unreadable)
		return fmt.Errorf("mesh: %v was refused: %s: %w", n.Addr, unreadable, err)
	}
	if err := ours.refuse(theirs); err != nil {
		g.m.reject(n.Addr.String(), err.Error())
		return fmt.Errorf("mesh: %v was refused: %w", n.Addr, err)
	}
	return nil
}
