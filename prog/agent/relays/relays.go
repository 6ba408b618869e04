// Package relays says between which hosts this host is a relay, and how much it has forwarded, for the status.
//
// Relays own when packets were last dropped, since a pair sent too much. They have no goroutine, change nothing on the
// host, and are safe for concurrent use.
package relays

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"weft/mesh/path"
	"weft/mesh/peer"
	"weft/prog/agent/live"
	"weft/prog/agent/measure"
	"weft/prog/agent/metric"
	"weft/prog/agent/view"
	"weft/prog/api"
	"weft/router/nft"
	"weft/router/problem"
)

// dropsLast is how long dropped packets are a problem.
const dropsLast = time.Minute

// Config configures Relays.
type Config struct {
	View    live.Reader[*view.View]
	Relayed live.Reader[measure.Relayed]
	// Forwarded reads the kernel's counters of a pair.
	Forwarded func(nft.Pair) ([2]nft.Forwarded, error)
}

// Relays watches for whom this host forwards.
type Relays struct {
	cfg Config

	mu    sync.Mutex
	drops map[path.Pair]drops
}

// drops are the dropped bytes of a pair, and when they last became more.
type drops struct {
	bytes uint64
	at    time.Time
}

// New makes relays.
func New(cfg Config) *Relays { return &Relays{cfg: cfg, drops: map[path.Pair]drops{}} }

// forwarded is what this host forwarded of one host to another.
type forwarded struct {
	from, to peer.ID
	nft.Forwarded
}

// look reads the counters of all pairs.
func (r *Relays) look() (out []forwarded) {
	now := time.Now()
	next := map[path.Pair]drops{}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.cfg.Relayed.Get().Pairs {
		n, err := r.cfg.Forwarded(nft.Pair{{Host: p.Legs[0].Host, Own: p.Legs[0].Own}, {Host: p.Legs[1].Host, Own: p.Legs[1].Own}})
		if err != nil { // the data path reports it
			continue
		}
		was, is := r.drops[p], n[0].Dropped+n[1].Dropped
		if is > was.bytes {
			was.at = now
		}
		next[p] = drops{is, was.at}
		for i, one := range n {
			same := func(f forwarded) bool { return f.from == p.Peers[i] && f.to == p.Peers[1-i] }
			if k := slices.IndexFunc(out, same); k >= 0 { // by another row of relays
				out[k].Passed, out[k].Dropped = out[k].Passed+one.Passed, out[k].Dropped+one.Dropped
				continue
			}
			out = append(out, forwarded{p.Peers[i], p.Peers[1-i], one})
		}
	}
	r.drops = next
	return out
}

// Status lists the hosts between which this host is a relay.
func (r *Relays) Status(v *view.View) (out []api.Relay) {
	for _, f := range r.look() {
		out = append(out, api.Relay{From: v.Name(f.from), To: v.Name(f.to), Bytes: f.Passed, Dropped: f.Dropped})
	}
	return out
}

// Problems says that there is no room for more pairs, and names pairs that send more than this host forwards.
func (r *Relays) Problems(v *view.View) (list []problem.Problem) {
	r.look()
	if n := len(r.cfg.Relayed.Get().Pairs); n >= path.ManyPairs {
		list = append(list, problem.Problem{
			Reason: problem.Port, About: "relay",
			What:   fmt.Sprintf("this host is the relay of %d pairs of hosts that do not reach each other, and has no room for many more", n),
			Effect: "further pairs use other relays, or have no connection", Fix: fmt.Sprintf("open UDP %d between your hosts, both ways, so that they need no relay", v.Own.Port),
		})
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for p, d := range r.drops {
		if time.Since(d.at) < dropsLast {
			a, b := v.Name(p.Peers[0]), v.Name(p.Peers[1])
			list = append(list, problem.Problem{
				Reason: problem.Port, About: "relay " + p.Peers[0].String() + p.Peers[1].String(),
				What:   fmt.Sprintf("%s and %s send more over this host than a relay forwards (%d MiB per second each way)", a, b, nft.PairRate),
				Effect: "packets between their containers are lost", Fix: fmt.Sprintf("open UDP %d between these two hosts, both ways, so that they need no relay", v.Own.Port),
			})
		}
	}
	return list
}

var (
	metricBytes   = metric.Desc("relay_forwarded_bytes_total", "Bytes that this host forwarded for a peer to another one, sealed for that one.", "from", "to")
	metricDropped = metric.Desc("relay_dropped_bytes_total", "Bytes that this host did not forward, since the two peers sent too much.", "from", "to")
)

// Metrics exports what was forwarded.
func (r *Relays) Metrics(out metric.Out) {
	for _, f := range r.look() {
		out.Counter(metricBytes, float64(f.Passed), f.from.String(), f.to.String())
		out.Counter(metricDropped, float64(f.Dropped), f.from.String(), f.to.String())
	}
}
