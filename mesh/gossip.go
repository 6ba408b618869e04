package mesh

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/hashicorp/memberlist"

	"weft/mesh/peer"
)

// envelope is the frame of every message between two peers.
type envelope struct {
	Kind    uint   `cbor:"1,keyasint"`
	Replica string `cbor:"2,keyasint,omitempty"` // the state that a delta belongs to
	Payload []byte `cbor:"3,keyasint,omitempty"`
}

const (
	kindDelta   = 1
	kindRequest = 2
	kindReply   = 3
)

// maxGossip is the largest delta sent by gossip. A UDP packet of memberlist holds 1,400 bytes,
// including its own and the cipher's overhead. Larger deltas are sent over TCP to a few peers,
// which pass on the parts that are news to them.
const (
	maxGossip   = 1200
	someNodes   = 3
	promptNodes = 8
)

// Each peer passes a delta on as often as retransmits times the number of decimal digits of the
// number of peers. With memberlist's default of 4, one of 99 peers missed one delta in 30 until
// the next push/pull, even without packet loss. With 8, one delta in 100,000 is missed.
const retransmits = 8

// pushPull is how often a peer exchanges whole states with another one. memberlist's default is 30 s; each
// exchange needs a stream, whose handshake costs 3.7 kB, and with retransmits, gossip hardly loses news.
const pushPull = time.Minute

var (
	encoding = must(cbor.CoreDetEncOptions().EncMode())
	decoding = must(cbor.DecOptions{DupMapKey: cbor.DupMapKeyEnforcedAPF, MaxArrayElements: 1 << 17, MaxMapPairs: 1 << 10, MaxNestedLevels: 16}.DecMode())
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err) // only constant options and our own types reach this
	}
	return v
}

func encode(v any) []byte { return must(encoding.Marshal(v)) }

// Broadcast sends a delta of this peer to all peers. It does not block. A few peers receive the
// delta at once, the other peers by gossip.
func (m *Mesh) Broadcast(replica string, delta []byte) {
	if m.passOn(replica, delta) && len(delta) <= maxGossip {
		go m.sendNow(encode(envelope{Kind: kindDelta, Replica: replica, Payload: delta}))
	}
}

// passOn sends a delta by gossip, and reports whether this host may send now. Otherwise the delta is held.
func (m *Mesh) passOn(replica string, delta []byte) bool {
	e := envelope{Kind: kindDelta, Replica: replica, Payload: delta}
	may := m.outgoing.maySend(e)
	if may {
		m.gossip(e)
	}
	return may
}

// gossip queues a delta for gossip. One that is too large for a packet goes to a few peers at once.
func (m *Mesh) gossip(e envelope) {
	if len(e.Payload) <= maxGossip {
		m.queue.QueueBroadcast(broadcast(encode(e)))
		return
	}
	go m.sendToSome(e)
}

// sendNow sends a message to a few random peers by UDP, without waiting for the next gossip
// interval.
func (m *Mesh) sendNow(data []byte) {
	for i, n := range m.members.shuffled() {
		if i < promptNodes {
			_ = m.list.SendBestEffort(n, data) // if the packet is lost, gossip repeats the message
		}
	}
}

// sendToSome sends a message over TCP to a few random peers in parallel, since a peer that does not
// answer takes a while.
func (m *Mesh) sendToSome(e envelope) {
	data, nodes := encode(e), m.members.shuffled()
	var group sync.WaitGroup
	for _, n := range nodes[:min(len(nodes), someNodes)] {
		group.Go(func() { _ = m.list.SendReliable(n, data) }) // if this fails, push/pull delivers the message
	}
	group.Wait()
}

// broadcast is a message in memberlist's queue. It never replaces another message, since a later
// delta need not contain an earlier delta.
type broadcast []byte

func (broadcast) Invalidates(memberlist.Broadcast) bool { return false }
func (b broadcast) Message() []byte                     { return b }
func (broadcast) Finished()                             {}
func (broadcast) UniqueBroadcast()                      {}

// delegate receives memberlist's calls.
type delegate struct{ m *Mesh }

func (d delegate) NodeMeta(int) []byte {
	return d.m.metadata()
}

// NotifyMsg must not block memberlist: it drops messages that do not fit into the inbox. Push/pull
// or the sender's deadline makes up for them.
func (d delegate) NotifyMsg(data []byte) {
	big := bigMessage(data)
	if big > 0 && d.m.queued.Add(big) > maxQueued {
		d.m.queued.Add(-big)
		return
	}
	select {
	case d.m.inbox <- append([]byte(nil), data...):
	default:
		d.m.queued.Add(-big)
	}
}

// maxQueued bounds the bytes of large messages in the inbox. Small ones are bounded by their number.
const maxQueued = 2 * maxStream

// bigMessage returns the bytes of a message that cannot have come in a packet, otherwise 0.
func bigMessage(data []byte) int64 {
	if len(data) <= 64<<10 {
		return 0
	}
	return int64(len(data))
}

func (d delegate) GetBroadcasts(overhead, limit int) [][]byte {
	return d.m.queue.GetBroadcasts(overhead, limit)
}

// LocalState is empty until it is certain that no other host has this host's identity: if there is such a host,
// only its states count.
func (d delegate) LocalState(bool) []byte {
	states := map[string][]byte{}
	if !d.m.Confirmed() {
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
		d.m.cfg.Log.Warn("ignoring an unreadable state from a peer", "err", err)
		return
	}
	for name, state := range states {
		d.m.merge(name, state)
	}
	d.m.noteJoined() // memberlist has merged the members before this call
}

// merge passes a state to its replica, and sends the news to other peers.
func (m *Mesh) merge(name string, state []byte) {
	r, ok := m.replicas[name]
	if !ok {
		return // a newer version of Weft has this state, ours does not
	}
	news, err := r.Merge(state)
	if err != nil {
		m.cfg.Log.Warn("could not merge a state from a peer", "replica", name, "err", err)
	}
	if news != nil {
		m.passOn(name, news)
	}
}

// consume handles received messages one by one.
func (m *Mesh) consume(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case data := <-m.inbox:
			m.queued.Add(-bigMessage(data))
			m.receive(ctx, data)
		}
	}
}

func (m *Mesh) receive(ctx context.Context, data []byte) {
	var e envelope
	if err := decoding.Unmarshal(data, &e); err != nil {
		m.cfg.Log.Debug("ignoring an unreadable message from a peer", "err", err)
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

// events tracks which runs memberlist reports as reachable.
type events struct{ m *Mesh }

func (e events) NotifyJoin(n *memberlist.Node) {
	if n.Name != e.m.name {
		e.m.members.join(n)
	} else {
		e.m.greeted(n.Meta)
	}
	e.m.runJoined(n)
}

func (e events) NotifyLeave(n *memberlist.Node) {
	e.m.members.leave(n.Name)
	e.m.runLeft(n.Name)
	if e.m.transport != nil {
		e.m.transport.Forget(n.Name)
	}
	e.m.verified.forget(n.Name)
}

func (e events) NotifyUpdate(n *memberlist.Node) {
	if n.Name == e.m.name {
		e.m.greeted(n.Meta)
	}
}

func idOfNode(name string) (peer.ID, bool) {
	head, _, _ := strings.Cut(name, "-")
	id, err := peer.ParseID(head)
	return id, err == nil
}

// gate refuses peers that do not fit this mesh, when they join and when other peers report them.
type gate struct{ m *Mesh }

func (g gate) NotifyMerge(nodes []*memberlist.Node) error {
	for _, n := range nodes {
		if err := g.belongs(n); err != nil {
			return err
		}
	}
	return nil
}

// maxNodeName exceeds the length of every name that nodeName returns.
const maxNodeName = 64

// NotifyAlive also bounds names and number of members, which memberlist does not: every member is a
// part of each push/pull.
func (g gate) NotifyAlive(n *memberlist.Node) error {
	if n.Name == g.m.name {
		return nil
	}
	_, isRun := idOfNode(n.Name)
	if !isRun || len(n.Name) > maxNodeName || len(n.Meta) > memberlist.MetaMaxSize {
		return fmt.Errorf("mesh: %v is not a peer: its name of %d bytes is invalid, or its greeting of %d bytes is too long", n.Addr, len(n.Name), len(n.Meta))
	}
	if !g.m.members.room(n.Name) {
		return fmt.Errorf("mesh: %v: refused: the mesh already has %d members, or this peer has %d runs of its agent", n.Addr, maxPeers, maxRunsOf)
	}
	return g.belongs(n)
}

func (g gate) belongs(n *memberlist.Node) error {
	if n.Name == g.m.name {
		return nil
	}
	theirs, err := g.m.helloOf(n.Name, addressOf(n), n.Meta)
	if err != nil {
		g.m.reject(n.Addr.String(), err.Error())
		return fmt.Errorf("mesh: %v was refused: %w", n.Addr, err)
	}
	g.m.mu.Lock()
	ours := g.m.hello
	g.m.mu.Unlock()
	if err := ours.refuse(theirs); err != nil {
		g.m.reject(n.Addr.String(), err.Error())
		return fmt.Errorf("mesh: %v was refused: %w", n.Addr, err)
	}
	return nil
}
