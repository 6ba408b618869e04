package probe

import (
	"context"
	"net/netip"
	"strings"
	"testing"
)

func TestNoLatencyWithoutAnswers(t *testing.T) {
	addr := netip.MustParseAddr("192.0.2.1")
	var out strings.Builder
	if err := Print(&out, []Result{{Proto: "icmp", Addr: addr, Sent: 3, Lost: 3}, {Proto: "icmp", Addr: addr, Sent: 1, Received: 1, Min: 1, Avg: 1, P99: 1, Max: 1}}); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(out.String(), "\n")
	if strings.Contains(lines[1], "0.00") || !strings.HasSuffix(lines[1], " -") || !strings.HasSuffix(lines[2], "1.00/1.00/1.00/1.00") {
		t.Errorf("want no latency in the second line, and latencies in the third, got\n%s", out.String())
	}
	out.Reset()
	if err := writeJSON(&out, Result{Sent: 3, Lost: 3}); err != nil || strings.Contains(out.String(), "Ms") {
		t.Errorf("got JSON %s, error %v, want no latencies", out.String(), err)
	}
}

func TestProbeResolvesNames(t *testing.T) {
	mesh := func(_ context.Context, name string) []netip.Addr {
		if name == "web" {
			return []netip.Addr{netip.MustParseAddr("10.32.0.7"), netip.MustParseAddr("fd00::7")}
		}
		return nil
	}
	for _, tt := range []struct{ arg, want, says string }{
		{"web", "10.32.0.7", ""},
		{"192.0.2.1", "192.0.2.1", ""},
		{"::ffff:192.0.2.1", "192.0.2.1", ""},
		{"localhost", "", ""},
		{"300.1.2.3", "", "no IP address"},
		{"2001:db8::zz", "", "no IP address"},
		{"nosuch.invalid", "", "no address is known of nosuch.invalid"},
	} {
		addr, err := find(t.Context(), tt.arg, mesh)
		switch {
		case tt.says != "":
			if err == nil || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%s: got %v, error %v, want an error with %q", tt.arg, addr, err, tt.says)
			}
		case err != nil || tt.want != "" && addr.String() != tt.want || tt.want == "" && !addr.IsLoopback():
			t.Errorf("%s: got %v, error %v, want %q (empty: a loopback address)", tt.arg, addr, err, tt.want)
		}
	}
}
