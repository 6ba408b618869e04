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

// How long a socket is used. A port that somebody finds out is worth nothing soon.
const (
	lineLife      = 5 * time.Second
	lineQuestions = 50
	idleLines     = 100 // at most, for an upstream
)

// line is a socket that is connected to an upstream: it gets nothing from any other address,
// and has a port that the kernel chose by chance (RFC 5452 4.5).
type line struct {
	*net.UDPConn
	until     time.Time // when it is too old
	questions int       // that it may still carry
	buf       []byte
}

// lines are the sockets of an upstream that have no question. To make a socket costs more than
// to ask a question, so that they are used again, each for one question at a time, as long as
// nothing came by them but answers. The zero value has none. It is safe for use from many
// goroutines.
type lines struct {
	mu   sync.Mutex
	idle []*line
}

// take is a socket to an upstream: any of those that are there, or a new one.
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
	return &line{c.(*net.UDPConn), now.Add(lineLife), lineQuestions, make([]byte, 4096)}, nil // some send more than they were asked for
}

// give takes back a socket whose question was answered.
func (l *lines) give(c *line) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.questions--; c.questions > 0 && len(l.idle) < idleLines {
		l.idle = append(l.idle, c)
	} else {
		_ = c.Close()
	}
}

// close closes the sockets that are too old at a time; the zero time is for all.
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
