package wire

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/hashicorp/memberlist"

	"weft/mesh"
	"weft/mesh/meshtest"
	"weft/mesh/peer"
	"weft/mesh/session"
)

// scripted is a peer of another version: memberlist with recorded or constructed bytes, over the
// current sessions. It sends what the test sets, and records what it receives. It relays nothing and
// decides nothing, so it does not show that an older agent works.
type scripted struct {
	t        *testing.T
	n        int
	name     string
	list     *memberlist.Memberlist
	sessions *session.Transport
	hello    []byte // its greeting; nil: that of a member
	state    []byte // the state that it sends in push/pull
	unproven bool   // the peer does not answer the "alive" request, whose reply would contain its record
	// answer returns the reply to a request; no is a refusal.
	answer func(m v1Message) (payload []byte, no string)

	mu     sync.Mutex
	heard  [][]byte // the received messages
	merged [][]byte // the received states
	asked  uint64
}

func nameInMemberlist(n int) string { return id(n).String() + "-0000000f424000000001" }

// start connects the scripted peer to a network, where it joins other peers.
func (s *scripted) start(network *meshtest.Network, to ...int) *scripted {
	s.t.Helper()
	s.name = nameInMemberlist(s.n)
	if s.hello == nil {
		s.hello = greeting(s.n)
	}
	s.sessions = must(session.New(session.Config{
		Identity: key(s.n), Run: s.name, Network: network.Join(address(s.n)),
		Show:    func(session.Use) []byte { return certificate(s.n) },
		Welcome: func(session.Peer, session.Use) error { return nil },
		Serve:   func(stream *session.Stream) { go s.serve(stream) },
		Knows:   func(netip.Addr) bool { return true },
	}))
	conf := memberlist.DefaultLANConfig()
	conf.Name, conf.Transport, conf.AdvertiseAddr, conf.AdvertisePort = s.name, s.sessions, address(s.n).Addr().String(), 6783
	conf.EnableCompression, conf.UDPBufferSize = false, conf.UDPBufferSize-session.Overhead
	conf.Delegate, conf.Logger = s, log.New(io.Discard, "", 0)
	list, err := memberlist.Create(conf)
	if err != nil {
		s.t.Fatal(err)
	}
	s.list = list
	for _, n := range to {
		_, _ = list.Join([]string{address(n).String()}) // tests check the effect of joining
	}
	return s
}

func (s *scripted) stop() {
	_ = s.list.Leave(time.Second)
	_ = s.list.Shutdown()
}

func (s *scripted) NodeMeta(int) []byte             { return s.hello }
func (s *scripted) GetBroadcasts(int, int) [][]byte { return nil }
func (s *scripted) LocalState(bool) []byte          { return s.state }

func (s *scripted) MergeRemoteState(data []byte, _ bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.merged = append(s.merged, bytes.Clone(data))
}

// serve answers a request on its stream.
func (s *scripted) serve(stream *session.Stream) {
	defer stream.Close()
	if data := readFrame(stream); data != nil {
		s.hear(data, func(_ peer.ID, reply []byte) { writeFrame(stream, reply) })
	}
}

// writeFrame sends a message on a stream, with its length in front.
func writeFrame(stream net.Conn, data []byte) {
	_ = stream.SetDeadline(time.Now().Add(patience))
	_, _ = stream.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(data))), data...)) // tests check the effect
}

// readFrame receives a message from a stream; nil if the stream ends.
func readFrame(stream net.Conn) []byte {
	_ = stream.SetDeadline(time.Now().Add(patience))
	var head [4]byte
	if _, err := io.ReadFull(stream, head[:]); err != nil {
		return nil
	}
	data := make([]byte, binary.BigEndian.Uint32(head[:]))
	if _, err := io.ReadFull(stream, data); err != nil {
		return nil
	}
	return data
}

// patience is how long a scripted peer waits on a stream.
const patience = 5 * time.Second

// NotifyMsg receives what did not come on a stream of its own: deltas, challenges and their answers.
func (s *scripted) NotifyMsg(data []byte) {
	s.hear(bytes.Clone(data), func(to peer.ID, reply []byte) { go s.send(to, reply) })
}

func (s *scripted) hear(data []byte, answer func(to peer.ID, reply []byte)) {
	e, err := decode[v1Envelope](data)
	var m v1Message
	if err == nil && e.Kind == v1Request {
		if sealed, err := decode[v1Sealed](e.Payload); err == nil && sealed.Record == nil {
			return // the sender is no peer of the corpus
		}
		if m, _, err = openMessage(e.Payload); err != nil {
			s.t.Errorf("%s received a request that it cannot read: %v", names[s.n], err)
			return
		}
	}
	reply := v1Message{ID: m.ID, From: id(s.n), To: m.From, IsReply: true}
	switch {
	case m.Kind == "alive": // version 1 does not know this kind; the refusal proves that the peer is alive
		if m.Run != s.name || s.unproven {
			return
		}
		reply.Error = `this version of Weft does not know "alive"`
	default:
		s.mu.Lock()
		s.heard = append(s.heard, data)
		s.mu.Unlock()
		if m.Kind == "" || s.answer == nil {
			return
		}
		reply.Payload, reply.Error = s.answer(m)
	}
	answer(reply.To, seal(s.n, v1Reply, reply, scriptedRecord(s.n)))
}

// scriptedRecord returns the record of a scripted peer.
func scriptedRecord(n int) []byte {
	r := settled(n)
	r.Sequence, r.Certificate = 1, certificate(n)
	return must(peer.Sign(r, key(n))).Encode()
}

// send sends a message to the current run of a peer.
func (s *scripted) send(to peer.ID, data []byte) {
	for _, n := range s.list.Members() {
		if strings.HasPrefix(n.Name, to.String()) {
			_ = s.list.SendReliable(n, data)
		}
	}
}

// run returns the memberlist name of a peer's current run, and its greeting.
func (s *scripted) run(of int) (name string, hello []byte) {
	for _, n := range s.list.Members() {
		if strings.HasPrefix(n.Name, id(of).String()) {
			name, hello = n.Name, n.Meta
		}
	}
	return name, hello
}

func (s *scripted) messages() [][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.heard)
}

func (s *scripted) states() [][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.merged)
}

// ask sends a request, and returns the message with the reply; nil if there is none.
func (s *scripted) ask(to int, kind string, payload []byte) []byte {
	s.asked++
	name, _ := s.run(to)
	m := v1Message{ID: 7<<32 | s.asked, From: id(s.n), To: id(to), Kind: kind, Payload: payload, Run: name}
	return s.exchange(to, m.ID, seal(s.n, v1Request, m, scriptedRecord(s.n)))
}

// exchange sends a request on a stream, on which the reply returns.
func (s *scripted) exchange(to int, number uint64, data []byte) (reply []byte) {
	name, _ := s.run(to)
	stream, err := s.sessions.Ask(memberlist.Address{Addr: address(to).String(), Name: name}, session.Request, patience)
	if err != nil {
		s.t.Errorf("%s cannot open a stream to %s: %v", names[s.n], names[to], err)
		return nil
	}
	defer stream.Close()
	writeFrame(stream, data)
	if reply = readFrame(stream); reply == nil {
		return nil
	}
	s.mu.Lock()
	s.heard = append(s.heard, reply)
	s.mu.Unlock()
	if m, _, err := openMessage(must(decode[v1Envelope](reply)).Payload); err != nil || m.ID != number {
		s.t.Errorf("%s asked with number %d, and got a reply to number %d, error %v", names[s.n], number, m.ID, err)
	}
	return reply
}

// aimed readdresses a recorded request or reply: it replaces the given fields and signs again.
// Unknown fields stay.
func aimed(data []byte, fields map[uint64]any) []byte {
	e := must(decode[v1Envelope](data))
	s := must(decode[v1Sealed](e.Payload))
	n := holder(must(openRecord(s.Record)).Identity)
	for field, v := range fields {
		s.Message = within(s.Message, field, func([]byte) []byte { return encode(v) })
	}
	payload := within(e.Payload, 1, func([]byte) []byte { return encode(s.Message) })
	payload = within(payload, 2, func([]byte) []byte { return encode(sign(n, v1ForMessage, s.Message)) })
	return within(data, 3, func([]byte) []byte { return encode(payload) })
}

// static is a replicated state with fixed contents. It records what is merged into it.
type static struct {
	name string
	full []byte
	mu   sync.Mutex
	got  [][]byte
}

func (s *static) Name() string { return s.name }
func (s *static) Full() []byte { return s.full }

func (s *static) Merge(data []byte) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.got = append(s.got, data)
	return nil, nil
}

// first returns the first state or delta that was merged; nil if there was none.
func (s *static) first() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.got) == 0 {
		return nil
	}
	return s.got[0]
}

// stage is a simulated network in virtual time.
type stage struct {
	t   *testing.T
	net *meshtest.Network
	end []func()
}

// onStage runs a simulation, and stops all that it started.
func onStage(t *testing.T, f func(t *testing.T, s *stage)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := &stage{t: t, net: meshtest.New(1)}
		defer func() { // stops the parts even if the simulation failed
			for _, end := range slices.Backward(s.end) {
				end()
			}
			time.Sleep(2 * time.Minute) // memberlist's Shutdown does not wait for its goroutines
			synctest.Wait()
		}()
		f(t, s)
	})
}

func (s *stage) scripted(p *scripted, to ...int) *scripted {
	s.t.Helper()
	p.t = s.t
	p.start(s.net, to...)
	s.end = append(s.end, p.stop)
	return p
}

// today returns a Mesh of the current code; the caller runs it.
func (s *stage) today(n int, r peer.Record, targets ...int) *mesh.Mesh {
	s.t.Helper()
	cfg := mesh.Config{
		Identity: key(n), Record: r, Root: rootPublic(), Certificate: certificate(n), Universe: universe, Store: newShelf(),
		Port: 6783, Log: quiet, Changed: nothing, Transport: s.net.Join(address(n)),
	}
	for _, to := range targets {
		cfg.Targets = append(cfg.Targets, address(to).Addr().String())
	}
	return must(mesh.New(cfg))
}

// run runs components until the simulation ends.
func (s *stage) run(parts ...func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, len(parts))
	for _, part := range parts {
		go func() { done <- part(ctx) }()
	}
	s.end = append(s.end, func() {
		cancel()
		for range parts {
			if err := <-done; err != nil {
				s.t.Error(err)
			}
		}
	})
}

// states encodes a push/pull message from replicated states.
func states(parts map[string][]byte) []byte {
	all := map[string]cbor.RawMessage{}
	for name, data := range parts {
		all[name] = encode(data)
	}
	return encode(all)
}

// describePeers lists what a mesh knows of the other peers.
func describePeers(m *mesh.Mesh) (out string) {
	for _, p := range m.Peers() {
		if p.Record.Identity != nil && p.Record.ID() != m.Self() {
			out += fmt.Sprintf("knows %s, number %d, %v, node slot %d\n", nameOf(p.Record.ID()), p.Record.Sequence, p.Record.State, p.Record.Node)
		}
	}
	return out
}
