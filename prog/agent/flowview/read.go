package flowview

import (
	"context"
	"sync"
	"time"

	"weft/ipam/slot"
	"weft/prog/agent/live"
	"weft/prog/agent/metric"
	"weft/prog/conntrack"
	"weft/prog/flows"
	"weft/router/link"
	"weft/router/problem"
)

const (
	// retry is how long a failed attempt to read conntrack is not repeated.
	retry = 10 * time.Second
	// share bounds reading the whole table: it takes at most this part of the time.
	share = 50
)

// read reads conntrack until ctx ends. After an error it begins again.
func (w *View) read(ctx context.Context) {
	for ctx.Err() == nil {
		w.countBytes()
		err := w.readOnce(ctx)
		w.mu.Lock()
		if w.reading = false; err != nil && ctx.Err() == nil {
			if w.broken != err.Error() {
				w.cfg.Log.Warn("cannot read the connections of this host", "err", err)
			}
			w.broken = err.Error()
			w.missed = true
			w.lost++ // at least one, until the next attempt
		}
		w.mu.Unlock()
		live.Pause(ctx, retry)
	}
}

// countBytes makes the kernel count the bytes of connections that begin from now on.
func (w *View) countBytes() {
	err := link.ChangeSysctl("1", link.CountConnections, w.cfg.Changing)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.uncount = ""; err != nil {
		w.uncount = err.Error()
	}
}

// readOnce subscribes to events, reads the whole table, and then the counters that are due.
func (w *View) readOnce(ctx context.Context) error {
	events, err := conntrack.Open()
	if err != nil {
		return err
	}
	defer events.Close()
	w.narrowed = slot.Universe{}
	table, err := conntrack.OpenTable()
	if err != nil {
		return err
	}
	defer table.Close()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var group sync.WaitGroup
	var failed error
	w.narrow(events)
	group.Go(func() {
		defer stop()
		failed = events.Run(ctx, conntrack.Sink{Keep: w.keep, Take: w.take, Lost: w.lose})
	})
	err = w.follow(ctx, table, func() { w.narrow(events) })
	stop()
	group.Wait()
	if failed != nil {
		return failed
	}
	return err
}

// narrow makes the kernel deliver only events of connections with an end in the network, once the
// network's addresses are known. Without that filter, keep skips the others.
func (w *View) narrow(events *conntrack.Events) {
	v := w.cfg.View.Get()
	if v == nil || v.Ring.Universe == w.narrowed || !v.Ring.Universe.V4.IsValid() || !v.Ring.Universe.V6.IsValid() {
		return
	}
	w.narrowed = v.Ring.Universe
	w.mu.Lock()
	w.missed = true // connections from before the addresses were known
	w.mu.Unlock()
	if err := events.Only(w.narrowed.V4, w.narrowed.V6); err != nil {
		w.cfg.Log.Warn("all events of connections are read, which costs more: the kernel does not filter them", "err", err)
	}
}

// follow reads the whole table, also after lost events, and the counters that are due.
func (w *View) follow(ctx context.Context, table *conntrack.Table, narrow func()) error {
	w.mu.Lock()
	w.reading, w.broken, w.missed = true, "", true
	w.mu.Unlock()
	tick := time.NewTicker(look)
	defer tick.Stop()
	var next time.Time // before it, the whole table is not read again
	for {
		begin := time.Now()
		w.mu.Lock()
		all := w.missed && !begin.Before(next)
		if all {
			w.missed = false
		}
		uncounted := w.uncount != ""
		w.mu.Unlock()
		if uncounted && begin.After(next) { // conntrack may have been loaded meanwhile
			w.countBytes()
		}
		narrow()
		var err error
		if all {
			err = w.readAll(ctx, table)
			next = time.Now().Add(max(retry, share*time.Since(begin)))
		} else {
			err = w.readDue(table, begin)
		}
		if err != nil && ctx.Err() == nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// readAll notes all connections of the kernel's table.
func (w *View) readAll(ctx context.Context, table *conntrack.Table) error {
	return table.All(ctx, w.keep, func(e flows.Entry) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.table.Note(e, false, time.Now())
		w.rouse()
	})
}

// readDue reads the counters of open connections.
func (w *View) readDue(table *conntrack.Table, now time.Time) error {
	w.mu.Lock()
	due := w.table.Due(now, mostReads)
	w.mu.Unlock()
	return table.Read(due, func(t flows.Tuple, e flows.Entry, found bool) {
		w.mu.Lock()
		defer w.mu.Unlock()
		if found {
			w.table.Note(e, false, time.Now())
		} else {
			w.table.Gone(t, time.Now())
		}
	})
}

// take notes events.
func (w *View) take(list []conntrack.Event) {
	now := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range list {
		if e.Ended {
			w.table.End(e.Entry, now)
		} else {
			w.table.Note(e.Entry, true, now)
		}
	}
	if w.table.Waiting() > 0 {
		w.rouse()
	}
}

// lose counts events that the kernel could not deliver. Then the whole table is read.
func (w *View) lose(n uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lost += n
	w.missed = true
}

// Problems returns why flows are missing or incomplete.
func (w *View) Problems() (out []problem.Problem) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.broken != "" {
		out = append(out, problem.Problem{
			Reason: problem.Host, About: "flows", What: "the connections of this host cannot be read: " + w.broken, Effect: "`weft flows` shows only denied packets of this host",
			Fix: "load the kernel modules nf_conntrack and nf_conntrack_netlink (modprobe nf_conntrack_netlink), or launch with --no-flows",
		})
	}
	if w.reading && w.uncount != "" {
		out = append(out, problem.Problem{
			Reason: problem.Host, About: "flow counters", What: "the kernel does not count the bytes of connections: " + w.uncount, Effect: "`weft flows` shows no bytes of this host's connections",
			Fix: "make /proc/sys/net writable for the agent (--sysctl-dir in a container), run `sysctl -w net.netfilter.nf_conntrack_acct=1` on the host, or launch with --no-flows",
		})
	}
	return out
}

var (
	descOpen  = metric.Desc("flows", "Open connections of endpoints that this host remembers.")
	descTotal = metric.Desc("flows_total", "Flows since the agent started, by verdict.", "verdict")
	descLost  = metric.Desc("flow_events_lost_total", "Events of connections that the kernel or the agent could not deliver.")
)

// Metrics returns numbers of flows.
func (w *View) Metrics(out metric.Out) {
	if w.cfg.Off {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	c := w.table.Counts()
	out.Gauge(descOpen, float64(c.Open))
	for _, v := range []flows.Verdict{flows.Allowed, flows.Denied, flows.Audit} {
		out.Counter(descTotal, float64(c.Totals[v]), verdicts[v])
	}
	out.Counter(descLost, float64(w.lost+c.Unlooked))
}
