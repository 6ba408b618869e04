package mesh

import (
	"bytes"
	"fmt"
	"log"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Rejection is a host that was refused, for status on both sides.
type Rejection struct {
	Addr   string // has no port, so that retries count together
	Reason string
	Count  int
	Last   time.Time
}

const (
	maxRejections  = 64
	rejectionLife  = 10 * time.Minute // how long a rejection is shown after it last occurred
	rejectionPause = time.Second      // between two log lines, since any host can cause them
)

const wrongSecret = "wrong secret: it uses another cluster's token or password: compare them, run `weft reset` on the wrong host, and start its agent again"

// Rejections lists the hosts that were refused recently, by address.
func (m *Mesh) Rejections() []Rejection {
	m.mu.Lock()
	defer m.mu.Unlock()
	maps.DeleteFunc(m.rejections, func(_ string, r *Rejection) bool { return time.Since(r.Last) > rejectionLife })
	var out []Rejection
	for _, addr := range slices.Sorted(maps.Keys(m.rejections)) {
		out = append(out, *m.rejections[addr])
	}
	return out
}

// reject counts a rejection, and logs the first rejection of a kind. Any host can cause a
// rejection, with any source address, so reject does nothing else.
func (m *Mesh) reject(addr, reason string) {
	m.mu.Lock()
	r := m.rejections[addr]
	if r == nil && len(m.rejections) >= maxRejections {
		oldest := slices.MinFunc(slices.Collect(maps.Values(m.rejections)), func(a, b *Rejection) int { return a.Last.Compare(b.Last) })
		delete(m.rejections, oldest.Addr)
	}
	first := r == nil || r.Reason != reason
	if first {
		r = &Rejection{Addr: addr, Reason: reason}
		m.rejections[addr] = r
	}
	r.Count++
	r.Last = time.Now()
	loud := first && r.Last.Sub(m.rejected) > rejectionPause
	if loud {
		m.rejected = r.Last
	}
	m.mu.Unlock()
	if loud {
		m.cfg.Log.Warn("refused a host", "addr", addr, "reason", reason)
	}
}

// explainJoin translates memberlist's error of a failed join.
func explainJoin(a netip.AddrPort, err error) error {
	text := strings.ToLower(err.Error())
	switch {
	case strings.Contains(text, "was refused: "):
		_, reason, _ := strings.Cut(err.Error(), "was refused: ")
		return fmt.Errorf("%v: refused: %s", a, strings.TrimSpace(reason))
	case strings.Contains(text, "eof"), strings.Contains(text, "connection reset"):
		return fmt.Errorf("%v: it closed the connection: see `weft status` and the agent's log on that host", a)
	case strings.Contains(text, "connection refused"):
		return fmt.Errorf("%v: connection refused: is Weft running on that host?", a)
	case strings.Contains(text, "timeout"):
		return fmt.Errorf("%v: no answer: is the host up, and does its firewall allow TCP and UDP port %d?", a, a.Port())
	case strings.Contains(text, "network is unreachable"):
		return fmt.Errorf("%v: no route to that network: add one (`ip route get %v` shows what is missing), or connect to another address of that host", a, a.Addr())
	case strings.Contains(text, "no route to host"):
		return fmt.Errorf("%v: a router or that host rejects the connection: is the host up, is the address right, and does its firewall allow TCP and UDP port %d?", a, a.Port())
	}
	return fmt.Errorf("%v: %s", a, strings.Join(strings.Fields(wrapping.ReplaceAllString(err.Error(), "")), " "))
}

// wrapping matches the text that memberlist and Go put before the cause of a failed join.
var wrapping = regexp.MustCompile(`^(\d+ errors? occurred:\s*\* )?(failed to \w+ \S+: )?(dial tcp \S+: )?(connect: )?`)

// listLogger passes memberlist's log to ours.
func (m *Mesh) listLogger() *log.Logger { return log.New(logWriter{m}, "", 0) }

type logWriter struct{ m *Mesh }

func (w logWriter) Write(line []byte) (int, error) {
	text := string(bytes.TrimSpace(line))
	if rest, ok := strings.CutPrefix(text, "[WARN] memberlist: Was able to connect to "); ok {
		w.m.muted(rest)
	}
	w.m.cfg.Log.Debug("memberlist", "msg", text)
	return len(line), nil
}
