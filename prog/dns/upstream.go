package dns

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

// upstream is a server for names outside the mesh. It is safe for concurrent use.
type upstream struct {
	addr    netip.AddrPort
	retryAt atomic.Int64           // when to query it again, in Unix nanoseconds; 0 while it answers
	reason  atomic.Pointer[string] // why its last query failed
	lines   lines
}

// usable reports whether to query u. After a failure it returns false until the hold has passed. Then
// one query tests whether u is back, while other queries do not wait for it.
func (u *upstream) usable(now time.Time) bool {
	at := u.retryAt.Load()
	return at == 0 || now.UnixNano() >= at && u.retryAt.CompareAndSwap(at, now.Add(hold).UnixNano())
}

// failed records that u does not answer, and reports whether it answered before.
func (u *upstream) failed(now time.Time, err error) (news bool) {
	why := err.Error()
	u.reason.Store(&why)
	u.lines.close(time.Time{}) // the route to it may have changed
	return u.retryAt.Swap(now.Add(hold).UnixNano()) == 0
}

// answered records that u answers, and reports whether it failed before.
func (u *upstream) answered() (news bool) {
	if u.retryAt.Load() == 0 {
		return false
	}
	u.reason.Store(nil)
	return u.retryAt.Swap(0) != 0
}

// late records that u answers, but after the time limit.
func (u *upstream) late(timeout time.Duration) {
	why := fmt.Sprintf("takes more than %v to answer", timeout)
	u.reason.Store(&why)
}

// exchange queries u over UDP, and again over TCP if the answer is truncated. It waits for the
// answer until ctx ends.
func (u *upstream) exchange(ctx context.Context, k key) (*dns.Msg, error) {
	m := query(k)
	r, err := u.overUDP(ctx, m)
	if err == nil && (r.Rcode == dns.RcodeFormatError || r.Rcode == dns.RcodeNotImplemented) && r.IsEdns0() == nil {
		m.Extra = nil // the upstream does not support EDNS (RFC 6891 7)
		r, err = u.overUDP(ctx, m)
	}
	if err == nil && r.Truncated {
		r, err = u.overTCP(ctx, m)
	}
	return r, err
}

// query returns the message that an upstream gets.
func query(k key) *dns.Msg {
	m := &dns.Msg{
		MsgHdr:   dns.MsgHdr{Id: ids.next(), RecursionDesired: true, CheckingDisabled: k.cd},
		Question: []dns.Question{{Name: k.name, Qtype: k.qtype, Qclass: dns.ClassINET}},
	}
	return m.SetEdns0(maxUDP, k.do)
}

// ids are unpredictable message ids. They are read from the kernel 256 at a time.
var ids = idSource{from: bufio.NewReaderSize(rand.Reader, 512)}

type idSource struct {
	mu   sync.Mutex
	from *bufio.Reader
}

func (s *idSource) next() uint16 {
	s.mu.Lock()
	defer s.mu.Unlock()
	var id [2]byte
	_, _ = io.ReadFull(s.from, id[:]) // crypto/rand never fails
	return binary.BigEndian.Uint16(id[:])
}

// overUDP queries u over UDP.
func (u *upstream) overUDP(ctx context.Context, m *dns.Msg) (r *dns.Msg, err error) {
	c, err := u.lines.take(ctx, u.addr)
	if err != nil {
		return nil, plain(ctx, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	clean := true // whether only the answer was received
	defer func() {
		if stop() && err == nil && clean {
			u.lines.give(c)
		} else {
			_ = c.Close()
		}
	}()
	out, err := m.PackBuffer(c.buf)
	if err != nil {
		return nil, err
	}
	if _, err := c.Write(out); err != nil {
		return nil, plain(ctx, err)
	}
	for {
		n, err := c.Read(c.buf)
		if err != nil {
			return nil, plain(ctx, err)
		}
		// Ignore any other message: an attacker may have sent it, and the real answer may still come.
		r := new(dns.Msg)
		if err := r.Unpack(c.buf[:n]); (err == nil || r.Truncated) && answers(r, m) {
			return r, nil
		}
		clean = false
	}
}

// overTCP queries u over a new connection.
func (u *upstream) overTCP(ctx context.Context, m *dns.Msg) (*dns.Msg, error) {
	c, err := new(net.Dialer).DialContext(ctx, "tcp", u.addr.String())
	if err != nil {
		return nil, plain(ctx, err)
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })()
	out, err := m.Pack()
	if err != nil {
		return nil, err
	}
	if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(out))), out...)); err != nil {
		return nil, plain(ctx, err)
	}
	var size [2]byte
	if _, err := io.ReadFull(c, size[:]); err != nil {
		return nil, plain(ctx, err)
	}
	in := make([]byte, binary.BigEndian.Uint16(size[:]))
	if _, err := io.ReadFull(c, in); err != nil {
		return nil, plain(ctx, err)
	}
	r := new(dns.Msg)
	if err := r.Unpack(in); err != nil && !r.Truncated || !answers(r, m) {
		return nil, errors.New("answered another question")
	}
	return r, nil
}

// answers reports whether r answers m (RFC 5452 9.1). Servers that could not parse the query need not
// repeat the question.
func answers(r, m *dns.Msg) bool {
	if !r.Response || r.Id != m.Id || r.Opcode != dns.OpcodeQuery {
		return false
	}
	if len(r.Question) == 0 {
		return r.Rcode == dns.RcodeFormatError || r.Rcode == dns.RcodeNotImplemented || r.Rcode == dns.RcodeRefused || r.Rcode == dns.RcodeServerFailure
	}
	a, b := r.Question[0], m.Question[0]
	return len(r.Question) == 1 && a.Qtype == b.Qtype && a.Qclass == b.Qclass && strings.EqualFold(a.Name, b.Name)
}

// errSilent means that no answer came in time.
var errSilent = errors.New("does not answer")

// plain returns err for users, without the addresses of a closed socket.
func plain(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return errSilent
	}
	if call, ok := errors.AsType[*os.SyscallError](err); ok {
		return call.Err
	}
	if op, ok := errors.AsType[*net.OpError](err); ok {
		return op.Err
	}
	return err
}
