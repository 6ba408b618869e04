package dns

import (
	"context"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// Limits of a socket's use, so that a source port that an attacker discovers is soon out of use.
const (
	lineLife      = 5 * time.Second
	lineQuestions = 50
	idleLines     = 100 // idle sockets per upstream
)

// line is a socket that is connected to an upstream, so that it only receives from the upstream's
// address. The kernel chose the socket's port at random (RFC 5452 4.5).
type line struct {
	*net.UDPConn
	until     time.Time // end of its use
	questions int       // number of further questions
	buf       []byte
}

// lines are the idle sockets of an upstream. Making a socket costs more than a query, so sockets are
// used again, for one query at a time. A socket that received anything but the answer is closed. The
// zero value is empty. It is safe for concurrent use.
type lines struct {
	mu   sync.Mutex
	idle []*line
}

// take returns a random idle socket, or a new one.
func (l *lines) take(ctx context.Context, to netip.AddrPort) (*line, error) {
	now := time.Now()
	l.mu.Lock()
	for len(l.idle) > 0 {
		i, last := rand.IntN(len(l.idle)), len(l.idle)-1
		c := l.idle[i]
		l.idle[i] = l.idle[last]
		l.idle = l.idle[:last]
		if now.Before(c.until) {
			l.mu.Unlock()
			return c, nil
		}
		_ = c.Close()
	}
	l.mu.Unlock()
	c, err := new(net.Dialer).DialContext(ctx, "udp", to.String())
	if err != nil {
		return nil, err
	}
	return &line{c.(*net.UDPConn), now.Add(lineLife), lineQuestions, make([]byte, 4096)}, nil // some servers send more than the EDNS size
}

// give returns a socket whose query was answered.
func (l *lines) give(c *line) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.questions--; c.questions > 0 && len(l.idle) < idleLines {
		l.idle = append(l.idle, c)
	} else {
		_ = c.Close()
	}
}

// close closes the idle sockets whose use has ended at the time now; the zero time closes all.
func (l *lines) close(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.idle = slices.DeleteFunc(l.idle, func(c *line) bool {
		old := now.IsZero() || !now.Before(c.until)
		if old {
			_ = c.Close()
		}
		return old
	})
}
