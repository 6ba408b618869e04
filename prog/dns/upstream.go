package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

// upstream is a server that is asked for names that are not ours. It is safe for use from
// many goroutines.
type upstream struct {
	addr    netip.AddrPort
	retryAt atomic.Int64           // Unix nanoseconds; 0 while it answers
	reason  atomic.Pointer[string] // why it did not answer last
}

// usable reports whether u is worth a question. Of those that failed, one question after
// the hold finds out whether they are back; the others do not wait for that.
func (u *upstream) usable(now time.Time) bool {
	at := u.retryAt.Load()
	return at == 0 || now.UnixNano() >= at && u.retryAt.CompareAndSwap(at, now.Add(hold).UnixNano())
}

// failed notes why u does not answer, and reports whether that is news.
func (u *upstream) failed(now time.Time, err error) (news bool) {
	why := err.Error()
	u.reason.Store(&why)
	return u.retryAt.Swap(now.Add(hold).UnixNano()) == 0
}

// answered notes that u answers, and reports whether that is news.
func (u *upstream) answered() (news bool) {
	if u.retryAt.Load() == 0 {
		return false
	}
	u.reason.Store(nil)
	return u.retryAt.Swap(0) != 0
}

// exchange asks u, over UDP and then over TCP if the answer does not fit, and gives each of
// them the timeout.
func (u *upstream) exchange(ctx context.Context, k key, timeout time.Duration) (*dns.Msg, error) {
	m := query(k)
	r, err := u.over(ctx, "udp", m, timeout)
	if err == nil && (r.Rcode == dns.RcodeFormatError || r.Rcode == dns.RcodeNotImplemented) && r.IsEdns0() == nil {
		m.Extra = nil // it does not know EDNS (RFC 6891 7)
		r, err = u.over(ctx, "udp", m, timeout)
	}
	if err == nil && r.Truncated {
		r, err = u.over(ctx, "tcp", m, timeout)
	}
	return r, err
}

// query is the question as an upstream gets it.
func query(k key) *dns.Msg {
	m := new(dns.Msg).SetQuestion(k.name, k.qtype) // its id is from crypto/rand
	m.CheckingDisabled = k.cd
	return m.SetEdns0(maxUDP, k.do)
}

// over asks u in one way. A socket of its own for every question has a port that nobody
// can guess, and gets nothing from any other address (RFC 5452 4.5).
func (u *upstream) over(ctx context.Context, network string, m *dns.Msg, timeout time.Duration) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	c, err := new(net.Dialer).DialContext(ctx, network, u.addr.String())
	if err != nil {
		return nil, plain(ctx, err)
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })()
	out, err := m.PackBuffer(make([]byte, 2+minUDP)[2:])
	if err != nil {
		return nil, err
	}
	if network == "tcp" {
		out = append(binary.BigEndian.AppendUint16(nil, uint16(len(out))), out...)
	}
	if _, err := c.Write(out); err != nil {
		return nil, plain(ctx, err)
	}
	buf := make([]byte, 4096) // some send more than they were asked for
	for {
		in, err := readMessage(c, network, &buf)
		if err != nil {
			return nil, plain(ctx, err)
		}
		var r dns.Msg
		// What is no answer to this question may come from one who would like to answer
		// it in place of u: the answer may still come.
		if err := r.Unpack(in); (err == nil || r.Truncated) && answers(&r, m) {
			return &r, nil
		} else if network == "tcp" {
			return nil, errors.New("answers another question")
		}
	}
}

func readMessage(c net.Conn, network string, buf *[]byte) ([]byte, error) {
	if network == "udp" {
		n, err := c.Read(*buf)
		return (*buf)[:n], err
	}
	var size [2]byte
	if _, err := io.ReadFull(c, size[:]); err != nil {
		return nil, err
	}
	*buf = slices.Grow((*buf)[:0], int(binary.BigEndian.Uint16(size[:])))[:binary.BigEndian.Uint16(size[:])]
	_, err := io.ReadFull(c, *buf)
	return *buf, err
}

// answers reports whether r answers m (RFC 5452 9.1). Servers that understood nothing need
// not repeat the question.
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

// plain is err for people: without the addresses of a socket that is gone.
func plain(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return errors.New("does not answer")
	}
	if call, ok := errors.AsType[*os.SyscallError](err); ok {
		return call.Err
	}
	if op, ok := errors.AsType[*net.OpError](err); ok {
		return op.Err
	}
	return err
}
