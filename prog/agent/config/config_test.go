package config

import (
	"strings"
	"testing"
)

func TestOnlyAStatusForOtherMachinesHasAPublicPort(t *testing.T) {
	for addr, want := range map[string]uint16{
		"127.0.0.1:6784": 0, "localhost:6784": 0, "[::1]:6784": 0, "[::ffff:127.0.0.1]:6784": 0, "": 0,
		"nonsense": 0, "0.0.0.0:9000": 9000, "h1:6784": 6784, ":9000": 9000, ":6784": 6784, "192.0.2.1:6784": 6784, "[2001:db8::1]:6784": 6784,
	} {
		if got := (Options{StatusAddr: addr}).PublicStatusPort(); got != want {
			t.Errorf("%q: %d, want %d", addr, got, want)
		}
	}
}

func TestDiscoverExcludesOtherSourcesOfHosts(t *testing.T) {
	valid := Options{Discover: true, GossipPort: 6783, Port: DefaultPort, StateDir: "/s", RunDir: "/r"}
	if err := valid.Validate(); err != nil {
		t.Errorf("--discover alone: %v, want no error", err)
	}
	kubernetes, closed := valid, valid
	kubernetes.Kubernetes.On, closed.NoDiscovery = true, true
	for other, o := range map[string]Options{"--kubernetes": kubernetes, "--no-discovery": closed} {
		if err := o.Validate(); err == nil || !strings.Contains(err.Error(), other) {
			t.Errorf("with %s: error %v, want one that names it", other, err)
		}
	}
}
