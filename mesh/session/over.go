package session

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"weft/mesh/peer"
)

// Behind two NATs, neither of two hosts can dial the other, and before they have agreed on a key they have no tunnel.
// Then a third member that reaches both passes their stream on. It sees the TLS of the two ends, and nothing in it:
//
//	dialing host                    passing member                  other host
//	stream with the use Forward ->
//	the run that it wants       ->  shakes hands, to be sure    ->
//	                            <-  nothing; or why it refuses
//	a whole handshake, as on a stream of its own                ->

// These bounds apply to what this host passes on. A stream that it passes counts for its address at the other end.
const (
	maxPassed   = 16 // streams at once: half of what the other end's door allows to one source
	maxPassedOf = 4  // for one member
	passFor     = 15 * time.Second
	passBytes   = 1 << 20 // in each direction
)

var (
	errPassedMany = errors.New("it already passes on as many streams as it may")
	errNotKnown   = errors.New("it does not know that run of a member, or it passes no streams on")
)

// AskOver opens a stream to a run by way of members in a row: each reaches the next one. The context has a deadline.
func (t *Transport) AskOver(ctx context.Context, row []memberlist.Address, to memberlist.Address, use Use) (*Stream, error) {
	deadline, _ := ctx.Deadline()
	s, err := t.Ask(row[0], Forward, time.Until(deadline))
	if err != nil {
		return nil, err
	}
	first := s // the others are inside it
	defer context.AfterFunc(ctx, func() { first.Close() })()
	for _, next := range row[1:] {
		if s, err = t.through(s, next, Forward, deadline); err != nil {
			return nil, err
		}
	}
	return t.through(s, to, use, deadline)
}

// through lets the other end of a stream pass it on to a run, and shakes hands with that.
func (t *Transport) through(s *Stream, to memberlist.Address, use Use, deadline time.Time) (next *Stream, err error) {
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	_ = s.SetDeadline(deadline) // if this fails, so does the write
	if err := WriteShort(s, []byte(to.Name)); err != nil {
		return nil, err
	}
	reason, err := ReadShort(s, maxRefuse)
	if err != nil {
		return nil, err
	}
	if len(reason) > 0 {
		return nil, fmt.Errorf("%v does not pass the stream on: it %w", s.Peer.ID, &Refusal{Reason: legible(string(reason))})
	}
	return t.introduce(passed{s, to.Addr}, to.Name, use)
}

// passed is a stream that another member passes on. Its remote address is the one that the run at its end advertises.
type passed struct {
	net.Conn
	to string
}

func (p passed) RemoteAddr() net.Addr {
	a, err := netip.ParseAddrPort(p.to)
	if err != nil {
		return p.Conn.RemoteAddr()
	}
	return net.TCPAddrFromAddrPort(a)
}

// passes are the streams that this host passes on. It is safe for concurrent use.
type passes struct {
	mu    sync.Mutex
	of    map[peer.ID][]*Stream
	total int
	ended bool
}

// enter counts a stream for a member, and returns what ends that; nil: there are too many.
func (p *passes) enter(s *Stream) (leave func()) {
	id := s.Peer.ID
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended || p.total >= maxPassed || len(p.of[id]) >= maxPassedOf {
		return nil
	}
	if p.of == nil {
		p.of = map[peer.ID][]*Stream{}
	}
	p.total++
	p.of[id] = append(p.of[id], s)
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.total--
		p.of[id] = slices.DeleteFunc(p.of[id], func(other *Stream) bool { return other == s })
		if len(p.of[id]) == 0 {
			delete(p.of, id)
		}
	}
}

// expel ends the streams of a member.
func (p *passes) expel(id peer.ID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.of[id] {
		s.Close()
	}
}

// end ends all streams, and lets no more in.
func (p *passes) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = true
	for _, list := range p.of {
		for _, s := range list {
			s.Close()
		}
	}
}

// pass passes a stream on to the run that its other end names, for a short time.
func (t *Transport) pass(s *Stream) {
	defer s.Close()
	_ = s.SetDeadline(time.Now().Add(passFor)) // if this fails, so does the next read
	run, err := ReadShort(s, maxRun)
	if err != nil {
		return
	}
	leave := t.passes.enter(s)
	if leave == nil {
		_ = WriteShort(s, []byte(errPassedMany.Error())) // the stream ends in any case
		return
	}
	defer leave()
	there, err := t.reach(s.Peer.ID, string(run))
	if err != nil {
		_ = WriteShort(s, []byte(legible(reasonOf(err)))) // the stream ends in any case
		return
	}
	defer there.Close()
	_ = there.SetDeadline(time.Now().Add(passFor)) // if this fails, so does the next read
	if WriteShort(s, nil) != nil {
		return
	}
	var ends sync.WaitGroup
	for _, way := range [][2]net.Conn{{there, s}, {s, there}} {
		ends.Go(func() {
			_, _ = io.Copy(way[0], io.LimitReader(way[1], passBytes)) // the two ends notice what is missing
			there.Close()
			s.Close()
		})
	}
	ends.Wait()
}

// reach connects to a run of another member than the one for which it does so. A handshake shows first at which address
// the run is.
func (t *Transport) reach(from peer.ID, run string) (net.Conn, error) {
	if t.cfg.Find == nil || strings.HasPrefix(run, from.String()) {
		return nil, errNotKnown
	}
	to, ok := t.cfg.Find(run)
	if !ok {
		return nil, errNotKnown
	}
	s, err := t.Ask(to, Keys, proofTimeout)
	if err != nil {
		return nil, err
	}
	s.Close()
	return t.cfg.Network.DialTimeout(s.RemoteAddr().String(), proofTimeout)
}
