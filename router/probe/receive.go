package probe

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"weft/mesh/path"
)

// These are the kernel's names for the netlink log (linux/netfilter/nfnetlink_log.h).
const (
	logPacket    = unix.NFNL_SUBSYS_ULOG << 8   // NFULNL_MSG_PACKET, which is 0
	logConfigure = unix.NFNL_SUBSYS_ULOG<<8 | 1 // NFULNL_MSG_CONFIG

	configCommand   = 1 // NFULA_CFG_CMD
	configMode      = 2 // NFULA_CFG_MODE
	configBuffer    = 3 // NFULA_CFG_NLBUFSIZ
	configThreshold = 5 // NFULA_CFG_QTHRESH

	commandBind = 1 // NFULNL_CFG_CMD_BIND
	copyPacket  = 2 // NFULNL_COPY_PACKET

	attributePayload = 9 // NFULA_PAYLOAD
)

const (
	// message is the room that the kernel allocates for a message: the snapshot, and about 150 bytes of
	// other attributes. The default is much larger, and fills the socket's buffer with few messages.
	message = 1024
	// buffer is the limit of messages that wait, in bytes. It holds more than a second of probes at the
	// limit of the rules. Without root the kernel's limit applies.
	buffer = 2 << 20
)

// openLog binds the log group. The kernel sends each message at once.
func openLog() (*netlink.Conn, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, fmt.Errorf("opening netlink: %w", err)
	}
	_ = conn.SetReadBuffer(buffer)
	// A full buffer is no error: like any network, the log loses probes.
	if err := conn.SetOption(netlink.NoENOBUFS, true); err != nil {
		conn.Close()
		return nil, fmt.Errorf("setting up netlink: %w", err)
	}
	word := func(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }
	for _, attributes := range [][]netlink.Attribute{
		{{Type: configCommand, Data: []byte{commandBind}}},
		{
			{Type: configMode, Data: append(word(Snapshot), copyPacket, 0)},
			{Type: configBuffer, Data: word(message)},
			{Type: configThreshold, Data: word(1)},
		},
	} {
		data, err := netlink.MarshalAttributes(attributes)
		if err == nil {
			header := []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, Group >> 8, Group & 0xff}
			_, err = conn.Execute(netlink.Message{
				Header: netlink.Header{Type: logConfigure, Flags: netlink.Request | netlink.Acknowledge},
				Data:   append(header, data...),
			})
		}
		if err != nil {
			conn.Close()
			if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EBUSY) {
				return nil, fmt.Errorf("binding the netlink log group %d: %w: this process lacks CAP_NET_ADMIN, or another agent reads the group: stop that agent with `weft stop`", Group, err)
			}
			return nil, fmt.Errorf("binding the netlink log group %d: %w", Group, err)
		}
	}
	return conn, nil
}

// Receive calls f for each probe that arrives at WireGuard's port, until ctx ends. f must not block:
// probes that do not fit into the socket's buffer meanwhile are lost.
func (c *Conn) Receive(ctx context.Context, f func(Datagram)) error {
	raw, err := c.copies.SyscallConn()
	if err != nil {
		return fmt.Errorf("probe: receiving: %w", err)
	}
	if err := c.copies.SetReadDeadline(time.Time{}); err != nil {
		return fmt.Errorf("probe: receiving: %w", err)
	}
	defer context.AfterFunc(ctx, func() { _ = c.copies.SetReadDeadline(time.Now()) })()
	b := make([]byte, 1<<14)
	var n int
	var failed error
	read := func(fd uintptr) bool {
		n, failed = unix.Read(int(fd), b)
		return !errors.Is(failed, unix.EAGAIN)
	}
	for ctx.Err() == nil {
		err := raw.Read(read)
		if err == nil {
			err = failed
		}
		switch {
		case err == nil:
			parse(b[:n], f)
		case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, unix.EINTR):
		default:
			return fmt.Errorf("probe: receiving: %w", err)
		}
	}
	return nil
}

// These are sizes of netlink's headers (linux/netlink.h, linux/netfilter/nfnetlink.h).
const (
	attributeHeader = 4
	netfilterHeader = 4
)

// parse calls f for each probe in the messages of a netlink datagram.
func parse(b []byte, f func(Datagram)) {
	for len(b) >= unix.NLMSG_HDRLEN {
		size := binary.NativeEndian.Uint32(b)
		if size < unix.NLMSG_HDRLEN || uint64(size) > uint64(len(b)) {
			return
		}
		if binary.NativeEndian.Uint16(b[4:]) == logPacket && size >= unix.NLMSG_HDRLEN+netfilterHeader {
			if d, ok := parsePacket(payload(b[unix.NLMSG_HDRLEN+netfilterHeader : size])); ok {
				f(d)
			}
		}
		b = b[min(int(size)+padding(int(size)), len(b)):]
	}
}

func padding(size int) int { return -size & 3 }

// payload returns the packet among the attributes of a log message, or nil.
func payload(b []byte) []byte {
	for len(b) >= attributeHeader {
		size, kind := int(binary.NativeEndian.Uint16(b)), binary.NativeEndian.Uint16(b[2:])
		if size < attributeHeader || size > len(b) {
			return nil
		}
		if kind == attributePayload {
			return b[attributeHeader:size]
		}
		b = b[min(size+padding(size), len(b)):]
	}
	return nil
}

// parsePacket parses the beginning of an IP packet. Weft's own probes have no IPv6 extension headers.
func parsePacket(b []byte) (d Datagram, ok bool) {
	if len(b) < ipv4Header {
		return d, false
	}
	var from, to netip.Addr
	switch b[0] >> 4 {
	case 4:
		header := int(b[0]&15) * 4
		if b[9] != unix.IPPROTO_UDP || header < ipv4Header || header > len(b) {
			return d, false
		}
		d.Size = int(binary.BigEndian.Uint16(b[2:]))
		from, to = netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:]))
		b = b[header:]
	case 6:
		if len(b) < ipv6Header || b[6] != unix.IPPROTO_UDP {
			return d, false
		}
		d.Size = ipv6Header + int(binary.BigEndian.Uint16(b[4:]))
		from, to = netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:]))
		b = b[ipv6Header:]
	default:
		return d, false
	}
	if len(b) < udpHeader+len(path.Magic) || [len(path.Magic)]byte(b[udpHeader:]) != path.Magic {
		return d, false
	}
	d.From = netip.AddrPortFrom(from, binary.BigEndian.Uint16(b))
	d.To = netip.AddrPortFrom(to, binary.BigEndian.Uint16(b[2:]))
	length := int(binary.BigEndian.Uint16(b[4:])) // of UDP's header and payload
	d.Payload = b[udpHeader:min(len(b), max(length, udpHeader), udpHeader+MaxPayload)]
	return d, len(d.Payload) >= len(path.Magic)
}
