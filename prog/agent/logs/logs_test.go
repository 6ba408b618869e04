package logs

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"weft/prog/api"
)

func logged(t *testing.T, r *Recent, req api.LogsRequest) api.LogsReply {
	t.Helper()
	out, err := r.Logs(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestLinesComeOnceInOrder(t *testing.T) {
	var r Recent
	fmt.Fprint(&r, "one\n")
	fmt.Fprint(&r, "two\nthree\n")
	all := logged(t, &r, api.LogsRequest{})
	if !slices.Equal(all.Lines, []string{"one", "two", "three"}) {
		t.Errorf("%+v, want three lines", all)
	}
	if last := logged(t, &r, api.LogsRequest{Most: 1}); !slices.Equal(last.Lines, []string{"three"}) {
		t.Errorf("%+v, want the newest line", last)
	}
	fmt.Fprint(&r, "four\n")
	if more := logged(t, &r, api.LogsRequest{After: all.Next}); !slices.Equal(more.Lines, []string{"four"}) || more.Next != all.Next+1 {
		t.Errorf("%+v, want the line that came since", more)
	}
	for _, after := range []uint64{100, all.Next + 100} {
		if again := logged(t, &r, api.LogsRequest{After: after}); len(again.Lines) != 4 {
			t.Errorf("after the position %d of another run: %+v, want all lines", after, again)
		}
	}
}

// However much an agent logs, the remembered lines are bounded.
func TestOldLinesAreForgotten(t *testing.T) {
	var r Recent
	for i := range 10_000 {
		fmt.Fprintf(&r, "%d %s\n", i, strings.Repeat("x", 200))
	}
	fmt.Fprintf(&r, "%s\n", strings.Repeat("y", 1<<20))
	all := logged(t, &r, api.LogsRequest{})
	size := 0
	for _, line := range all.Lines {
		size += len(line)
	}
	if size > mostBytes || size < mostBytes/2 || len(all.Lines[len(all.Lines)-1]) != mostLine {
		t.Errorf("%d lines of %d bytes are remembered; want up to %d bytes", len(all.Lines), size, mostBytes)
	}
}
