package e2e

import (
	"strings"
	"testing"
	"time"

	"weft/prog/lab"
	"weft/prog/lab/labtest"
)

// A host that is unreachable at its advertised address, as behind NAT, gets addresses within seconds.
// It never gets more than one grant of addresses, however long it keeps asking.
func TestHostBehindNATGetsOneGrant(t *testing.T) {
	labtest.Waits(t)
	l := labtest.New(t, lab.Options{Hosts: 3, Bare: true, Underlay: "4"})
	launchFounder(t, l)
	if err := l.Launch(t.Context(), "h2", token(t, l), "h1"); err != nil {
		t.Fatal(err)
	}
	run(t, l, "h3", "ip", "address", "add", "198.51.100.3/32", "dev", "lo")
	h1, err := l.UnderlayAddr("h1")
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if _, err := l.Exec(t.Context(), "h3", strings.NewReader(token(t, l)), "weft", "launch", "--advertise", "198.51.100.3", "--token", "-", h1.String()); err != nil {
		t.Fatal(err)
	}
	t.Logf("h3 was ready after %v", time.Since(start))
	for start := time.Now(); time.Since(start) < 20*time.Second; time.Sleep(time.Second) {
		if _, err := addresses(t, l, "h3", "nat"+time.Now().Format("150405"), 3); err != nil {
			t.Error(err)
		}
		for _, o := range report(t, l, "h1").IPAM.Owners {
			if o.Percent < 24 || o.Percent > 51 {
				t.Fatalf("%s owns %.1f %% of the addresses, want between 24 %% and 51 %%, as after one grant of addresses", o.Nickname, o.Percent)
			}
		}
	}
}
