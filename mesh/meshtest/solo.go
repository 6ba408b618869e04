package meshtest

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"sync"

	"weft/mesh/peer"
)

// Solo is a fake mesh, for a test that runs one part of an agent alone. It records what the part
// broadcasts and requests, and replies as the test says. The zero value is a mesh without other peers.
type Solo struct {
	Peers   []peer.ID                   // the result of Others
	Down    []peer.ID                   // the peers that are not reachable
	Reply   func(Asked) ([]byte, error) // nil: each request fails
	OnDelta func(delta []byte)          // if not nil, it is called for each broadcast

	mu    sync.Mutex
	said  [][]byte
	asked []Asked
}

// Asked is one request.
type Asked struct {
	To      peer.ID
	Kind    string
	Payload []byte
}

var errNoReply = errors.New("no reply")

// Broadcast records a delta.
func (s *Solo) Broadcast(_ string, delta []byte) {
	s.mu.Lock()
	s.said = append(s.said, delta)
	s.mu.Unlock()
	if s.OnDelta != nil {
		s.OnDelta(delta)
	}
}

// Request records a request and returns the test's reply.
func (s *Solo) Request(_ context.Context, to peer.ID, kind string, payload []byte) ([]byte, error) {
	a := Asked{to, kind, bytes.Clone(payload)}
	s.mu.Lock()
	s.asked = append(s.asked, a)
	s.mu.Unlock()
	if s.Reply == nil {
		return nil, errNoReply
	}
	return s.Reply(a)
}

// Reachable reports whether a peer is one of Peers, and not Down.
func (s *Solo) Reachable(id peer.ID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Contains(s.Peers, id) && !slices.Contains(s.Down, id)
}

// Others returns Peers.
func (s *Solo) Others() []peer.ID {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.Peers
}

// SetPeers changes Peers while the part runs.
func (s *Solo) SetPeers(peers ...peer.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.Peers = peers
}

// Stopped reports false: no peer announced that its agent was stopped.
func (s *Solo) Stopped(peer.ID) bool { return false }

// Name returns a peer's id.
func (s *Solo) Name(id peer.ID) string { return id.String() }

// Deltas returns the deltas that were broadcast.
func (s *Solo) Deltas() [][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.said)
}

// Requests returns the requests of one kind, or all if kind is "".
func (s *Solo) Requests(kind string) (out []Asked) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range s.asked {
		if kind == "" || a.Kind == kind {
			out = append(out, a)
		}
	}
	return out
}
