// Package judge decides which of memberlist's messages a host believes. memberlist believes every
// member: one that lies could declare others dead, or announce addresses that are not theirs. The
// judge stands between the transport, which knows the run that sent a message, and memberlist. It
// passes on what this run may say, weakens what this run may only suspect, and drops the rest.
//
// It reads the messages of memberlist 0.7 (net.go, state.go and util.go there), with memberlist's
// encryption, labels and compression off. It decodes each message and encodes it again, so
// memberlist never sees bytes that a peer chose, except in user messages, user state, the
// metadata and the payload of an ack.
//
// A Judge is safe for concurrent use. It calls its Rules without holding a lock. The package reads no
// clock, network or disk.
package judge

import (
	"errors"
	"net/netip"
	"sync"
)

// These bounds limit what a peer may send.
const (
	MaxPacket  = 64 << 10   // bytes of a packet
	MaxName    = 64         // bytes of a run's name
	MaxNodes   = 4096 + 512 // nodes of a push/pull: the members, and those that have just left
	maxMeta    = 512        // bytes of metadata: memberlist.MetaMaxSize
	maxPayload = 1024       // bytes of an ack's payload
	maxFailure = 512        // bytes of an error's text
	maxState   = 20 << 20   // bytes of user state or of a user message that memberlist accepts
	questions  = 4096       // pings that are remembered
	verdicts   = MaxNodes   // declarations of death that are remembered
	spoken     = 2          // the protocol version that Weft's memberlist speaks
	delegate   = 0          // the version of the delegate's protocol that Weft speaks
	addr4      = 32 / 8     // bytes of an IPv4 address
	addr6      = 128 / 8    // bytes of an IPv6 address
)

// Rules is what the judge asks its owner. Its methods are called concurrently.
type Rules interface {
	// Self returns the name of our run.
	Self() string
	// Ceiling returns the highest incarnation at which others may suspect a run, maybe ours. It must be
	// below what the run's signed metadata promises, since memberlist refutes a suspicion one above it.
	// It returns false for an unknown run. A sender that declares a run dead at a higher incarnation is
	// accused, so the answer must not be older than what honest peers may know.
	Ceiling(run string) (uint32, bool)
	// CeilingIn verifies the signed metadata of a run against the name and the address that came
	// with it, and returns the ceiling that it promises. The error is ErrUnwelcome if the metadata is in
	// order but the run must not be heard of, and another one if it is unsigned or forged. The address is
	// never in IPv6-mapped form. CeilingIn must not keep meta.
	CeilingIn(meta []byte, name string, addr netip.Addr, port uint16) (uint32, error)
	// Told is called with each incarnation that others give our run and that is within our ceiling. The
	// owner then raises its ceiling before refutations reach it.
	Told(incarnation uint32)
	// Left reports whether the run's own signed record says that it stopped or left. For our run
	// it must be true before memberlist's Leave is called.
	Left(run string) bool
	// Doubted is called with the author of each suspicion that this host sends or receives.
	Doubted(by string)
	// Excused reports whether an honest sender may declare a run dead that lives, as in a network that was
	// cut.
	Excused(sender string) bool
	// Accuse is called when liar said something about a run that it knew to be false.
	Accuse(liar, about string, what string)
}

// ErrUnwelcome says that a run is known not to belong to the mesh any more. Who reports it may not know.
var ErrUnwelcome = errors.New("the run does not belong to the mesh")

// Judge judges the messages to one host.
type Judge struct {
	rules Rules

	mu       sync.Mutex
	asked    asked
	declared declared
}

// New returns a judge that has seen no message.
func New(r Rules) *Judge { return &Judge{rules: r, asked: newAsked(), declared: newDeclared()} }

// Packet judges a packet from a run. It returns the packet that memberlist may see, and false if
// nothing remains. The result may share memory with packet.
func (j *Judge) Packet(sender string, packet []byte) ([]byte, bool) {
	if len(packet) > MaxPacket || !isName(sender) {
		return nil, false
	}
	packet, err := withoutChecksum(packet)
	if err != nil || len(packet) == 0 {
		return nil, false
	}
	if kind(packet[0]) != compoundMsg {
		out := j.message(sender, packet)
		return out, out != nil
	}
	var passed [][]byte
	for _, part := range split(packet[1:]) {
		if out := j.message(sender, part); out != nil {
			passed = append(passed, out)
		}
	}
	out := join(passed)
	return out, out != nil
}

// Sent notes the pings and the suspicions in a packet that memberlist sends to a run, so that the answers count. Call
// it before the packet is sent, and also if sending fails: memberlist then repeats the ping on a
// stream, with the same number.
func (j *Judge) Sent(to string, packet []byte) {
	packet, err := withoutChecksum(packet)
	if err != nil || len(packet) == 0 || !isName(to) {
		return
	}
	parts := [][]byte{packet}
	if kind(packet[0]) == compoundMsg {
		parts = split(packet[1:])
	}
	for _, part := range parts {
		if len(part) == 0 {
			continue
		}
		switch kind(part[0]) {
		case pingMsg:
			if p, err := decode[ping](part[1:]); err == nil {
				j.ask(question{to, p.SeqNo}, direct)
			}
		case indirectPingMsg:
			if p, err := decode[indirectPing](part[1:]); err == nil {
				j.ask(question{to, p.SeqNo}, indirect)
			}
		case suspectMsg:
			if s, err := decode[suspect](part[1:]); err == nil {
				j.rules.Doubted(s.From)
			}
		}
	}
}

// Alive tells the judge that its owner has proof that a run lives: an answer from it, or a session.
// The judge accuses those that declared the run dead, once for each declaration.
func (j *Judge) Alive(run string) {
	j.mu.Lock()
	liars := j.declared.settle(run)
	j.mu.Unlock()
	for _, liar := range liars {
		j.rules.Accuse(liar, run, "declared it dead, but it lives")
	}
}

func (j *Judge) ask(q question, way way) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.asked.add(q, way)
}

func (j *Judge) answers(sender string, seq uint32) way {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.asked.ways[question{sender, seq}]
}

// told tells the owner of the incarnation that others give our run.
func (j *Judge) told(run string, incarnation uint32) {
	if run == j.rules.Self() {
		j.rules.Told(incarnation)
	}
}

// known reports whether a run is known. Our own run is.
func (j *Judge) known(run string) bool {
	_, ok := j.rules.Ceiling(run)
	return ok || run == j.rules.Self()
}

func isName(s string) bool { return s != "" && len(s) <= MaxName }
