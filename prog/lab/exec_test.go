package lab

import (
	"strings"
	"testing"
	"time"
)

// The output of a command is complete even if there was no time to read it, and although a daemon
// that it started keeps the descriptor open.
func TestCollectorDrains(t *testing.T) {
	c, w, err := newCollector()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close() // plays the daemon's descriptor
	_ = c.r.SetReadDeadline(time.Now().Add(-time.Second))
	<-c.done // nothing was read yet
	want := strings.Repeat("output ", 1000)
	if _, err := w.WriteString(want); err != nil {
		t.Fatal(err)
	}
	if got := c.finish(); got != want {
		t.Errorf("got %d bytes of output, want %d", len(got), len(want))
	}
}
