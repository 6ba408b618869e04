package nft

import (
	"encoding/binary"
	"testing"

	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// On some processors the kernel pads numbers of 64 bits, in limits and in counters.
func TestCountersOfPaddedRules(t *testing.T) {
	const limitPad, counterPad = 6, 3 // NFTA_LIMIT_PAD and NFTA_COUNTER_PAD
	number := func(kind uint16, n uint64) netlink.Attribute {
		return netlink.Attribute{Type: kind, Data: binary.BigEndian.AppendUint64(nil, n)}
	}
	encode := func(attrs ...netlink.Attribute) []byte {
		t.Helper()
		b, err := netlink.MarshalAttributes(attrs)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	expression := func(name string, attrs ...netlink.Attribute) netlink.Attribute {
		return netlink.Attribute{Type: unix.NFTA_LIST_ELEM | unix.NLA_F_NESTED, Data: encode(
			netlink.Attribute{Type: unix.NFTA_EXPR_NAME, Data: append([]byte(name), 0)},
			netlink.Attribute{Type: unix.NFTA_EXPR_DATA | unix.NLA_F_NESTED, Data: encode(attrs...)},
		)}
	}
	limit := expression("limit", netlink.Attribute{Type: limitPad}, number(unix.NFTA_LIMIT_RATE, 7))
	counter := expression("counter", netlink.Attribute{Type: counterPad}, number(unix.NFTA_COUNTER_BYTES, 1<<40),
		netlink.Attribute{Type: counterPad}, number(unix.NFTA_COUNTER_PACKETS, 5))
	for _, test := range []struct {
		what  string
		exprs []netlink.Attribute
		want  expr.Counter
	}{
		{"a limit and a counter", []netlink.Attribute{limit, counter}, expr.Counter{Bytes: 1 << 40, Packets: 5}},
		{"a limit", []netlink.Attribute{limit}, expr.Counter{}},
		{"nothing", nil, expr.Counter{}},
	} {
		rule := encode(netlink.Attribute{Type: unix.NFTA_RULE_TABLE, Data: []byte("weft\x00")},
			netlink.Attribute{Type: unix.NFTA_RULE_EXPRESSIONS | unix.NLA_F_NESTED, Data: encode(test.exprs...)})
		if got, err := ruleCounter(rule); err != nil || got != test.want {
			t.Errorf("a rule with %s: got the counter %+v, error %v, want %+v", test.what, got, err, test.want)
		}
	}
}
