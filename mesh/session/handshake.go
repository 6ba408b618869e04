package session

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"github.com/hashicorp/memberlist"

	"weft/mesh/peer"
)

// The first byte of a stream tells TLS from the gossip of older agents.
const (
	firstTLS   = 22 // a handshake record
	firstOlder = 10 // memberlist's type of an encrypted message
)

// open dials one address and shakes hands. want is the run that is addressed; empty: any. The context has a deadline.
func (t *Transport) open(ctx context.Context, addr, want string, use Use, connected func()) (*Stream, error) {
	deadline, _ := ctx.Deadline()
	raw, err := t.cfg.Network.DialTimeout(addr, time.Until(deadline))
	if err != nil {
		return nil, err
	}
	connected()
	defer context.AfterFunc(ctx, func() { raw.Close() })()
	_ = raw.SetDeadline(earlier(deadline, time.Now().Add(proofTimeout))) // if this fails, so does the next read
	s, err := t.introduce(raw, want, use)
	if err != nil {
		raw.Close()
	}
	if _, older := errors.AsType[OlderError](err); older && t.cfg.OlderThere != nil {
		go t.visitOlder(addr) // it ends within twice proofTimeout
	}
	return s, err
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// visitOlder tells an agent of a version before sessions that it is refused. To that agent, the handshake
// looks like the data of another program.
func (t *Transport) visitOlder(addr string) {
	raw, err := t.cfg.Network.DialTimeout(addr, proofTimeout)
	if err != nil {
		return // the next attempt to reach the host comes here again
	}
	defer raw.Close()
	_ = raw.SetDeadline(time.Now().Add(proofTimeout)) // if this fails, so does the write
	t.cfg.OlderThere(raw)
}

// introduce is the dialing side of the handshake.
func (t *Transport) introduce(raw net.Conn, want string, use Use) (*Stream, error) {
	g := &guest{Conn: raw, left: maxUnproven}
	s := conn{tls.Client(g, t.identity.config()), raw}
	if err := s.Handshake(); err != nil {
		if e, ok := errors.AsType[tls.RecordHeaderError](err); ok && e.RecordHeader[0] == firstOlder {
			return nil, OlderError{}
		}
		return nil, err
	}
	k, p, binding, err := t.prepare(s, true)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			t.table.release(k)
		}
	}()
	if err = (greeting{Run: t.cfg.Run, Use: use, Index: k.index, Body: t.cfg.Show(use)}).send(s); err != nil {
		return nil, err
	}
	welcome, err := receive(s)
	if err != nil {
		return nil, err
	}
	if err = t.judge(&p, welcome, want, use); err != nil {
		switch e, ok := errors.AsType[*Refusal](err); {
		case ok && e.Ours:
			_ = greeting{Refuse: e.Reason}.send(s) // the stream ends in any case
		case ok:
			t.cfg.Refused(addrOf(raw.RemoteAddr()).Addr().String(), "it refuses this host: "+e.Reason)
		}
		return nil, err
	}
	t.welcome(k, p, welcome.Index, use)
	if err = (greeting{}).send(s); err != nil {
		return nil, err
	}
	g.proven = true
	_ = raw.SetDeadline(time.Time{}) // if this fails, so does the next read
	if err = t.proven(k, use); err != nil {
		return nil, err
	}
	return &Stream{Conn: s, Peer: p, Use: use, Binding: binding}, nil
}

// judge decides about the greeting or welcome of the other end.
func (t *Transport) judge(p *Peer, g greeting, want string, use Use) error {
	p.Run, p.Body = g.Run, bytes.Clone(g.Body)
	switch {
	case g.Run == t.cfg.Run:
		return errItself
	case g.Refuse != "":
		return &Refusal{Reason: g.Refuse}
	case !strings.HasPrefix(g.Run, p.ID.String()+"-"):
		return fmt.Errorf("the peer %v calls its run %q, which is the name of another peer", p.ID, g.Run)
	case want != "" && g.Run != want:
		return fmt.Errorf("%w: %s was addressed, %s answered", errOther, want, g.Run)
	}
	if err := t.cfg.Welcome(*p, use); err != nil {
		return &Refusal{err.Error(), true}
	}
	return nil
}

// prepare derives the keys of a stream after TLS's handshake.
func (t *Transport) prepare(s conn, dialed bool) (k *keys, p Peer, binding []byte, err error) {
	state := s.ConnectionState()
	if p.Key, err = keyOf(state); err != nil {
		return nil, p, nil, err
	}
	p.ID, p.Addr = peer.IDOf(p.Key), addrOf(s.raw.RemoteAddr())
	if k, err = newKeys(state, p, dialed); err != nil {
		return nil, p, nil, err
	}
	if binding, err = exported(state, "EXPORTER-weft-binding-v2", 32); err != nil {
		return nil, p, nil, err
	}
	t.table.reserve(k)
	return k, p, binding, nil
}

// welcome lets the packets of a stream in. A host that asks to become a member is none yet, and sends none.
func (t *Transport) welcome(k *keys, p Peer, theirs uint32, use Use) {
	if use != Admit {
		t.table.welcome(k, p, theirs)
	}
}

var errDropped = errors.New("this host ended the sessions with that peer meanwhile")

// proven notes that the handshake has succeeded. A host that asks to become a member gets no packets. A peer
// that was expelled during its handshake, which it can delay, gets no stream either.
func (t *Transport) proven(k *keys, use Use) error {
	keep := t.table.install
	if use == Admit || k.theirs == 0 {
		keep = t.table.release
	}
	if !keep(k) {
		return errDropped
	}
	return nil
}

// accept is the accepting side of the handshake. It passes the proven stream to its user.
func (t *Transport) accept(raw net.Conn) {
	g := t.door.enter(raw)
	s, err := t.receiveGuest(raw, g)
	if err == nil && s.Use == Admit { // no member yet: it keeps its place at the door, and its bounds
		t.cfg.Serve(s)
		t.door.leave(g)
		return
	}
	if !t.door.leave(g) && err == nil {
		err = errCrowded
	}
	if err == nil && !t.door.let(s) {
		err = errMany
	}
	if err != nil {
		raw.Close()
		t.report(g, err)
		return
	}
	g.proven = true
	_ = raw.SetDeadline(time.Time{}) // if this fails, so does the next read
	switch s.Use {
	case Keys:
		s.Close()
	case Gossip:
		select {
		case t.streams <- t.cfg.Gossip(s):
		case <-t.done:
			s.Close()
		}
	case Forward:
		t.pass(s)
	default:
		t.cfg.Serve(s)
	}
}

// receiveGuest shakes hands with a host that dialed this one.
func (t *Transport) receiveGuest(raw net.Conn, g *guest) (*Stream, error) {
	_ = raw.SetDeadline(time.Now().Add(proofTimeout)) // if this fails, so does the next read
	first := make([]byte, 1)
	if _, err := io.ReadFull(g, first); err != nil {
		return nil, err
	}
	switch first[0] {
	case firstTLS:
	case firstOlder:
		t.cfg.Older(raw)
		return nil, OlderError{}
	default:
		return nil, errNoTLS
	}
	s := conn{tls.Server(begun{g, io.MultiReader(bytes.NewReader(first), g)}, t.identity.config()), raw}
	if err := s.Handshake(); err != nil {
		return nil, err
	}
	hello, err := receive(s)
	if err != nil {
		return nil, err
	}
	k, p, binding, err := t.prepare(s, false)
	if err != nil {
		return nil, err
	}
	if err = t.judge(&p, hello, "", hello.Use); err == nil {
		t.welcome(k, p, hello.Index, hello.Use)
		err = greeting{Run: t.cfg.Run, Index: k.index, Body: t.cfg.Show(hello.Use)}.send(s)
	} else {
		_ = greeting{Run: t.cfg.Run, Refuse: reasonOf(err)}.send(s) // the stream ends in any case
		t.linger(raw)
	}
	if err == nil {
		var ready greeting
		if ready, err = receive(s); err == nil && ready.Refuse != "" {
			err = &Refusal{Reason: ready.Refuse}
		}
	}
	if err != nil {
		t.table.release(k)
		return nil, err
	}
	if hello.Use != Admit {
		t.routes.met(p.Run, p.Addr.Addr().String()) // before the first packet to that run
	}
	if err := t.proven(k, hello.Use); err != nil {
		return nil, err
	}
	t.flush(k.run)
	return &Stream{Conn: s, Peer: p, Use: hello.Use, Binding: binding}, nil
}

// reasonOf is what a refused host is told.
func reasonOf(err error) string {
	if e, ok := errors.AsType[*Refusal](err); ok {
		return e.Reason
	}
	return err.Error()
}

// linger waits until the other end has closed the stream, so that it reads the last message: closing a
// TCP connection that has unread data discards what was sent.
func (t *Transport) linger(raw net.Conn) {
	_, _ = io.Copy(io.Discard, io.LimitReader(raw, maxUnproven))
}

var errNoTLS = errors.New("it sent data that is not Weft's: it is another program")

// report tells why a stream was refused. A stream that ends without a word is a port probe.
func (t *Transport) report(g *guest, err error) {
	addr := addrOf(g.RemoteAddr()).Addr().String()
	refusal, refused := errors.AsType[*Refusal](err)
	_, older := errors.AsType[OlderError](err)
	_, badTLS := errors.AsType[tls.RecordHeaderError](err)
	switch {
	case refused && refusal.Ours:
		t.cfg.Refused(addr, refusal.Reason)
	case older, errors.Is(err, errNoTLS), errors.Is(err, errTooMuch), errors.Is(err, errCrowded), errors.Is(err, errMany):
		t.cfg.Refused(addr, err.Error())
	case badTLS:
		t.cfg.Refused(addr, errNoTLS.Error())
	case errors.Is(err, os.ErrDeadlineExceeded) && g.left < maxUnproven:
		t.cfg.Refused(addr, fmt.Sprintf("it did not prove its identity within %v: the network is slow, or it is another program", proofTimeout))
	}
}

// Ask opens a stream to one run of a peer, or to whatever run is at an address if the name is empty.
func (t *Transport) Ask(to memberlist.Address, use Use, timeout time.Duration) (*Stream, error) {
	to, err := t.confine(to)
	if err != nil {
		return nil, err
	}
	return t.askAt(t.routes.all(to), to, use, timeout)
}

// askAt opens a stream to a run at one of the given addresses.
func (t *Transport) askAt(places []place, to memberlist.Address, use Use, timeout time.Duration) (*Stream, error) {
	s, at, err := dial(places, timeout, func(ctx context.Context, addr string, connected func()) (*Stream, error) {
		return t.open(ctx, addr, to.Name, use, connected)
	})
	if err != nil {
		return nil, err
	}
	if to.Name == "" {
		t.routes.met(s.Peer.Run, s.Peer.Addr.Addr().String())
	}
	t.routes.note(to, at, time.Now())
	t.flush(s.Peer.Run) // now it is known at which address the run is
	return s, nil
}
