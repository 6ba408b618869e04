package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Kernel is Weft's nftables table in the kernel. While a Kernel is open, it owns the table, if the
// kernel supports owners. It is safe for concurrent use.
type Kernel struct {
	// Namespace is a descriptor of the network namespace with the table; 0 means the namespace of
	// the caller.
	Namespace int

	mu     sync.Mutex
	conn   *nftables.Conn
	socket *netlink.Conn
	owned  bool     // whether no other program can change the table
	loaded *Program // the program that this process loaded last
	at     uint32   // the kernel's ruleset generation when the table last had everything of loaded
}

// These are flags of a table (linux/netfilter/nf_tables.h).
const (
	flagOwner   = 0x2
	flagPersist = 0x4
)

// ownerless is set by the linker in a test. Then tables have no owners, as before Linux 6.9.
var ownerless string

// room is the socket buffer size to request, in bytes.
const room = 256 << 20

// maxElements is the number of elements per message. The attribute's length has 16 bits, and the
// library would silently truncate a longer list of elements.
const maxElements = 500

var table = &nftables.Table{Name: TableName, Family: nftables.TableFamilyINet}

// open connects, and creates or adopts the table.
func (k *Kernel) open() error {
	if k.conn != nil {
		return nil
	}
	grow := func(c *netlink.Conn) error {
		k.socket = c
		// A transaction is one message, and each of its parts is acknowledged separately. A
		// thousand endpoints with separate policies have tens of thousands of parts. The sizes are
		// limits: the kernel does not allocate them. Without root the kernel's limits apply.
		_ = c.SetReadBuffer(room)
		_ = c.SetWriteBuffer(room)
		return nil
	}
	conn, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(grow), nftables.WithNetNSFd(k.Namespace))
	if err != nil {
		return fmt.Errorf("nftables: opening netlink: %w", err)
	}
	err = unix.EOPNOTSUPP
	if ownerless == "" {
		err = k.makeTable(flagOwner | flagPersist)
	}
	k.owned = err == nil
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) {
		err = k.makeTable(0) // before Linux 6.9 tables have no owners
	}
	if err != nil {
		conn.CloseLasting()
		if errors.Is(err, unix.EPERM) {
			return fmt.Errorf("nftables: changing table %s: %w: this process lacks CAP_NET_ADMIN, or another running agent owns the table: stop that agent with `weft stop`", TableName, err)
		}
		return fmt.Errorf("nftables: changing table %s: %w", TableName, err)
	}
	k.conn = conn
	return nil
}

// makeTable sends NEWTABLE in a batch of its own, since the library would omit the flags.
func (k *Kernel) makeTable(flags uint32) error {
	attrs := netlink.NewAttributeEncoder()
	attrs.String(unix.NFTA_TABLE_NAME, TableName)
	attrs.ByteOrder = binary.BigEndian
	attrs.Uint32(unix.NFTA_TABLE_FLAGS, flags)
	data, err := attrs.Encode()
	if err != nil {
		return err
	}
	header := func(family byte, resource uint16) []byte {
		return []byte{family, unix.NFNETLINK_V0, byte(resource >> 8), byte(resource)}
	}
	messages := []netlink.Message{
		{Header: netlink.Header{Type: unix.NFNL_MSG_BATCH_BEGIN, Flags: netlink.Request}, Data: header(0, unix.NFNL_SUBSYS_NFTABLES)},
		{
			Header: netlink.Header{
				Type:  netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWTABLE),
				Flags: netlink.Request | netlink.Acknowledge | netlink.Create,
			},
			Data: append(header(unix.NFPROTO_INET, 0), data...),
		},
		{Header: netlink.Header{Type: unix.NFNL_MSG_BATCH_END, Flags: netlink.Request}, Data: header(0, unix.NFNL_SUBSYS_NFTABLES)},
	}
	if _, err := k.socket.SendMessages(messages); err != nil {
		return err
	}
	_, err = k.socket.Receive()
	return err
}

// Text returns the program that this process loaded last, in the syntax of nft.
func (k *Kernel) Text() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.loaded == nil {
		return ""
	}
	return k.loaded.String()
}

// Apply replaces the content of the table by the program without an interruption: at no time are
// fewer rules in force than before or after. Apply does not touch content that is already there.
func (k *Kernel) Apply(p Program) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.open(); err != nil {
		return err
	}
	if k.loaded != nil {
		whole, err := k.whole()
		switch {
		case err != nil:
			return err
		case !whole:
			k.loaded = nil
		}
	}
	err := k.load(p)
	if err != nil { // another program may have deleted the table, if there are no owners
		k.close()
		if err = k.open(); err == nil {
			err = k.load(p)
		}
	}
	if err != nil {
		k.loaded = nil
		return fmt.Errorf("nftables: loading the guard and the policies: %w", err)
	}
	return nil
}

// whole reports whether everything that was loaded is still there. This is certain if we own the
// table, or if the generation of the ruleset has not changed.
func (k *Kernel) whole() (bool, error) {
	if k.owned {
		return true, nil
	}
	now, err := k.generation()
	if err != nil || now == k.at {
		return err == nil, err
	}
	for _, c := range k.loaded.Chains {
		rules, err := k.counters(c.Name)
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return false, err
		}
		if len(rules) != len(c.Rules) {
			return false, nil
		}
	}
	for _, s := range k.loaded.Sets {
		elements, err := k.conn.GetSetElements(s.library(0))
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return false, fmt.Errorf("nftables: reading set %s: %w", s.Name, err)
		}
		if len(elements) < s.Elements.Len() {
			return false, nil
		}
	}
	k.at = now
	return true, nil
}

// generation returns the kernel's generation number of the ruleset.
func (k *Kernel) generation() (uint32, error) {
	replies, err := k.socket.Execute(netlink.Message{
		Header: netlink.Header{
			Type:  netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETGEN),
			Flags: netlink.Request,
		},
		Data: []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, 0},
	})
	if err != nil {
		return 0, fmt.Errorf("nftables: reading the generation of the ruleset: %w", err)
	}
	for _, m := range replies {
		attrs, err := netlink.NewAttributeDecoder(m.Data[min(4, len(m.Data)):])
		if err != nil {
			return 0, fmt.Errorf("nftables: decoding the generation of the ruleset: %w", err)
		}
		attrs.ByteOrder = binary.BigEndian
		for attrs.Next() {
			if attrs.Type() == unix.NFTA_GEN_ID {
				return attrs.Uint32(), nil
			}
		}
	}
	return 0, errors.New("nftables: the kernel returned no generation")
}

// load changes the table from the last loaded program to p, or from any content if this process has
// loaded no program.
func (k *Kernel) load(p Program) error {
	before := k.loaded
	if before == nil {
		if err := k.clear(); err != nil {
			return err
		}
		before = &Program{}
	}
	changes, err := k.change(*before, p)
	if err != nil || !changes && k.loaded != nil {
		return err
	}
	if err := k.conn.Flush(); err != nil {
		return err
	}
	if !k.owned {
		if k.at, err = k.generation(); err != nil {
			return err
		}
	}
	k.loaded = &p
	return nil
}

// clear deletes the content of the table: rules first, then the map elements that name chains.
func (k *Kernel) clear() error {
	chains, err := k.conn.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return err
	}
	sets, err := k.conn.GetSets(table)
	if err != nil {
		return err
	}
	k.conn.FlushTable(table)
	for _, s := range sets {
		if s.IsMap {
			k.conn.FlushSet(s)
		}
	}
	for _, c := range chains {
		if c.Table.Name == TableName {
			k.conn.DelChain(c)
		}
	}
	for _, s := range sets {
		k.conn.DelSet(s)
	}
	return nil
}

// Delete deletes the table, for a reset; a missing table is no error.
func (k *Kernel) Delete() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.open(); err != nil {
		return err
	}
	defer k.close()
	k.conn.DelTable(table)
	if err := k.conn.Flush(); err != nil {
		return fmt.Errorf("nftables: removing table %s: %w", TableName, err)
	}
	return nil
}

// Owned reports whether we own the table, so that the kernel refuses changes by other programs.
func (k *Kernel) Owned() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.conn != nil && k.owned
}

// Close releases the table, which stays in force.
func (k *Kernel) Close() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.close()
}

func (k *Kernel) close() {
	if k.conn != nil {
		k.conn.CloseLasting()
	}
	k.conn, k.socket, k.loaded = nil, nil, nil
}
