package probe

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// CaptureReady is the line on stderr with which weft probe capture announces that it sees every
// packet.
const CaptureReady = "capturing"

// CaptureSummary counts the packets on the captured interfaces.
type CaptureSummary struct {
	Packets int   `json:"packets"`
	Marked  int   `json:"marked"`  // packets that contain the marker
	Dropped int   `json:"dropped"` // packets that did not fit the kernel's buffer: then the summary is incomplete
	Flows   []Row `json:"flows"`   // sorted by number of packets, largest first
}

// Row counts the packets of one protocol. A large segment (GSO) counts as one packet.
type Row struct {
	Kind    string `json:"kind"`           // "arp", "nd", "mld", "udp", "tcp", "icmp", "icmpv6", …
	Port    uint16 `json:"port,omitempty"` // udp and tcp: the lower port, assumed to be the service's
	Packets int    `json:"packets"`
	Bytes   int    `json:"bytes"`
	Marked  int    `json:"marked"`
}

// CaptureConfig configures Capture.
type CaptureConfig struct {
	Interfaces []string
	Marker     string
	Incoming   bool // only received frames; on a bridge's ports this counts each frame once
}

// Capture counts packets until ctx ends. It calls ready once it sees every packet.
func Capture(ctx context.Context, cfg CaptureConfig, ready func()) (CaptureSummary, error) {
	var sockets []int
	defer func() {
		for _, fd := range sockets {
			_ = unix.Close(fd)
		}
	}()
	for _, name := range cfg.Interfaces {
		fd, err := openPacket(name)
		if err != nil {
			return CaptureSummary{}, fmt.Errorf("probe: capture on %s: %w", name, err)
		}
		sockets = append(sockets, fd)
	}
	ready()
	counts := make([]counter, len(sockets))
	group, _ := errgroup.WithContext(ctx)
	for i, fd := range sockets {
		counts[i] = counter{cfg: cfg, rows: make(map[key]*Row)}
		group.Go(func() error { return counts[i].run(ctx, fd) })
	}
	err := group.Wait()
	return merge(counts), err
}

func openPacket(name string) (int, error) {
	ifi, err := net.InterfaceByName(name)
	if err != nil {
		return -1, fmt.Errorf("there is no interface %s here (`ip link` lists them)", name)
	}
	// With protocol 0 the socket receives nothing until Bind names the interface, so no packets of
	// other interfaces get in.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("%w: it needs CAP_NET_RAW; try as root", err)
	}
	// Root may set any buffer size; other users are limited by net.core.rmem_max.
	const buffer = 64 << 20
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, buffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, buffer)
	}
	err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50_000})
	if err == nil {
		promiscuous := unix.PacketMreq{Ifindex: int32(ifi.Index), Type: unix.PACKET_MR_PROMISC}
		err = unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, &promiscuous)
	}
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: ifi.Index})
	}
	if err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

// counter counts the packets of one socket.
type counter struct {
	cfg     CaptureConfig
	rows    map[key]*Row
	dropped int
}

type key struct {
	kind string
	port uint16
}

func (c *counter) run(ctx context.Context, fd int) error {
	buf := make([]byte, 1<<20) // larger than any segment, so nothing is truncated
	var last time.Time
	for {
		n, from, err := unix.Recvfrom(fd, buf, 0)
		idle := errors.Is(err, unix.EAGAIN)
		if err != nil && !idle && !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.ENETDOWN) {
			return fmt.Errorf("probe: capture: %w", err)
		}
		if err == nil {
			c.add(buf[:n], from)
		}
		// After ctx has ended, packets in the queue are still counted, for a limited time.
		if ctx.Err() != nil {
			if last.IsZero() {
				last = time.Now().Add(time.Second)
			}
			if idle || time.Now().After(last) {
				break
			}
		}
	}
	stats, err := unix.GetsockoptTpacketStats(fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil {
		return fmt.Errorf("probe: capture: %w", err)
	}
	c.dropped = int(stats.Drops)
	return nil
}

func (c *counter) add(frame []byte, from unix.Sockaddr) {
	if ll, ok := from.(*unix.SockaddrLinklayer); ok && c.cfg.Incoming && ll.Pkttype == unix.PACKET_OUTGOING {
		return
	}
	k := classify(frame)
	row := c.rows[k]
	if row == nil {
		row = &Row{Kind: k.kind, Port: k.port}
		c.rows[k] = row
	}
	row.Packets++
	row.Bytes += len(frame)
	if c.cfg.Marker != "" && bytes.Contains(frame, []byte(c.cfg.Marker)) {
		row.Marked++
	}
}
