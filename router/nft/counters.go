package nft

import (
	"encoding/binary"
	"fmt"

	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// counters returns the counter of each rule of a chain of our table, which is zero for a rule without one. The library's
// GetRules refuses chains with a limit on processors that need aligned numbers of 64 bits, such as RISC-V: there the
// kernel adds padding that the library does not know. The caller holds the lock.
func (k *Kernel) counters(chain string) (out []expr.Counter, err error) {
	attrs, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.NFTA_RULE_TABLE, Data: append([]byte(TableName), 0)},
		{Type: unix.NFTA_RULE_CHAIN, Data: append([]byte(chain), 0)},
	})
	if err != nil {
		return nil, fmt.Errorf("nftables: asking for chain %s: %w", chain, err)
	}
	replies, err := k.socket.Execute(netlink.Message{
		Header: netlink.Header{
			Type:  netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETRULE),
			Flags: netlink.Request | netlink.Dump,
		},
		Data: append([]byte{byte(table.Family), unix.NFNETLINK_V0, 0, 0}, attrs...),
	})
	if err != nil {
		return nil, fmt.Errorf("nftables: reading chain %s: %w", chain, err)
	}
	for _, m := range replies {
		c, err := ruleCounter(m.Data[min(4, len(m.Data)):])
		if err != nil {
			return nil, fmt.Errorf("nftables: decoding a rule of chain %s: %w", chain, err)
		}
		out = append(out, c)
	}
	return out, nil
}

// ruleCounter finds the counter among the attributes of a rule.
func ruleCounter(attrs []byte) (c expr.Counter, err error) {
	rule, err := netlink.NewAttributeDecoder(attrs)
	if err != nil {
		return c, err
	}
	for rule.Next() {
		if rule.Type() == unix.NFTA_RULE_EXPRESSIONS {
			rule.Nested(func(list *netlink.AttributeDecoder) error {
				for list.Next() {
					list.Nested(func(e *netlink.AttributeDecoder) error { return counterOf(e, &c) })
				}
				return nil
			})
		}
	}
	return c, rule.Err()
}

// counterOf sets a counter if an expression is one.
func counterOf(e *netlink.AttributeDecoder, c *expr.Counter) error {
	name := ""
	for e.Next() {
		switch e.Type() {
		case unix.NFTA_EXPR_NAME:
			name = e.String()
		case unix.NFTA_EXPR_DATA: // follows the name
			if name != "counter" {
				continue
			}
			e.Nested(func(values *netlink.AttributeDecoder) error {
				values.ByteOrder = binary.BigEndian
				for values.Next() {
					switch values.Type() {
					case unix.NFTA_COUNTER_BYTES:
						c.Bytes = values.Uint64()
					case unix.NFTA_COUNTER_PACKETS:
						c.Packets = values.Uint64()
					}
				}
				return nil
			})
		}
	}
	return nil
}
