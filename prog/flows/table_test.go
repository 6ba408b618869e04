package flows

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"pgregory.net/rapid"

	"weft/router/policy"
)

var begin = time.Unix(1_800_000_000, 0)

func tuple(n int) Tuple {
	return Tuple{
		Src:      netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 32, byte(n >> 16), byte(n >> 8)}), uint16(n)),
		Dst:      netip.MustParseAddrPort("10.32.0.9:80"),
		Protocol: policy.TCP,
	}
}

func entry(n int, id uint32, bytes uint64) Entry {
	t := tuple(n)
	return Entry{Original: t, ReplySrc: t.Dst, ReplyDst: t.Src, ID: id, Sent: Count{bytes / 100, bytes}}
}

var allowed = &Facts{From: &End{Name: "a"}, To: &End{Name: "b"}, Verdict: Allowed}

func all(*Flow) bool { return true }

// look gives all flows the same facts, and returns those that changed after a change.
func look(t *Table, after uint64) ([]Flow, uint64) {
	t.Pending(func(*Flow) *Facts { return allowed })
	list, _, next := t.Select(after, 1<<30, all)
	return list, next
}

// A connection that goes on is one flow, whose bytes grow. A cursor returns it only after a change.
func TestAConnectionIsOneFlow(t *testing.T) {
	table := New(DefaultLimits, 100)
	table.Note(entry(1, 7, 0), true, begin)
	list, next := look(table, 0)
	if len(list) != 1 || !list[0].Start().Equal(begin) || list[0].Ended || list[0].ID <= 100 || next <= 100 {
		t.Fatalf("flows %+v, cursor %d; want one that is open, and numbers above 100", list, next)
	}
	first := list[0].ID
	if list, _ := look(table, next); len(list) != 0 {
		t.Errorf("without a change the cursor returns %+v, want nothing", list)
	}
	table.Note(entry(1, 7, 0), false, begin.Add(3*time.Second)) // read, and unchanged
	if list, _ := look(table, next); len(list) != 0 {
		t.Errorf("after a read without a change the cursor returns %+v, want nothing", list)
	}
	later := begin.Add(6 * time.Second)
	table.Note(entry(1, 7, 500), false, later)
	list, next = look(table, next)
	if len(list) != 1 || list[0].ID != first || list[0].Entry.Sent.Bytes != 500 || !list[0].Last().Equal(later) || !list[0].Start().Equal(begin) {
		t.Errorf("after a change the cursor returns %+v, want the same flow with 500 bytes", list)
	}
	table.End(entry(1, 7, 900), later)
	list, next = look(table, next)
	if len(list) != 1 || !list[0].Ended || list[0].Entry.Sent.Bytes != 900 {
		t.Errorf("after the end the cursor returns %+v, want the ended flow with 900 bytes", list)
	}
	table.Note(entry(1, 8, 0), true, later) // the same ports again
	if list, _ = look(table, next); len(list) != 1 || list[0].ID == first || list[0].Ended || list[0].Entry.Sent.Bytes != 0 {
		t.Errorf("a new connection with the same ports is %+v, want another flow", list)
	}
	if list, _ := look(table, 0); len(list) != 2 {
		t.Errorf("there are %d flows, want both", len(list))
	}
}

// A TCP connection that was closed has ended, though the kernel still remembers it. One that ended before
// the table was made is no flow.
func TestClosedConnectionsHaveEnded(t *testing.T) {
	table := New(DefaultLimits, 0)
	closed := entry(1, 1, 700)
	closed.Closed = true
	table.Note(closed, false, begin)
	if list, _ := look(table, 0); len(list) != 0 {
		t.Errorf("a connection from before is %+v, want no flow", list)
	}
	table.Note(entry(1, 1, 0), true, begin)
	table.Note(closed, false, begin)
	if list, _ := look(table, 0); len(list) != 1 || !list[0].Ended || list[0].Entry.Sent.Bytes != 700 {
		t.Errorf("the closed connection is %+v, want an ended flow with its bytes", list)
	}
	table.Note(entry(2, 1, 0), true, begin)
	table.Gone(tuple(2), begin)
	if due := table.Due(begin.Add(time.Hour), 10); len(due) != 0 {
		t.Errorf("%v are to be read, want no ended connection", due)
	}
}

// Dropped packets that differ only in their client port are one flow, apart from connections. It ends
// when no more are dropped.
func TestDroppedPacketsAreOneFlow(t *testing.T) {
	table := New(DefaultLimits, 0)
	d := Denial{Direction: policy.Egress, Src: netip.MustParseAddrPort("10.32.0.1:1000"), Dst: netip.MustParseAddrPort("10.32.0.9:80"), Protocol: policy.TCP}
	table.Deny(d, begin)
	d.Src = netip.MustParseAddrPort("10.32.0.1:1001")
	table.Deny(d, begin.Add(time.Second))
	d.Direction, d.Audit = policy.Ingress, true
	table.Deny(d, begin)
	list, next := look(table, 0)
	if len(list) != 2 || list[0].Entry.Sent.Packets != 2 || list[0].Entry.Original.Src.Port() != 1001 || !list[0].Denial {
		t.Fatalf("flows %+v; want two dropped packets at egress, and one in audit mode at ingress", list)
	}
	for i, want := range []policy.Direction{policy.Egress, policy.Ingress} {
		if direction, audit := list[i].Direction(); direction != want || audit != (i == 1) {
			t.Errorf("flow %d is at %v, audit %v; want %v, %v", i, direction, audit, want, i == 1)
		}
	}
	table.Due(begin.Add(quiet+time.Second), 1)
	if list, _ := look(table, next); len(list) != 2 || !list[0].Ended {
		t.Errorf("after a minute without packets the changes are %+v, want two ends", list)
	}
	table.Deny(d, begin.Add(time.Hour))
	if list, _ := look(table, 0); len(list) != 3 {
		t.Errorf("later packets are part of %d flows, want a third one", len(list))
	}
}

// Counters of an open connection are due every three seconds. In a crowd, idle ones are due more rarely,
// and those that carry data are not.
func TestCountersAreDue(t *testing.T) {
	table := New(DefaultLimits, 0)
	for i := range crowd + 1 {
		table.Note(entry(i, 1, 0), true, begin)
	}
	now := begin
	for round := range idleAfter {
		now = now.Add(readEvery)
		if due := table.Due(now, 1<<20); len(due) != crowd+1 {
			t.Fatalf("in round %d %d are due, want all", round, len(due))
		}
		for i := range crowd + 1 {
			bytes := uint64(0)
			if i == 5 { // one carries data
				bytes = uint64(round+1) * 1000
			}
			table.Note(entry(i, 1, bytes), false, now)
		}
	}
	if due := table.Due(now.Add(readEvery), 1<<20); len(due) != 1 || due[0] != tuple(5) {
		t.Errorf("%d are due, want only the one that carries data", len(due))
	}
	if due := table.Due(now.Add(readIdle), 100); len(due) != 100 || due[0] != tuple(5) {
		t.Errorf("%d are due with a limit of 100, want 100, and first the one that carries data", len(due))
	}
}

// A flood of short connections does not hide connections that carry data, nor dropped packets.
func TestAFloodHidesNeitherLongConnectionsNorDenials(t *testing.T) {
	table := New(Limits{Flows: 100, Denials: 10, Bytes: 1 << 20}, 0)
	table.Note(entry(1, 1, 0), true, begin)
	table.Note(entry(1, 1, 5000), false, begin)
	table.Deny(Denial{Src: tuple(1).Src, Dst: tuple(1).Dst, Protocol: policy.UDP}, begin)
	for i := range 1000 {
		table.Note(entry(10+i, 1, 0), true, begin)
		if i%2 == 0 {
			table.End(entry(10+i, 1, 100), begin)
		}
	}
	list, _ := look(table, 0)
	kept := 0
	for _, f := range list {
		if f.Denial || f.Entry.Sent.Bytes == 5000 {
			kept++
		}
	}
	if c := table.Counts(); kept != 2 || len(list) != 100 || c.Forgot != 902 || c.Unlooked != 902 {
		t.Errorf("of %d flows, %d are the connection with data and the denial; counts %+v; want 2 of 100, and 902 that nobody saw", len(list), kept, c)
	}
}

// invariants checks a table's own books.
func invariants(t *rapid.T, table *Table, limits Limits) {
	n, bytes := 0, 0
	facts, ends := map[*Facts]bool{}, map[*End]bool{}
	for k, l := range table.lists {
		length, last := 0, uint64(0)
		for f := l.first; f != nil; f = f.next {
			if f.kind != kind(k) || f.forgotten || f.Changed <= last || (f.kind == ended) != (f.Ended && !f.Denial) {
				t.Fatalf("the list %d has %+v after change %d", k, f, last)
			}
			if last = f.Changed; f.Facts != nil && !facts[f.Facts] {
				facts[f.Facts] = true
				bytes += f.Facts.size()
				for _, e := range []*End{f.Facts.From, f.Facts.To} {
					if !ends[e] {
						ends[e] = true
						bytes += e.size()
					}
				}
			}
			length++
		}
		if length != l.len {
			t.Fatalf("the list %d has %d flows, and says %d", k, length, l.len)
		}
		n += length
	}
	if n > limits.Flows || table.lists[denials].len > limits.Denials || bytes != table.bytes || bytes > limits.Bytes || len(table.flows) > n {
		t.Fatalf("%d flows, %d denials, %d bytes of facts and %d in the books, limits %+v", n, table.lists[denials].len, bytes, table.bytes, limits)
	}
}

// Whatever is seen in whatever order, a table keeps its limits and its books; a follower with a cursor
// sees each remaining flow in its last state, and each change once.
func TestTablesKeepTheirLimits(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limits := Limits{Flows: rapid.IntRange(2, 12).Draw(t, "flows"), Denials: rapid.IntRange(1, 4).Draw(t, "denials"), Bytes: rapid.IntRange(1000, 4000).Draw(t, "bytes")}
		limits.Denials = min(limits.Denials, limits.Flows-1)
		table := New(limits, 50)
		now := begin
		cursor := uint64(0)
		followed := map[uint64]Flow{}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(0, 40000).Draw(t, "ms")) * time.Millisecond)
			n := rapid.IntRange(0, 9).Draw(t, "tuple")
			e := entry(n, uint32(rapid.IntRange(1, 2).Draw(t, "id")), uint64(rapid.IntRange(0, 5).Draw(t, "bytes"))*100)
			e.Closed = rapid.Bool().Draw(t, "closed")
			switch rapid.IntRange(0, 6).Draw(t, "what") {
			case 0:
				e.Closed = false
				table.Note(e, true, now)
			case 1:
				table.Note(e, false, now)
			case 2:
				table.End(e, now)
			case 3:
				table.Gone(e.Original, now)
			case 4:
				table.Deny(Denial{Direction: policy.Direction(n % 2), Audit: n > 5, Src: e.Original.Src, Dst: e.Original.Dst, Protocol: policy.UDP}, now)
			case 5:
				for _, one := range table.Due(now, 3) {
					if f := table.flows[key{Tuple: one}]; f == nil || f.Ended {
						t.Fatalf("%+v is due, want open connections only", one)
					}
				}
			case 6:
				left := rapid.IntRange(0, 4).Draw(t, "named")
				table.Pending(func(f *Flow) *Facts {
					if left--; left < 0 {
						return nil
					}
					return &Facts{From: &End{Name: fmt.Sprint(f.ID)}, To: allowed.To, Verdict: Allowed}
				})
				list, _, next := table.Select(cursor, 1000, all)
				for _, f := range list {
					if f.Changed <= cursor || f.Changed > next {
						t.Fatalf("the change %d is returned between %d and %d", f.Changed, cursor, next)
					}
					followed[f.ID] = f
				}
				cursor = next
			}
			invariants(t, table, limits)
		}
		table.Pending(func(*Flow) *Facts { return allowed })
		list, _, _ := table.Select(cursor, 1000, all)
		for _, f := range list {
			followed[f.ID] = f
		}
		list, _, _ = table.Select(0, 1000, all)
		for _, f := range list {
			if seen := followed[f.ID]; seen.Changed != f.Changed || seen.Entry != f.Entry || seen.Ended != f.Ended {
				t.Fatalf("a follower knows %+v, want %+v", seen, f)
			}
		}
	})
}

// A full table of different flows, each with names and labels of its own, needs less than 8 MiB.
func TestAFullTableIsSmall(t *testing.T) {
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	table := New(DefaultLimits, 0)
	for i := range 2 * DefaultLimits.Flows {
		e := entry(i, 1, 0)
		e.Original.Dst = netip.AddrPortFrom(netip.AddrFrom16([16]byte{0xfd, 1, 15: byte(i)}), uint16(i))
		table.Note(e, true, begin)
		table.Deny(Denial{Src: e.Original.Src, Dst: e.Original.Dst, Protocol: policy.TCP}, begin)
		table.Pending(func(f *Flow) *Facts {
			labels := map[string]string{}
			for n := range 8 {
				labels[fmt.Sprintf("app.kubernetes.io/label-%d", n)] = fmt.Sprintf("value-of-%d-%d", i, n)
			}
			return &Facts{From: &End{Name: fmt.Sprintf("web-%d", i), Namespace: "shop", Labels: labels}, To: allowed.To, Verdict: Denied, Why: fmt.Sprintf("policy %d does not allow it", i)}
		})
	}
	used := heap() - before
	t.Logf("%d flows, %d bytes of facts in the books: %.1f MiB", table.len(), table.bytes, float64(used)/(1<<20))
	if used > 8<<20 {
		t.Errorf("a full table uses %d bytes, want at most 8 MiB", used)
	}
	// Without names of their own, the table is full of flows.
	shared := New(DefaultLimits, 0)
	for i := range 2 * DefaultLimits.Flows {
		shared.Note(entry(i, 1, 0), true, begin)
		shared.Pending(func(*Flow) *Facts { return allowed })
	}
	both := heap() - before
	t.Logf("%d flows with the same facts: %.1f MiB", shared.len(), float64(both-used)/(1<<20))
	if shared.len() != DefaultLimits.Flows || both-used > 8<<20 {
		t.Errorf("a full table of %d flows uses %d bytes, want %d flows in at most 8 MiB", shared.len(), both-used, DefaultLimits.Flows)
	}
	runtime.KeepAlive(table)
	runtime.KeepAlive(shared)
}

func BenchmarkShortConnections(b *testing.B) {
	table := New(DefaultLimits, 0)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		table.Note(entry(i, uint32(i), 0), true, begin)
		table.Pending(func(*Flow) *Facts { return allowed })
		table.End(entry(i, uint32(i), 100), begin)
	}
}
