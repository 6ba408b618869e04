package mesh

import (
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/netip"
	"time"

	"weft/mesh/judge"
	"weft/mesh/peer"
	"weft/mesh/session"
)

// rules are what the judge of memberlist's messages asks this mesh.
type rules struct{ m *Mesh }

var _ judge.Rules = rules{}

func (r rules) Self() string { return r.m.name }

// refutable is by how much an accusation must be below the ceiling, so that the accused run can refute
// it within its present metadata.
const refutable = 64

func (r rules) Ceiling(run string) (uint32, bool) {
	if run == r.m.name {
		r.m.mu.Lock()
		defer r.m.mu.Unlock()
		return r.m.announced.Ceiling - refutable, true
	}
	ceiling, ok := r.m.verified.ceiling(run)
	return ceiling - refutable, ok && ceiling >= refutable
}

// CeilingIn passes the greeting of another version if the run is unknown: NotifyAlive refuses it, and says
// why. Nobody can verify such a greeting. A known run has one of this version, so this one is forged.
func (r rules) CeilingIn(meta []byte, name string, addr netip.Addr, port uint16) (uint32, error) {
	h, err := r.m.helloOf(name, netip.AddrPortFrom(addr, port), meta)
	if banned, ok := errors.AsType[*BannedError](err); ok {
		return 0, fmt.Errorf("%w: %w", judge.ErrUnwelcome, banned)
	}
	if err == nil && h.Version != Version {
		if _, known := r.Ceiling(name); known || r.m.members.named(name) != nil {
			return 0, errOtherVersion
		}
		return math.MaxUint32, nil
	}
	return h.Ceiling, err
}

var errOtherVersion = errors.New("the run has a greeting of this version")

func (r rules) Left(run string) bool {
	id, _ := idOfNode(run)
	r.m.mu.Lock()
	defer r.m.mu.Unlock()
	k := r.m.peers[id]
	return k != nil && k.hasRecord() && k.signed.Record.State != peer.Running
}

func (r rules) Told(incarnation uint32) { r.m.raiseCeiling(incarnation) }

func (r rules) Doubted(by string) { r.m.doubts.suspected(by, time.Now()) }

func (r rules) Excused(sender string) bool { return r.m.doubts.excuse(sender, time.Now()) }

// Accuse names a peer that reported something false. Its session has proved that it is this peer. What a
// peer says falsely of itself is a greeting that this host cannot read.
func (r rules) Accuse(liar, about, what string) {
	id, _ := idOfNode(liar)
	of, _ := idOfNode(about)
	reason := fmt.Sprintf("peer %s reported falsely about peer %s: it %s: the network between the two fails, or the reporting host is compromised", r.m.Name(id), r.m.Name(of), what)
	if id == of {
		reason = unreadable
	}
	addr := id.String()
	if n := r.m.members.named(liar); n != nil {
		addr = addressOf(n).Addr().String()
	}
	r.m.reject(addr, reason)
}

// judgePacket returns what memberlist may see of a packet.
func (m *Mesh) judgePacket(from session.Peer, content []byte) []byte {
	m.judge.Alive(from.Run)
	out, _ := m.judge.Packet(from.Run, content)
	return out
}

// judged is a stream whose message memberlist sees after the judge.
type judged struct {
	*session.Stream
	m       *Mesh
	read    bool
	message []byte
	err     error
	held    *held
}

func (m *Mesh) judged(s *session.Stream) net.Conn {
	return &judged{Stream: s, m: m, held: &held{Stream: s, budget: &m.budget}}
}

func (j *judged) Read(p []byte) (int, error) {
	if !j.read {
		j.read = true
		j.m.judge.Alive(j.Peer.Run)
		j.message, j.err = j.m.judge.Stream(j.Peer.Run, j.held, maxStream)
	}
	switch {
	case j.err != nil:
		return 0, j.err
	case len(j.message) == 0:
		return 0, io.EOF // a stream carries one message in each direction
	}
	n := copy(p, j.message)
	j.message = j.message[n:]
	return n, nil
}

func (j *judged) Close() error {
	j.held.give()
	return j.Stream.Close()
}

const updateTimeout = time.Second
