package flows

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"weft/router/policy"
)

// Limits bound a Table.
type Limits struct {
	Flows   int // all flows
	Denials int // flows of dropped packets among them
	Bytes   int // estimated memory of all facts
}

// DefaultLimits keep a table so small that it takes less than 16 MiB, also with the garbage of two rounds.
var DefaultLimits = Limits{Flows: 8192, Denials: 2048, Bytes: 3 << 20}

const (
	// readEvery is the interval at which the counters of an open connection are read.
	readEvery = 3 * time.Second
	// idleAfter is after how many reads without a change a connection counts as idle.
	idleAfter = 3
	// crowd is how many open connections all are read at that interval; of more, idle ones more rarely.
	crowd = 2000
	// readIdle is the interval for idle connections in a crowd.
	readIdle = 15 * time.Second
	// quiet is how long no packet of a denied flow must be dropped until the flow counts as ended.
	quiet = time.Minute
)

// list is a doubly linked list of flows, the flow that changed first at the front.
type list struct {
	first, last *Flow
	len         int
}

// Table holds flows. New makes one.
type Table struct {
	limits   Limits
	flows    map[key]*Flow
	lists    [kinds]list
	changes  uint64
	ids      uint64
	facts    map[*Facts]int // how many flows have these facts
	ends     map[*End]int   // how many facts have this end
	bytes    int
	pending  []*Flow // flows without facts
	totals   [Audit + 1]uint64
	forgot   uint64
	unlooked uint64
}

// New makes a table. Its ids and changes begin after begin, which must grow with each start of the
// program: so a cursor of an earlier table never hides a flow of this one.
func New(limits Limits, begin uint64) *Table {
	return &Table{limits: limits, flows: map[key]*Flow{}, changes: begin, ids: begin, facts: map[*Facts]int{}, ends: map[*End]int{}}
}

// Note records a connection that began, or whose counters were read. new is set if it has just begun:
// then it is another one than an earlier one with the same tuple.
func (t *Table) Note(e Entry, began bool, now time.Time) {
	k := key{Tuple: e.Original}
	f := t.flows[k]
	if f != nil && (began || f.Entry.ID != e.ID || f.Ended && !e.Closed) {
		t.end(f, now)
		f = nil
	}
	if f == nil {
		if !began && e.Closed { // it ended before this program looked
			return
		}
		f = t.add(e, 0, fresh, now)
		if e.Closed {
			t.end(f, now)
		}
		return
	}
	f.read = now.UnixNano()
	if !t.count(f, e) {
		f.still = min(f.still+1, idleAfter)
	} else {
		f.still, f.last = 0, now.UnixNano()
		if f.kind == fresh {
			t.move(f, long)
		}
		t.changed(f)
	}
	if e.Closed {
		t.end(f, now)
	}
}

// End records that the kernel forgot a connection. Its last counters may be in e.
func (t *Table) End(e Entry, now time.Time) {
	f := t.flows[key{Tuple: e.Original}]
	if f == nil {
		f = t.add(e, 0, fresh, now)
	}
	if t.count(f, e) {
		f.last = now.UnixNano()
		t.changed(f)
	}
	t.end(f, now)
}

// Gone records that the kernel does not know a connection any more, whose counters were to be read.
func (t *Table) Gone(tuple Tuple, now time.Time) {
	if f := t.flows[key{Tuple: tuple}]; f != nil {
		t.end(f, now)
	}
}

// Deny records a dropped packet. Packets that differ only in their client port are one flow.
func (t *Table) Deny(d Denial, now time.Time) {
	drop := 1 + dropDirection(d.Direction)
	if d.Audit {
		drop += 2
	}
	k := key{Tuple: Tuple{Src: netip.AddrPortFrom(d.Src.Addr(), 0), Dst: d.Dst, Protocol: d.Protocol}, drop: drop}
	f := t.flows[k]
	if f == nil || f.Ended {
		f = t.add(Entry{Original: Tuple{Src: d.Src, Dst: d.Dst, Protocol: d.Protocol}, ReplySrc: d.Dst}, drop, denials, now)
	}
	f.Entry.Original.Src, f.Entry.ReplyDst = d.Src, d.Src
	f.Entry.Sent.Packets++
	f.last = now.UnixNano()
	t.changed(f)
}

// Direction returns at which end policies dropped the packets of a denial, and whether only policies in
// audit mode would have.
func (f *Flow) Direction() (d policy.Direction, audit bool) {
	return policy.Direction((f.drop - 1) % 2), f.drop > 2
}

// count takes counters, which never fall, and reports whether any grew.
func (t *Table) count(f *Flow, e Entry) (grew bool) {
	for _, c := range [][2]*uint64{
		{&f.Entry.Sent.Packets, &e.Sent.Packets},
		{&f.Entry.Sent.Bytes, &e.Sent.Bytes},
		{&f.Entry.Received.Packets, &e.Received.Packets},
		{&f.Entry.Received.Bytes, &e.Received.Bytes},
	} {
		if *c[1] > *c[0] {
			*c[0], grew = *c[1], true
		}
	}
	return grew
}

// end marks a flow as ended.
func (t *Table) end(f *Flow, now time.Time) {
	if f.Ended {
		return
	}
	f.Ended = true
	if f.Entry.Sent.Packets == 0 { // without counters, the end is all that is known
		f.last = now.UnixNano()
	}
	if f.kind != denials {
		t.move(f, ended)
	}
	t.changed(f)
}

// add adds a flow without facts, and forgets others if there are too many.
func (t *Table) add(e Entry, drop dropDirection, of kind, now time.Time) *Flow {
	for t.lists[denials].len >= t.limits.Denials && of == denials || t.len() >= t.limits.Flows {
		t.forget(t.oldest(of))
	}
	t.ids++
	at := now.UnixNano()
	f := &Flow{ID: t.ids, Entry: e, Denial: of == denials, drop: drop, kind: of, start: at, last: at, read: at}
	t.flows[f.key()] = f
	t.lists[of].push(f)
	t.changed(f)
	if len(t.pending) >= t.limits.Flows {
		t.pending = slices.DeleteFunc(t.pending, func(f *Flow) bool { return f.forgotten || f.Facts != nil })
	}
	t.pending = append(t.pending, f)
	return f
}

// oldest returns the flow to forget for one of a kind.
func (t *Table) oldest(of kind) *Flow {
	if of == denials && t.lists[denials].len >= t.limits.Denials {
		return t.lists[denials].first
	}
	for _, l := range t.lists {
		if l.first != nil {
			return l.first
		}
	}
	return nil
}

func (t *Table) len() (n int) {
	for _, l := range t.lists {
		n += l.len
	}
	return n
}

// forget removes a flow.
func (t *Table) forget(f *Flow) {
	t.lists[f.kind].remove(f)
	if k := f.key(); t.flows[k] == f {
		delete(t.flows, k)
	}
	t.unshare(f.Facts)
	f.forgotten = true
	if t.forgot++; f.Facts == nil {
		t.unlooked++
	}
}

// move puts a flow into another list.
func (t *Table) move(f *Flow, to kind) {
	t.lists[f.kind].remove(f)
	f.kind = to
	t.lists[to].push(f)
}

// changed gives a flow the newest change, and the last place in its list.
func (t *Table) changed(f *Flow) {
	t.changes++
	f.Changed = t.changes
	t.lists[f.kind].remove(f)
	t.lists[f.kind].push(f)
}

func (l *list) push(f *Flow) {
	f.prev, f.next = l.last, nil
	if l.last != nil {
		l.last.next = f
	} else {
		l.first = f
	}
	l.last = f
	l.len++
}

func (l *list) remove(f *Flow) {
	if f.prev != nil {
		f.prev.next = f.next
	} else {
		l.first = f.next
	}
	if f.next != nil {
		f.next.prev = f.prev
	} else {
		l.last = f.prev
	}
	f.prev, f.next = nil, nil
	l.len--
}

// Pending calls f for each flow without facts, the oldest one first. f returns the facts, or nil to be
// called again for this flow and all later ones at the next time.
func (t *Table) Pending(f func(*Flow) *Facts) {
	left := t.pending
	for i, one := range left {
		if one.forgotten || one.Facts != nil {
			continue
		}
		facts := f(one)
		if facts == nil {
			t.pending = append(t.pending[:0], left[i:]...)
			return
		}
		t.share(facts)
		one.Facts = facts
		t.totals[facts.Verdict]++
		t.changed(one)
		for t.bytes > t.limits.Bytes {
			t.forget(t.oldest(fresh))
		}
	}
	clear(t.pending)
	if t.pending = t.pending[:0]; cap(t.pending) > 1024 { // after a burst
		t.pending = nil
	}
}

// Waiting returns how many flows may have no facts yet.
func (t *Table) Waiting() int { return len(t.pending) }

func (t *Table) share(f *Facts) {
	if t.facts[f]++; t.facts[f] > 1 {
		return
	}
	t.bytes += f.size()
	for _, e := range []*End{f.From, f.To} {
		if t.ends[e]++; t.ends[e] == 1 {
			t.bytes += e.size()
		}
	}
}

func (t *Table) unshare(f *Facts) {
	if f == nil {
		return
	}
	if t.facts[f]--; t.facts[f] > 0 {
		return
	}
	delete(t.facts, f)
	t.bytes -= f.size()
	for _, e := range []*End{f.From, f.To} {
		if t.ends[e]--; t.ends[e] == 0 {
			delete(t.ends, e)
			t.bytes -= e.size()
		}
	}
}

// Due returns the open connections whose counters are to be read now, at most so many: long ones first.
// It also ends denied flows of which no packet was dropped for a while.
func (t *Table) Due(now time.Time, most int) (out []Tuple) {
	for f := t.lists[denials].first; f != nil && now.Sub(f.Last()) >= quiet; {
		next := f.next
		t.end(f, now)
		f = next
	}
	crowded := t.lists[fresh].len+t.lists[long].len > crowd
	for _, of := range []kind{long, fresh} {
		for f := t.lists[of].first; f != nil && len(out) < most; f = f.next {
			wait := readEvery
			if crowded && f.still >= idleAfter {
				wait = readIdle
			}
			if at := now.UnixNano(); at-f.read >= int64(wait) {
				f.read = at
				out = append(out, f.Entry.Original)
			}
		}
	}
	return out
}

// Audited reports whether a connection is known to be one that policies in audit mode would deny.
func (t *Table) Audited(d Denial) bool {
	f := t.flows[key{Tuple: Tuple{Src: d.Src, Dst: d.Dst, Protocol: d.Protocol}}]
	return f != nil && f.Facts != nil && f.Facts.Verdict == Audit
}

// Select returns the flows with facts that changed after a change, for which keep returns true: the
// most newest ones, sorted by their change, and how many more there are. next is the cursor for the
// following call.
func (t *Table) Select(after uint64, most int, keep func(*Flow) bool) (out []Flow, more int, next uint64) {
	var found []*Flow
	for _, l := range t.lists {
		for f := l.last; f != nil && f.Changed > after; f = f.prev {
			if f.Facts != nil && keep(f) {
				found = append(found, f)
			}
		}
	}
	slices.SortFunc(found, func(x, y *Flow) int { return cmp.Compare(x.Changed, y.Changed) })
	if more = max(0, len(found)-most); more > 0 {
		found = found[more:]
	}
	for _, f := range found {
		out = append(out, *f)
	}
	return out, more, t.changes
}

// Counts are numbers of flows.
type Counts struct {
	Open     int               // open connections
	Totals   [Audit + 1]uint64 // flows by verdict, since the start
	Forgot   uint64            // flows that were forgotten for newer ones
	Unlooked uint64            // of these, flows that had no facts yet: nobody ever saw them
}

// Counts returns numbers of flows.
func (t *Table) Counts() Counts {
	return Counts{t.lists[fresh].len + t.lists[long].len, t.totals, t.forgot, t.unlooked}
}
