// Package flowview remembers the connections of endpoints that this host sees, with names and the
// verdict of policies, and lists them for operators and for the other members.
//
// A View owns the table of flows (prog/flows), which never grows beyond its limits, and the sockets of
// conntrack. It names the ends of a flow, and evaluates policies, within a quarter of a second after
// the kernel reported it: what it says stays true of the moment when the flow began. Packets that are
// dropped later are a flow of their own. A View never sees payload. It is safe for concurrent use.
package flowview

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"weft/ipam/slot"
	"weft/mesh/peer"
	"weft/prog/agent/ask"
	"weft/prog/agent/enforce"
	"weft/prog/agent/live"
	"weft/prog/agent/view"
	"weft/prog/flows"
	"weft/router/nft"
	"weft/router/policy"
)

const (
	// settle is how long flows wait until they are named together.
	settle = 250 * time.Millisecond
	// look is how often the table is asked whose counters are due.
	look = time.Second
	// mostReads bounds the connections that are read at each look.
	mostReads = 2048
	// mostNew bounds the different flows that are evaluated at once.
	mostNew = 1000
	// mostKnown bounds the evaluated flows that are kept for others like them.
	mostKnown = 2048
	// mostDenials bounds the dropped packets that wait to be named.
	mostDenials = 1024
)

// Policies returns what this host knows.
type Policies interface{ Snapshot() enforce.Snapshot }

// Config configures a View.
type Config struct {
	Self     peer.ID
	Off      bool // no flows: nothing is read, and no sysctl is changed
	Policies Policies
	Mesh     ask.Mesh
	View     live.Reader[*view.View]
	// MarkOwnHost marks a packet that is between this host itself and an endpoint on it.
	MarkOwnHost func(*policy.Packet)
	// Changing is called once before a sysctl is changed, with the sysctl's value.
	Changing func(name, was, set string) error
	Started  time.Time
	Log      *slog.Logger
}

// View is the flows of this host.
type View struct {
	cfg   Config
	wake  chan struct{} // receives when flows wait for names
	limit *ask.Limit
	// narrowed is what the kernel filters events by; of the goroutine that reads the table.
	narrowed slot.Universe

	mu      sync.Mutex
	table   *flows.Table
	denied  []denial
	lost    uint64
	known   known
	reading bool   // the sockets of conntrack are open
	broken  string // why nothing can be read
	uncount string // why bytes cannot be counted
	missed  bool   // events were lost since the whole table was read
}

// denial is a dropped packet, and when it was dropped.
type denial struct {
	flows.Denial
	at time.Time
}

// New makes a view; Run starts it.
func New(cfg Config) *View {
	return &View{
		cfg: cfg, wake: make(chan struct{}, 1), table: flows.New(flows.DefaultLimits, uint64(cfg.Started.UnixMicro())),
		limit: newLimit(),
	}
}

// Dropped takes a packet that policies dropped, or would have dropped.
func (w *View) Dropped(l nft.Logged, now time.Time) {
	if w.cfg.Off {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.denied) >= mostDenials {
		w.lost++
		return
	}
	w.denied = append(w.denied, denial{flows.Denial{
		Direction: l.Direction, Audit: l.Audit, Protocol: policy.Protocol(l.Protocol),
		Src: netip.AddrPortFrom(l.Src, l.SrcPort), Dst: netip.AddrPortFrom(l.Dst, l.DstPort),
	}, now})
	w.rouse()
}

// rouse wakes the goroutine that names flows. It never blocks.
func (w *View) rouse() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// keep reports whether a connection has an end in the network.
func (w *View) keep(e flows.Entry) bool {
	v := w.cfg.View.Get()
	if v == nil {
		return false
	}
	u := v.Ring.Universe
	for _, a := range [...]netip.Addr{e.Original.Src.Addr(), e.ReplySrc.Addr(), e.ReplyDst.Addr(), e.Original.Dst.Addr()} {
		if u.V4.Contains(a) || u.V6.Contains(a) {
			return true
		}
	}
	return false
}

// Run reads conntrack and names flows until ctx ends.
func (w *View) Run(ctx context.Context) error {
	if w.cfg.Off {
		return nil
	}
	var group sync.WaitGroup
	group.Go(func() { w.read(ctx) })
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-w.wake:
			live.Pause(ctx, settle)
			w.mu.Lock()
			w.name()
			w.mu.Unlock()
		}
	}
	group.Wait()
	return nil
}

// name adds facts to the flows that have none. The caller holds the lock.
func (w *View) name() {
	if len(w.denied) == 0 && w.table.Waiting() == 0 {
		return
	}
	w.known.learn(w.cfg)
	left := mostNew
	facts := func(f *flows.Flow) *flows.Facts { return w.known.facts(w.cfg, f, &left) }
	w.table.Pending(facts)
	for _, d := range w.denied {
		if d.Audit && w.table.Audited(d.Denial) {
			continue // the connection itself says so, and counts all packets
		}
		w.table.Deny(d.Denial, d.at)
	}
	w.denied = w.denied[:0]
	if w.table.Pending(facts); w.table.Waiting() > 0 {
		w.rouse()
	}
}
