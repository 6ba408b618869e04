// Package probe sends and receives small datagrams between the very UDP ports of the WireGuard tunnel.
// So they meet the same firewalls and NAT as the tunnel, whichever kind of WireGuard holds the port.
// A raw socket sends them from the port. A rule of router/nft in the input hook, after the usual
// firewalls, copies them to a netlink log group, from which Receive reads.
//
// A Conn belongs to the network namespace of the thread that opened it. Send and Close are safe for
// concurrent use; one Receive runs at a time. The package moves opaque bytes: it authenticates
// nothing, keeps no state of peers, and starts no goroutine. Every payload that it delivers is
// untrusted.
package probe

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"github.com/mdlayher/netlink"
)

const (
	// MaxPayload is how many bytes of a received payload are delivered.
	MaxPayload = 256
	// Group is the netlink log group (nfnetlink_log) to which the rules copy probes.
	Group = 6784
	// Snapshot is how many bytes of a packet the rules copy: the longest IPv4 header, UDP's header and
	// the payload. A padded probe may be much longer.
	Snapshot = 60 + udpHeader + MaxPayload
)

const (
	udpHeader  = 8
	ipv4Header = 20 // without options
	ipv6Header = 40
	maxPacket  = 1<<16 - 1 // bytes of the largest IP packet that Send makes
)

// Datagram is a received probe.
type Datagram struct {
	From, To netip.AddrPort // To is one of this host's addresses
	Payload  []byte         // at most MaxPayload bytes, from path.Magic on; valid during the call
	Size     int            // the size of the whole IP packet as it arrived, by its header
}

// Config configures a Conn.
type Config struct {
	Port uint16 // WireGuard's port
}

// Conn sends and receives probes.
type Conn struct {
	port   uint16
	copies *netlink.Conn // what the rules copied

	mu     sync.Mutex
	v4, v6 *sender // nil if the kernel lacks the family
	closed bool
	packet [maxPacket]byte // all zero between two calls of Send
	sent   byte
}

// Open opens the sockets. It needs CAP_NET_RAW and CAP_NET_ADMIN in the network namespace. If the
// kernel lacks one of IPv4 and IPv6, the other works alone.
func Open(cfg Config) (*Conn, error) {
	c := &Conn{port: cfg.Port}
	var err4, err6 error
	c.v4, err4 = openSender(family4)
	c.v6, err6 = openSender(family6)
	err := errors.Join(err4, err6)
	if c.v4 == nil && c.v6 == nil && err == nil {
		err = errors.New("the kernel has neither IPv4 nor IPv6")
	}
	if err == nil {
		c.copies, err = openLog()
	}
	if err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("probe: %w", err)
	}
	return c, nil
}

// Close closes the sockets. A Receive that still runs returns an error.
func (c *Conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	c.closed = true
	var errs []error
	for _, s := range []*sender{c.v4, c.v6} {
		if s != nil {
			errs = append(errs, s.close())
		}
	}
	if c.copies != nil {
		errs = append(errs, c.copies.Close())
	}
	return errors.Join(errs...)
}
