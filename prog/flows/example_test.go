package flows_test

import (
	"fmt"
	"net/netip"
	"time"

	"weft/prog/flows"
	"weft/router/policy"
)

// A connection begins, gets its names, carries data, and ends. A cursor returns what changed.
func Example() {
	now := time.Unix(0, 0).UTC()
	table := flows.New(flows.DefaultLimits, 0)
	src, dst := netip.MustParseAddrPort("10.32.0.3:40412"), netip.MustParseAddrPort("10.40.0.1:5432")
	c := flows.Entry{Original: flows.Tuple{Src: src, Dst: dst, Protocol: policy.TCP}, ReplySrc: dst, ReplyDst: src}
	table.Note(c, true, now)
	table.Pending(func(*flows.Flow) *flows.Facts {
		return &flows.Facts{From: &flows.End{Name: "web"}, To: &flows.End{Name: "db"}, Verdict: flows.Allowed}
	})
	cursor := uint64(0)
	show := func() {
		var list []flows.Flow
		list, _, cursor = table.Select(cursor, 10, func(*flows.Flow) bool { return true })
		for _, f := range list {
			fmt.Println(f.Facts.From.Name, f.Facts.To.Name, f.Entry.Sent.Bytes, f.Ended)
		}
	}
	show()
	c.Sent = flows.Count{Packets: 3, Bytes: 180}
	table.Note(c, false, now.Add(3*time.Second))
	show()
	table.End(c, now.Add(4*time.Second))
	show()
	// Output:
	// web db 0 false
	// web db 180 false
	// web db 180 true
}
