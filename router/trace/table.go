package trace

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"weft/router/policy"
)

// TablePrefix begins the names of the tables of sessions.
const TablePrefix = "weft-trace-"

// flagOwner makes the kernel remove a table with the socket that made it (linux/netfilter/nf_tables.h).
const flagOwner = 0x2

// table marks packets in the kernel.
type table struct {
	*nftables.Table
	conn *nftables.Conn
}

func (t *table) name() string { return t.Name }

// makeTable makes the table of a session. Its chains are the first and the last ones of every hook: the first ones of
// the hooks at which packets begin mark packets, the others only show that a packet got there. They never drop a packet.
func makeTable(p Packet) (*table, error) {
	var socket *netlink.Conn
	conn, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(c *netlink.Conn) error {
		socket = c
		return nil
	}))
	if err != nil {
		return nil, fmt.Errorf("trace: opening netlink: %w", err)
	}
	t := &table{&nftables.Table{Name: fmt.Sprintf("%s%d-%d", TablePrefix, p.Protocol, p.ID), Family: nftables.TableFamilyINet}, conn}
	err = newTable(socket, t.Name, flagOwner)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) {
		err = newTable(socket, t.Name, 0)
	}
	if err != nil {
		_ = conn.CloseLasting()
		return nil, fmt.Errorf("trace: making a table: %w", err)
	}
	t.fill(p)
	if err := conn.Flush(); err != nil {
		return nil, errors.Join(fmt.Errorf("trace: marking the packet: %w (%w)", ErrUnsupported, err), t.remove())
	}
	return t, nil
}

// newTable sends NEWTABLE in a batch of its own, since the library would omit the flags.
func newTable(socket *netlink.Conn, name string, flags uint32) error {
	attrs := netlink.NewAttributeEncoder()
	attrs.String(unix.NFTA_TABLE_NAME, name)
	attrs.ByteOrder = binary.BigEndian
	attrs.Uint32(unix.NFTA_TABLE_FLAGS, flags)
	data, err := attrs.Encode()
	if err != nil {
		return err
	}
	batch := func(kind netlink.HeaderType) netlink.Message {
		return netlink.Message{Header: netlink.Header{Type: kind, Flags: netlink.Request}, Data: []byte{0, unix.NFNETLINK_V0, 0, unix.NFNL_SUBSYS_NFTABLES}}
	}
	_, err = socket.SendMessages([]netlink.Message{
		batch(unix.NFNL_MSG_BATCH_BEGIN),
		{
			Header: netlink.Header{
				Type:  netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWTABLE),
				Flags: netlink.Request | netlink.Acknowledge | netlink.Create | netlink.Excl,
			},
			Data: append([]byte{unix.NFPROTO_INET, unix.NFNETLINK_V0, 0, 0}, data...),
		},
		batch(unix.NFNL_MSG_BATCH_END),
	})
	if err != nil {
		return err
	}
	_, err = socket.Receive()
	return err
}

// fill adds the chains and rules.
func (t *table) fill(p Packet) {
	for _, h := range []struct {
		name  string
		hook  *nftables.ChainHook
		marks bool
	}{
		{"prerouting", nftables.ChainHookPrerouting, true},
		// Here the answer from behind a NAT has the source's address again.
		{"input", nftables.ChainHookInput, true},
		{"forward", nftables.ChainHookForward, true},
		{"output", nftables.ChainHookOutput, true},
		{"postrouting", nftables.ChainHookPostrouting, false},
	} {
		for where, priority := range map[string]nftables.ChainPriority{"first": math.MinInt32, "last": math.MaxInt32} {
			chain := t.conn.AddChain(&nftables.Chain{
				Name: where + "-" + h.name, Table: t.Table, Type: nftables.ChainTypeFilter, Hooknum: h.hook, Priority: &priority,
			})
			if h.marks && where == "first" {
				for _, match := range p.matches() {
					t.conn.AddRule(&nftables.Rule{Table: t.Table, Chain: chain, Exprs: append(match, mark()...)})
				}
			}
		}
	}
}

func (t *table) remove() error {
	t.conn.DelTable(t.Table)
	err := t.conn.Flush()
	if errors.Is(err, unix.ENOENT) {
		err = nil
	}
	return errors.Join(err, t.conn.CloseLasting())
}

// cleanTables removes tables of sessions that have no owner.
func cleanTables(conn *nftables.Conn) error {
	tables, err := conn.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return fmt.Errorf("trace: listing tables: %w", err)
	}
	for _, t := range tables {
		if !strings.HasPrefix(t.Name, TablePrefix) {
			continue
		}
		conn.DelTable(t)
		if err := conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EPERM) { // EPERM: another process owns it
			return fmt.Errorf("trace: removing table %s: %w", t.Name, err)
		}
	}
	return nil
}

// mark makes the kernel report what happens to the packet.
func mark() []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: unix.NFT_REG_1, Data: []byte{1}},
		&expr.Meta{Key: expr.MetaKeyNFTRACE, SourceRegister: true, Register: unix.NFT_REG_1},
	}
}

// matches returns what matches the packet, its answer, and ICMP errors about it.
func (p Packet) matches() [][]expr.Any {
	is4 := p.Src.Is4()
	src, dst, inner := uint32(8), uint32(24), uint32(8+40) // offsets of addresses, and of the header inside an ICMP error
	innerSrc, innerProto, icmp := uint32(8+8), uint32(8+6), policy.ICMPv6
	if is4 {
		src, dst, inner, innerSrc, innerProto, icmp = 12, 16, 8+20, 8+12, 8+9, policy.ICMP
	}
	ours, id := p.Src.AsSlice(), binary.BigEndian.AppendUint16(nil, p.ID)
	family := byte(unix.NFPROTO_IPV6)
	if is4 {
		family = unix.NFPROTO_IPV4
	}
	begin := func(protocol policy.Protocol) []expr.Any {
		return append(meta(expr.MetaKeyNFPROTO, family), meta(expr.MetaKeyL4PROTO, byte(protocol))...)
	}
	network := func(offset uint32, value []byte) []expr.Any {
		return payload(expr.PayloadBaseNetworkHeader, offset, value)
	}
	transport := func(offset uint32, value []byte) []expr.Any {
		return payload(expr.PayloadBaseTransportHeader, offset, value)
	}
	join := func(parts ...[]expr.Any) (out []expr.Any) {
		for _, one := range parts {
			out = append(out, one...)
		}
		return out
	}
	failed := join(begin(icmp), network(dst, ours), transport(innerProto, []byte{byte(p.Protocol)}), transport(innerSrc, ours))
	if p.pings() {
		request, reply := echoTypes(is4)
		return [][]expr.Any{
			join(begin(p.Protocol), network(src, ours), transport(0, []byte{request}), transport(4, id)),
			join(begin(p.Protocol), network(dst, ours), transport(0, []byte{reply}), transport(4, id)),
			join(failed, transport(inner+4, id)),
		}
	}
	there := join(begin(p.Protocol), network(src, ours), transport(0, id))
	if p.Protocol == policy.TCP { // not the RST by which the source refuses the answer
		there = join(there, flags(flagSYN|flagACK|flagRST, flagSYN))
	}
	return [][]expr.Any{there, join(begin(p.Protocol), network(dst, ours), transport(2, id)), join(failed, transport(inner, id))}
}

func meta(key expr.MetaKey, value byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: unix.NFT_REG_1}, &expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: []byte{value}}}
}

func payload(base expr.PayloadBase, offset uint32, value []byte) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: unix.NFT_REG_1, Base: base, Offset: offset, Len: uint32(len(value))},
		&expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: value},
	}
}

// flags matches TCP's flags under a mask.
func flags(mask, value byte) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: unix.NFT_REG_1, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1},
		&expr.Bitwise{SourceRegister: unix.NFT_REG_1, DestRegister: unix.NFT_REG_1, Len: 1, Mask: []byte{mask}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: []byte{value}},
	}
}
