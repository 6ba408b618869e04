package underlay

import (
	"net/netip"
	"testing"
)

// This host announces to other hosts the MTU that the operator gave.
func TestTheMTUThatTheOperatorGaveIsAnnounced(t *testing.T) {
	u := New(Config{MTU: 1300})
	mtus, err := u.linkMTUs([]netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")})
	if err != nil || len(mtus) != 2 || mtus[0] != 1380 || mtus[1] != 1380 {
		t.Errorf("MTUs %v, error %v; want 1380 for both addresses", mtus, err)
	}
}
