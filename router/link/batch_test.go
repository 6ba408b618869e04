package link

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"weft/router/routertest"
)

// The kernel tries every request. The error names the first request that failed.
func TestErrorNamesTheFirstFailedRequest(t *testing.T) {
	routertest.New(t).Do(func() {
		s, err := OpenSocket()
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		lo, err := s.Index("lo")
		if err != nil || lo != 1 {
			t.Fatalf("lo has the index %d, error %v; want 1", lo, err)
		}
		var many []Request
		for n := range byte(200) { // the answers do not fit into one read
			many = append(many, Address(lo, netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, 2, n}), 32), 0))
		}
		if err := s.Do(append(many, Up(lo, 0))...); err != nil {
			t.Fatal(err)
		}
		outside := netip.MustParsePrefix("198.51.100.0/24")
		err = s.Do(
			Route(outside, Via{Index: lo, Gateway: netip.MustParseAddr("203.0.113.1")}),
			Address(lo+7, outside, 0),
			Route(outside, Via{Index: lo, Scope: unix.RT_SCOPE_LINK}),
		)
		if !errors.Is(err, unix.ENETUNREACH) || !strings.Contains(err.Error(), outside.String()) {
			t.Errorf("Do returned %v; want ENETUNREACH for %v", err, outside)
		}
		if err := s.Do(Route(outside, Via{Index: lo, Scope: unix.RT_SCOPE_LINK})); err != nil {
			t.Errorf("a request after failed ones returned %v; want no error", err)
		}
		if _, err := s.Index("eth9"); !errors.Is(err, unix.ENODEV) || !strings.Contains(err.Error(), "eth9") {
			t.Errorf("Index of the missing link eth9 returned %v; want ENODEV and the name", err)
		}
	})
}
