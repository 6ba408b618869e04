package judge

import (
	"errors"
	"net/netip"
)

// message judges one message that is no compound. It returns what memberlist may see of it, or nil.
func (j *Judge) message(sender string, msg []byte) []byte {
	if len(msg) == 0 {
		return nil
	}
	body := msg[1:]
	switch kind(msg[0]) {
	case pingMsg:
		return j.ping(sender, body)
	case indirectPingMsg:
		return j.indirectPing(sender, body)
	case ackMsg:
		return j.ack(sender, body)
	case nackMsg:
		return j.nack(sender, body)
	case suspectMsg:
		return j.suspect(body)
	case deadMsg:
		return j.dead(sender, body)
	case aliveMsg:
		return j.alive(sender, body)
	case userMsg:
		return msg // memberlist passes it to its delegate unread
	}
	return nil
}

// ping passes a ping of our run that names its sender, since memberlist answers to the run that the
// ping names.
func (j *Judge) ping(sender string, body []byte) []byte {
	p, err := decode[ping](body)
	if err != nil || p.SourceNode != sender || p.Node != j.rules.Self() || !isAddrOrNone(p.SourceAddr) {
		return nil
	}
	return message(pingMsg, &p)
}

// indirectPing passes a request to ping a known run. No honest host asks us to ping ourselves.
func (j *Judge) indirectPing(sender string, body []byte) []byte {
	p, err := decode[indirectPing](body)
	if err != nil || p.SourceNode != sender || !isAddrOrNone(p.SourceAddr) || !isAddrOrNone(p.Target) {
		return nil
	}
	if !isName(p.Node) || p.Node == j.rules.Self() || !j.known(p.Node) {
		return nil
	}
	return message(indirectPingMsg, &p)
}

// ack passes the answer to a ping that we sent to the sender, or through it.
func (j *Judge) ack(sender string, body []byte) []byte {
	a, err := decode[ack](body)
	if err != nil || len(a.Payload) > maxPayload || j.answers(sender, a.SeqNo) == 0 {
		return nil
	}
	return message(ackMsg, &a)
}

// nack passes the answer of a run that could not reach another one for us. Only a request to ping
// another run has such an answer.
func (j *Judge) nack(sender string, body []byte) []byte {
	n, err := decode[nack](body)
	if err != nil || j.answers(sender, n.SeqNo)&indirect == 0 {
		return nil
	}
	return message(nackMsg, &n)
}

// suspect passes a suspicion. Its From may be any known run: memberlist passes suspicions on
// unchanged, and the suspected run can refute them.
func (j *Judge) suspect(body []byte) []byte {
	s, err := decode[suspect](body)
	if err != nil || !isName(s.Node) || !isName(s.From) || !j.known(s.From) {
		return nil
	}
	if ceiling, ok := j.rules.Ceiling(s.Node); !ok || s.Incarnation > ceiling {
		return nil
	}
	j.told(s.Node, s.Incarnation)
	j.rules.Doubted(s.From)
	return message(suspectMsg, &s)
}

// dead judges a declaration of death. A run may say that it leaves. Another run's verdict becomes a
// suspicion, so this host finds out by itself whether the run is dead.
//
// The judge turns every foreign verdict into a suspicion before memberlist could pass it on. So a
// host only sends its own verdicts, and the farewells of others.
func (j *Judge) dead(sender string, body []byte) []byte {
	d, err := decode[dead](body)
	if err != nil || !isName(d.Node) || !isName(d.From) {
		return nil
	}
	leaves := d.From == d.Node
	if !leaves && d.From != sender {
		j.rules.Accuse(sender, d.Node, "passed on another run's verdict that it is dead, which no honest peer does")
		return nil
	}
	ceiling, ok := j.rules.Ceiling(d.Node)
	if !ok {
		return nil
	}
	if d.Incarnation > ceiling {
		j.rules.Accuse(sender, d.Node, "declared it dead at an incarnation that it never promised")
		return nil
	}
	left := j.rules.Left(d.Node)
	if leaves && (sender == d.Node || left) {
		return message(deadMsg, &d)
	}
	if !j.known(sender) {
		return nil // memberlist would count the suspicion of a run that nobody vouches for
	}
	ours := d.Node == j.rules.Self()
	if !left && (ours || !leaves) && !j.rules.Excused(sender) {
		j.mu.Lock()
		j.declared.add(verdict{sender, d.Node}, d.Incarnation)
		j.mu.Unlock()
	}
	if ours {
		j.Alive(d.Node) // this is the proof
		j.told(d.Node, d.Incarnation)
	}
	return message(suspectMsg, &suspect{Incarnation: d.Incarnation, Node: d.Node, From: sender})
}

// alive passes the announcement of a run whose own signature covers it.
func (j *Judge) alive(sender string, body []byte) []byte {
	a, err := decode[alive](body)
	if err != nil || !j.vouched(sender, &a, stateAlive) {
		return nil
	}
	return message(aliveMsg, &a)
}

// vouched reports whether a run's signed metadata covers what the sender says of it: its name, its
// address and, for a run that is alive, its incarnation. It brings the address into its short form:
// memberlist takes two forms of one address for a conflict.
func (j *Judge) vouched(sender string, a *alive, state int) bool {
	addr, ok := netip.AddrFromSlice(a.Addr)
	// memberlist would replace port 0 by its own port, which nobody signed.
	if !ok || a.Port == 0 || !isName(a.Node) || len(a.Meta) > maxMeta || !speaks(a.Vsn) {
		return false
	}
	addr = addr.Unmap()
	a.Addr = addr.AsSlice()
	ceiling, err := j.rules.CeilingIn(a.Meta, a.Node, addr, a.Port)
	if errors.Is(err, ErrUnwelcome) {
		return false
	}
	if err != nil {
		j.rules.Accuse(sender, a.Node, "passed on metadata that it did not sign")
		return false
	}
	j.told(a.Node, min(a.Incarnation, ceiling))
	if state != stateAlive {
		// A suspicion raises the incarnation in memberlist but leaves the metadata as it is. So an
		// honest host may send old metadata here with an incarnation that newer metadata promises.
		if newer, ok := j.rules.Ceiling(a.Node); ok {
			ceiling = max(ceiling, newer)
		}
		return a.Incarnation <= ceiling
	}
	if a.Incarnation > ceiling {
		j.rules.Accuse(sender, a.Node, "announced it at an incarnation that it never promised")
		return false
	}
	return true
}

// speaks reports whether a run can speak with ours. Nobody signs these versions. memberlist compares
// the versions of all nodes, and refuses every push/pull while any two do not fit. With this rule
// they always do.
func speaks(vsn []uint8) bool {
	return len(vsn) == 6 &&
		vsn[0] >= 1 && vsn[0] <= spoken && vsn[1] >= spoken && vsn[2] == spoken &&
		vsn[3] <= delegate && vsn[4] >= delegate && vsn[5] == delegate
}

func isAddrOrNone(b []byte) bool { return len(b) == 0 || len(b) == addr4 || len(b) == addr6 }
