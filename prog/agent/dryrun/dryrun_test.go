package dryrun

import (
	"slices"
	"strings"
	"testing"

	"weft/mesh"
	"weft/prog/agent/agenttest"
	"weft/prog/agent/enforce"
	"weft/prog/agent/policytest"
	"weft/prog/api"
	"weft/router/policy"
)

func newDryRun(t *testing.T) (*DryRun, *policytest.Host) {
	h := policytest.New(t, true)
	return New(Config{Self: agenttest.Self, Mesh: policytest.Alone{}, View: &h.View, Know: h.Enforcer.Snapshot, MarkOwnHost: func(*policy.Packet) {}}), h
}

// A dry run lists the pairs of endpoints with other allowed ports, and changes nothing.
func TestADryRunListsPairsOfEndpointsWithOtherPorts(t *testing.T) {
	d, h := newDryRun(t)
	before, after, err := d.tried([]mesh.Change{{Kind: enforce.KindPolicy, Name: "shop/db", Body: []byte(policytest.Shop)}})
	if err != nil {
		t.Fatal(err)
	}
	var out api.Effects
	pairChanges(before, after, &out)
	want := []api.PairChange{{From: "jobs/batch", To: "shop/db", Before: "all", After: "none"}, {From: "jobs/db", To: "shop/db", Before: "all", After: "none"}, {From: "shop/web", To: "shop/db", Before: "all", After: "5432/TCP"}}
	slices.SortFunc(out.Pairs, func(x, y api.PairChange) int { return strings.Compare(x.From, y.From) })
	if !slices.Equal(out.Pairs, want) || len(h.Documents.List(enforce.KindPolicy)) != 0 {
		t.Errorf("effects %+v; want the changed pairs only, and no stored document", out)
	}
}

// A deletion can be tried, too. A policy that stays the same changes no pair.
func TestADryRunOfADeletionListsItsEffects(t *testing.T) {
	d, h := newDryRun(t)
	h.Write(t, map[string]string{"shop/db": policytest.Shop})
	for want, c := range map[int]mesh.Change{
		0: {Kind: enforce.KindPolicy, Name: "shop/db", Body: []byte(policytest.Shop)},
		3: {Kind: enforce.KindPolicy, Name: "shop/db", Deleted: true},
	} {
		before, after, err := d.tried([]mesh.Change{c})
		if err != nil {
			t.Fatal(err)
		}
		var out api.Effects
		if pairChanges(before, after, &out); len(out.Pairs) != want {
			t.Errorf("%d pairs would change, want %d: %+v", len(out.Pairs), want, out.Pairs)
		}
	}
}

func TestADryRunOfAnInvalidPolicyFails(t *testing.T) {
	d, _ := newDryRun(t)
	if _, _, err := d.tried([]mesh.Change{{Kind: enforce.KindPolicy, Name: "shop/db", Body: []byte("kind: Pod")}}); err == nil {
		t.Error("a document of kind Pod was tried as a policy, want an error")
	}
	if _, err := d.Handlers()[requestTry](t.Context(), agenttest.Self, []byte("garbage")); err == nil {
		t.Error("a peer's malformed request was tried, want an error")
	}
}
