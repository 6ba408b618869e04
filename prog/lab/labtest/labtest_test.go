package labtest

import (
	"testing"

	"weft/prog/lab"
	"weft/prog/lab/probe"
)

// The smallest lab: two hosts with one container each. Nothing is sent in the clear.
func TestTwoHostsSendNoPayloadInTheClear(t *testing.T) {
	l := New(t, lab.Options{Hosts: 2, Containers: 1})
	const marker = "labtest-marker"
	capture, err := l.Capture(t.Context(), marker)
	if err != nil {
		t.Fatal(err)
	}
	addrs, err := l.Addrs(t.Context(), "h2/c1")
	if err != nil || len(addrs) != 2 {
		t.Fatalf("h2/c1 has the addresses %v, error %v, want one of each family", addrs, err)
	}
	if _, err := l.Background(t.Context(), "h2/c1", probe.ListenReady, "weft", "probe", "listen"); err != nil {
		t.Fatal(err)
	}
	for _, proto := range []string{"icmp", "udp", "tcp"} {
		args := []string{"weft", "probe", proto, "--count", "5", "--interval", "20ms", "--size", "1200", "--marker", marker}
		if out, err := l.Exec(t.Context(), "h1/c1", nil, append(args, addrs...)...); err != nil {
			t.Errorf("a probe over %s failed, want an answer from each address: %v\n%s", proto, err, out)
		}
	}
	sum, err := capture.Stop()
	if err != nil {
		t.Fatal(err)
	}
	if err := lab.CheckSilence(sum); err != nil {
		t.Error(err)
	}
}

// A rebooted host keeps its identity and reaches the other hosts again.
func TestRebootKeepsIdentity(t *testing.T) {
	l := New(t, lab.Options{Hosts: 2, Containers: 1})
	name := func() string {
		out, err := l.Exec(t.Context(), "h2", nil, "weft", "report", "-f", "{{.router.id}}")
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	before := name()
	if err := l.Reboot(t.Context(), "h2"); err != nil {
		t.Fatal(err)
	}
	if after := name(); after != before {
		t.Errorf("after the reboot, the identity of h2 is %[2]s, want %[1]s as before", before, after)
	}
	addrs, err := l.Addrs(t.Context(), "h1/c1")
	if err != nil {
		t.Fatal(err)
	}
	args := append([]string{"weft", "probe", "icmp", "--count", "10", "--timeout", "5s"}, addrs...)
	if out, err := l.Exec(t.Context(), "h2/c1", nil, args...); err != nil {
		t.Errorf("after the reboot, a probe failed, want answers: %v\n%s", err, out)
	}
}
