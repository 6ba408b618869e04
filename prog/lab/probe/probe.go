// Package probe implements weft probe, the traffic tool for the demo, tests and operators.
//
// It measures loss, order and latency with numbered messages (icmp, udp, tcp), answers them (listen),
// and counts packets on interfaces (capture). Payloads can repeat a marker, so that a capture finds
// unencrypted payloads. By default, everything is limited in number and time. It needs no other
// program, and for icmp and capture only privileges in its own network namespace. It owns no state
// beyond a call, and is safe for concurrent use.
package probe

import (
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// Config configures a probe.
type Config struct {
	Count    int           // number of messages to each address
	Interval time.Duration // time between two messages
	Timeout  time.Duration // time limit of an answer
	Size     int           // bytes of payload
	Marker   string        // text that fills the payload
	Port     uint16        // port of weft probe listen, for tcp and udp
	// Until ends the probe early when it is closed. nil: never.
	Until <-chan struct{}
}

// Result describes the fate of the messages to one address. Latencies are round trip times in
// milliseconds; without answers the fields are missing.
type Result struct {
	Proto      string     `json:"proto"`
	Addr       netip.Addr `json:"addr"`
	Sent       int        `json:"sent"`
	Received   int        `json:"received"`
	Lost       int        `json:"lost"`
	Duplicates int        `json:"duplicates"`
	OutOfOrder int        `json:"outOfOrder"`
	Corrupt    int        `json:"corrupt"`
	Min        float64    `json:"minMs,omitempty"`
	Avg        float64    `json:"avgMs,omitempty"`
	P99        float64    `json:"p99Ms,omitempty"`
	Max        float64    `json:"maxMs,omitempty"`
	Error      string     `json:"error,omitempty"` // why the probe ended early
	// LostAt has the send times of the first few lost messages: milliseconds after the first message.
	LostAt []float64 `json:"lostAtMs,omitempty"`
	// Unsent is the error of the last message that could not be sent. Such messages count as lost.
	Unsent string `json:"unsent,omitempty"`
}

// OK reports whether every message came back once, unchanged and in order.
func (r Result) OK() bool {
	return r.Error == "" && r.Lost == 0 && r.Duplicates == 0 && r.OutOfOrder == 0 && r.Corrupt == 0
}

// tally counts the messages of one address. It belongs to one goroutine at a time.
type tally struct {
	sent     map[uint32]time.Time
	answered map[uint32]bool
	last     uint32
	rtts     []time.Duration
	over     bool // whether all messages were sent
	res      Result
}

func newTally(proto string, addr netip.Addr) *tally {
	return &tally{
		sent: make(map[uint32]time.Time), answered: make(map[uint32]bool),
		res: Result{Proto: proto, Addr: addr},
	}
}

func (t *tally) send(seq uint32, now time.Time) { t.sent[seq] = now }

// receive counts an answer. A message whose answer took longer than timeout stays lost.
func (t *tally) receive(seq uint32, now time.Time, timeout time.Duration) {
	at, ok := t.sent[seq]
	switch {
	case !ok:
		t.res.Corrupt++
	case t.answered[seq]:
		t.res.Duplicates++
	case now.Sub(at) <= timeout:
		if seq < t.last {
			t.res.OutOfOrder++
		}
		t.last = max(t.last, seq)
		t.answered[seq] = true
		t.rtts = append(t.rtts, now.Sub(at))
	}
}

func (t *tally) done() bool { return len(t.answered) == len(t.sent) }

func (t *tally) result() Result {
	r := t.res
	r.Sent, r.Received = len(t.sent), len(t.answered)
	r.Lost = r.Sent - r.Received
	r.LostAt = t.lostAt(10)
	if len(t.rtts) == 0 {
		return r
	}
	slices.Sort(t.rtts)
	var sum time.Duration
	for _, d := range t.rtts {
		sum += d
	}
	n := len(t.rtts)
	r.Min, r.Max = ms(t.rtts[0]), ms(t.rtts[n-1])
	r.Avg, r.P99 = ms(sum/time.Duration(n)), ms(t.rtts[int(math.Ceil(0.99*float64(n)))-1])
	return r
}

// lostAt returns the send times of the first lost messages.
func (t *tally) lostAt(most int) (out []float64) {
	for _, seq := range slices.Sorted(maps.Keys(t.sent)) {
		if !t.answered[seq] && len(out) < most {
			out = append(out, ms(t.sent[seq].Sub(t.sent[0])))
		}
	}
	return out
}

func ms(d time.Duration) float64 { return math.Round(d.Seconds()*1e6) / 1e3 }

// headerSize is the size of the sequence number at the start of each payload, also within a stream.
const headerSize = 4

func payload(seq uint32, size int, marker string) []byte {
	p := make([]byte, max(size, headerSize))
	binary.BigEndian.PutUint32(p, seq)
	if marker != "" {
		copy(p[headerSize:], strings.Repeat(marker, len(p)/len(marker)+1))
	}
	return p
}

// Print writes results as a table.
func Print(w io.Writer, results []Result) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "PROTO\tADDRESS\tSENT\tRECEIVED\tLOST\tDUP\tREORDERED\tMIN/AVG/P99/MAX MS")
	for _, r := range results {
		latency := "-" // shown instead of latencies if there were no answers
		if r.Received > 0 {
			latency = fmt.Sprintf("%.2f/%.2f/%.2f/%.2f", r.Min, r.Avg, r.P99, r.Max)
		}
		fmt.Fprintf(tw, "%s\t%s\t%d\t%d\t%d\t%d\t%d\t%s", r.Proto, r.Addr,
			r.Sent, r.Received, r.Lost, r.Duplicates, r.OutOfOrder, latency)
		if len(r.LostAt) > 0 && r.Received > 0 {
			fmt.Fprintf(tw, "  lost after %v ms", r.LostAt)
		}
		if r.Corrupt > 0 {
			fmt.Fprintf(tw, "  %d corrupt", r.Corrupt)
		}
		if r.Error != "" {
			fmt.Fprintf(tw, "  %s", r.Error)
		}
		if r.Unsent != "" {
			fmt.Fprintf(tw, "  not sent: %s", r.Unsent)
		}
		fmt.Fprintln(tw)
	}
	return tw.Flush()
}
