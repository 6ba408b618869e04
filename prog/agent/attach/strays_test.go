package attach

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"weft/ipam"
	"weft/prog/agent/agenttest"
)

// stray returns strays with one container, which has an address.
func stray(addr string) *strays {
	return &strays{found: map[string]netip.Addr{"wfstray": netip.MustParseAddr(addr)}}
}

func TestTheAddressOfAContainerMissingInTheStateIsReserved(t *testing.T) {
	f := newFixture(t, nil, nil)
	v := agenttest.View()
	v.Behind = true
	s := stray("10.32.0.9")
	if err := s.claim(t.Context(), f.cfg, v); !errors.Is(err, ipam.ErrBehind) || f.ipam.Given() != 0 {
		t.Errorf("claim with a view that is behind: error %v, want ErrBehind and no address", err)
	}
	v.Behind = false
	if err := s.claim(t.Context(), f.cfg, v); err != nil || f.ipam.Given() != 1 || len(s.found) != 0 || len(f.router.unplugged) != 0 {
		t.Errorf("claim: error %v; %d addresses are reserved, want 1; %v were unplugged, want none", err, f.ipam.Given(), f.router.unplugged)
	}
	if list := s.problems(); len(list) != 1 || !strings.Contains(list[0].What, "wfstray has 10.32.0.9") || list[0].Fix == "" {
		t.Errorf("problems %+v, want one with the link, the address and a fix", list)
	}
	if err := s.release(t.Context(), f.cfg, []string{"wfstray"}); err != nil || f.ipam.Given() != 1 {
		t.Errorf("release while the link exists: error %v; want none, and the address still reserved", err)
	}
	if err := s.release(t.Context(), f.cfg, nil); err != nil || f.ipam.Given() != 0 || len(s.problems()) != 0 {
		t.Errorf("release without the link: error %v; want none, the address free and no problem", err)
	}
}

// After a restart of the agent, the allocations in the state name the strays of the previous agent.
func TestContainersMissingInTheStateAreStillReportedAfterARestart(t *testing.T) {
	f, s, v := newFixture(t, nil, nil), &strays{}, agenttest.View()
	v.Allocations["stray wfstray"] = 9
	if err := s.claim(t.Context(), f.cfg, v); err != nil || len(s.problems()) != 1 {
		t.Errorf("problems %v, error %v; want one problem, and no error", s.problems(), err)
	}
}

func TestAContainerMissingInTheStateIsCutOffIfAnotherPeerOwnsItsAddress(t *testing.T) {
	f := newFixture(t, nil, nil)
	f.ipam.Refuse = &ipam.ClaimError{Why: "h2 owns it"}
	s := stray("10.32.0.9")
	if err := s.claim(t.Context(), f.cfg, agenttest.View()); err != nil || len(s.found) != 0 {
		t.Error(err)
	}
	if list := f.router.unplugged; len(list) != 1 || list[0].HostLink != "wfstray" || list[0].Addr4.String() != "10.32.0.9" || !list[0].Addr6.IsValid() {
		t.Errorf("unplugged %+v, want the stray with both its addresses", list)
	}
	outside := stray("192.0.2.9")
	if err := outside.claim(t.Context(), f.cfg, agenttest.View()); err != nil || len(outside.found) != 0 || len(f.router.unplugged) != 1 {
		t.Errorf("a link of another network: error %v, unplugged %v; want it ignored", err, f.router.unplugged)
	}
}
