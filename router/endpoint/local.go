package endpoint

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/router/link"
)

// localEnd returns the name of the other end of a link that MakeLocal makes. Rules about endpoints must not match it.
func localEnd(hostLink string) string {
	return "wft-" + strings.TrimPrefix(hostLink, link.EndpointPrefix)
}

// MakeLocal makes the pair of an endpoint that has no container: this process itself reads and writes the frames of the
// container's end, which stays in this namespace. So it needs no namespace, and no right to make or enter one. The
// kernel ignores what arrives at that end, since the link itself has another MAC address than the endpoint.
func MakeLocal(hostLink string) (err error) {
	h, err := link.Handle()
	if err != nil {
		return err
	}
	defer h.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr = hostLink, PairOf(hostLink).HostMAC
	end := localEnd(hostLink)
	if err := h.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: end, PeerHardwareAddr: mac(hostLink, "local")}); err != nil {
		return fmt.Errorf("making the links %s and %s: %w", hostLink, end, link.Explain(err))
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, Delete(hostLink))
		}
	}()
	if link.IPv6Enabled() { // the kernel must send no packets of its own
		l, err := h.LinkByName(end)
		if err != nil {
			return fmt.Errorf("finding link %s: %w", end, err)
		}
		if err := link.NoLinkLocal(h, l); err != nil {
			return err
		}
	}
	return ignoreAdvertisements(hostLink)
}

// OpenLocal sets the container's end up, and opens it: what is read and written are Ethernet frames.
func OpenLocal(hostLink string, mtu int) (*os.File, error) {
	socket, err := link.OpenSocket()
	if err != nil {
		return nil, err
	}
	defer socket.Close()
	end := localEnd(hostLink)
	index, err := socket.Index(end)
	if err != nil {
		return nil, err
	}
	if err := socket.Do(link.Up(index, mtu)); err != nil {
		return nil, fmt.Errorf("setting link %s up: %w", end, err)
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("opening a packet socket: %w: the agent needs the capability NET_RAW", err)
	}
	const all = uint16(unix.ETH_P_ALL)
	// A new link has no queue until a worker of the kernel gets to it, and would drop what is sent by the queue.
	err = errors.Join(unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1),
		unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: index, Protocol: all<<8 | all>>8}))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening link %s: %w", end, err), unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), end), nil
}
