package lab

import (
	"strings"
	"testing"
	"time"
)

// The output of a command is complete, even if it ended before its output was read. A daemon that
// it started may keep the descriptor open.
func TestCollectorReadsAllOutput(t *testing.T) {
	c, w, err := newCollector()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close() // w stays open during the test, like the descriptor of a daemon
	_ = c.r.SetReadDeadline(time.Now().Add(-time.Second))
	<-c.done // the collector ended before it read the output
	want := strings.Repeat("output ", 1000)
	if _, err := w.WriteString(want); err != nil {
		t.Fatal(err)
	}
	if got := c.finish(); got != want {
		t.Errorf("got %d bytes of output, want %d", len(got), len(want))
	}
}
