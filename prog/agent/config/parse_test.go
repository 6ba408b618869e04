package config

import (
	"strings"
	"testing"

	"weft/router/nft"
)

func TestOnlyValidPolicyExemptionsAreAccepted(t *testing.T) {
	for words, want := range map[string]nft.Exempt{
		"own-host,icmp-errors": {OwnHost: true, ICMPErrors: true}, "dns": {Resolver: true}, "none": {},
	} {
		if got, err := ParseExempt(strings.Split(words, ",")); err != nil || got != want {
			t.Errorf("%s: got %+v, error %v; want the exemptions of the table", words, got, err)
		}
	}
	for _, words := range []string{"all", "none,dns", ""} {
		if got, err := ParseExempt(strings.Split(words, ",")); err == nil {
			t.Errorf("%q: got %+v, want an error", words, got)
		}
	}
}

func TestOnlyValidRingFoundersAreAccepted(t *testing.T) {
	for text, want := range map[string]Init{"": {}, "consensus=3": {Expect: 3}, "observer": {Observer: true}} {
		if got, err := ParseInit(text); err != nil || got.Expect != want.Expect || got.Observer != want.Observer || got.Seeds != nil {
			t.Errorf("%q: got %+v, error %v; want the Init of the table", text, got, err)
		}
	}
	for _, text := range []string{"consensus", "consensus=0", "consensus=x", "seed=", "seed=zz", "none"} {
		if got, err := ParseInit(text); err == nil || !strings.Contains(err.Error(), "--ipalloc-init") {
			t.Errorf("%q: got %+v, error %v; want an error that names --ipalloc-init", text, got, err)
		}
	}
}

// WireGuard's port stays open over TCP where the status is served there to other machines.
func TestPublicStatusPort(t *testing.T) {
	for addr, want := range map[string]uint16{
		"": 0, "127.0.0.1:6784": 0, "[::1]:6784": 0, "localhost:6784": 0, ":6784": 6784, "0.0.0.0:9000": 9000, "192.0.2.1:6784": 6784, "h1:6784": 6784, "nonsense": 0,
	} {
		if got := (Options{StatusAddr: addr}).PublicStatusPort(); got != want {
			t.Errorf("%q: %d, want %d", addr, got, want)
		}
	}
}
