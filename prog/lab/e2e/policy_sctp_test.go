package e2e

import (
	"encoding/binary"
	"hash/crc32"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// Many kernels have no SCTP sockets, and policies and conntrack only look at packets and their chunks.
// So this test sends an association's first chunk, INIT, and its answer over raw sockets (RFC 9260,
// 3.3.2 and 3.3.3).
const (
	chunkInit    = 1
	chunkInitAck = 2
	sctpHeader   = 12
	sctpLength   = sctpHeader + 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// sctpPacket returns a packet with one INIT or INIT ACK chunk.
func sctpPacket(chunk byte, from, to uint16, vtag, tag uint32) []byte {
	b := make([]byte, sctpLength)
	binary.BigEndian.PutUint16(b, from)
	binary.BigEndian.PutUint16(b[2:], to)
	binary.BigEndian.PutUint32(b[4:], vtag)
	b[sctpHeader] = chunk
	binary.BigEndian.PutUint16(b[sctpHeader+2:], sctpLength-sctpHeader)
	binary.BigEndian.PutUint32(b[sctpHeader+4:], tag)
	binary.BigEndian.PutUint32(b[sctpHeader+8:], 1<<16) // receive window
	binary.BigEndian.PutUint16(b[sctpHeader+12:], 1)    // outbound and inbound streams
	binary.BigEndian.PutUint16(b[sctpHeader+14:], 1)
	binary.BigEndian.PutUint32(b[sctpHeader+16:], tag)
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, castagnoli))
	return b
}

func listenSCTP(is4 bool) (*net.IPConn, error) {
	if is4 {
		return net.ListenIP("ip4:132", nil)
	}
	return net.ListenIP("ip6:132", nil)
}

// serveSCTP answers every INIT to one of the ports.
func (p *Pod) serveSCTP(c *net.IPConn, ports map[uint16]bool) {
	for b := make([]byte, 1<<12); ; {
		n, from, err := c.ReadFromIP(b)
		if err != nil {
			return
		}
		port := binary.BigEndian.Uint16(b[2:])
		if n < sctpLength || b[sctpHeader] != chunkInit || !ports[port] {
			continue
		}
		p.hear("sctp", port, &net.UDPAddr{IP: from.IP}, 1)
		tag := binary.BigEndian.Uint32(b[sctpHeader+4:])
		_, _ = c.WriteToIP(sctpPacket(chunkInitAck, port, binary.BigEndian.Uint16(b), tag, tag+1), from)
	}
}

// reachSCTP sends INIT until it is answered.
func (t Try) reachSCTP() bool {
	c, err := listenSCTP(t.To.Addr().Is4())
	if err != nil {
		return false
	}
	defer c.Close()
	own, tag := uint16(20000+rand.IntN(40000)), rand.Uint32()|1
	init := sctpPacket(chunkInit, own, t.To.Port(), 0, tag)
	to := &net.IPAddr{IP: t.To.Addr().AsSlice()}
	b := make([]byte, 1<<12)
	for end := time.Now().Add(t.Patience); time.Now().Before(end); {
		_, _ = c.WriteToIP(init, to)
		for again := time.Now().Add(200 * time.Millisecond); ; {
			_ = c.SetReadDeadline(again)
			n, from, err := c.ReadFromIP(b)
			if err != nil {
				break
			}
			addr, _ := netip.AddrFromSlice(from.IP)
			if n >= sctpLength && b[sctpHeader] == chunkInitAck && addr.Unmap() == t.To.Addr() && binary.BigEndian.Uint16(b[2:]) == own && binary.BigEndian.Uint32(b[4:]) == tag {
				return true
			}
		}
	}
	return false
}

// startSCTP answers INIT on the given ports, in both families.
func (p *Pod) startSCTP(ports map[uint16]bool) error {
	for _, is4 := range []bool{true, false} {
		c, err := listenSCTP(is4)
		if err != nil {
			return err
		}
		if raw, err := c.SyscallConn(); err == nil { // every raw socket gets all packets, so it needs a large buffer
			_ = raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20) })
		}
		go p.serveSCTP(c, ports)
	}
	return nil
}
