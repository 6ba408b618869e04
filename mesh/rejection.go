package mesh

import (
	"bytes"
	"fmt"
	"log"
	"maps"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Rejection is somebody who was turned away, for people to see on both sides.
type Rejection struct {
	Addr   string // without the port, so that retries count as one
	Reason string
	Count  int
	Last   time.Time
}

const (
	maxRejections  = 64
	rejectionLife  = 10 * time.Minute // how long one is shown after the last time
	rejectionPause = time.Second      // between two lines in the log: anybody can cause them
)

// noKeyFits is memberlist's error for a message under another key, in lower case.
const noKeyFits = "no installed keys could decrypt"

const wrongSecret = "wrong secret: it uses another cluster's token or password; compare them, then run `weft reset` on the host that is wrong, and start its agent again"

// Rejections lists who was turned away of late, by address.
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

// reject counts one, and logs the first of a kind. It is called for what strangers
// send, from any source address: so it does nothing else.
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
		m.cfg.Log.Warn("turned away", "addr", addr, "reason", reason)
	}
}

// explainJoin says in our words why a join failed. memberlist reports a key that
// does not fit in the text of its error only.
func explainJoin(a netip.AddrPort, err error) error {
	text := strings.ToLower(err.Error())
	switch {
	case strings.Contains(text, noKeyFits), strings.Contains(text, "remote state is encrypted"):
		return fmt.Errorf("%v: %s", a, wrongSecret)
	case strings.Contains(text, "was refused: "):
		_, reason, _ := strings.Cut(err.Error(), "was refused: ")
		return fmt.Errorf("%v: refused: %s", a, strings.TrimSpace(reason))
	case strings.Contains(text, "eof"), strings.Contains(text, "connection reset"):
		return fmt.Errorf("%v: it answered, then hung up: see `weft status` and the log over there", a)
	case strings.Contains(text, "connection refused"):
		return fmt.Errorf("%v: connection refused: is Weft running there?", a)
	case strings.Contains(text, "timeout"):
		return fmt.Errorf("%v: no answer: is the host up, and does a firewall let TCP and UDP %d through?", a, a.Port())
	case strings.Contains(text, "network is unreachable"):
		return fmt.Errorf("%v: this host has no route there: add one (`ip route get %v` shows what is missing), or connect to another address of that host", a, a.Addr())
	case strings.Contains(text, "no route to host"):
		return fmt.Errorf("%v: the way there ends before that host: is it up, is the address right, and does a firewall let TCP and UDP %d through?", a, a.Port())
	}
	return fmt.Errorf("%v: %s", a, strings.Join(strings.Fields(wrapping.ReplaceAllString(err.Error(), "")), " "))
}

// wrapping is what memberlist and Go say of a failed join before its cause, on lines of its own.
var wrapping = regexp.MustCompile(`^(\d+ errors? occurred:\s*\* )?(failed to \w+ \S+: )?(dial tcp \S+: )?(connect: )?`)

// listLogger turns memberlist's log into ours. A sender with another secret shows
// up nowhere else: memberlist only logs that it could not decrypt.
func (m *Mesh) listLogger() *log.Logger { return log.New(logWriter{m}, "", 0) }

type logWriter struct{ m *Mesh }

func (w logWriter) Write(line []byte) (int, error) {
	text := string(bytes.TrimSpace(line))
	if rest, ok := strings.CutPrefix(text, "[WARN] memberlist: Was able to connect to "); ok {
		w.m.muted(rest)
	}
	_, from, hasFrom := strings.Cut(text, "from=")
	if host, _, err := net.SplitHostPort(from); hasFrom && err == nil {
		addr := host
		if ip, err := netip.ParseAddr(host); err == nil {
			addr = ip.Unmap().String()
		}
		switch {
		case strings.Contains(strings.ToLower(text), noKeyFits):
			w.m.reject(addr, wrongSecret)
		case strings.Contains(text, "failed to receive"), strings.Contains(text, "Decrypt packet failed"):
			w.m.reject(addr, "it sent something that is no encrypted gossip: no secret at all, or another program")
		}
	}
	w.m.cfg.Log.Debug("memberlist", "msg", text)
	return len(line), nil
}
