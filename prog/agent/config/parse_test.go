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
