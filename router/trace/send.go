package trace

import (
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/router/link"
	"weft/router/packet"
)

// linkPrefix begins the names of the links by which packets are injected. Rules about endpoints must not match it.
const linkPrefix = "wft-trace"

// Ends are the MAC addresses of an endpoint's link.
type Ends struct{ Host, Container net.HardwareAddr }

// Injector puts packets into the host's end of an endpoint's link, as if they came from the container.
type Injector struct {
	name   string
	socket int
	index  int
}

// OpenInjector makes a temporary pair of links. What is sent into one end arrives at the other one, whose only filter
// redirects it to the endpoint's link. There it takes the way of packets from the container. id is unique among
// injectors that are open at once.
func OpenInjector(hostLink string, ends Ends, id uint16) (_ *Injector, err error) {
	h, err := link.Handle()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	target, err := h.LinkByName(hostLink)
	if err != nil {
		return nil, fmt.Errorf("trace: finding the endpoint's link %s: %w", hostLink, link.Explain(err))
	}
	i := &Injector{name: fmt.Sprintf("%s%x", linkPrefix, id), socket: -1}
	defer func() {
		if err != nil {
			err = errors.Join(err, i.Close())
		}
	}()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr = i.name, ends.Container
	// The peer has the MAC address to which the container sends, or the kernel would ignore the frame.
	err = h.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: i.name + "p", PeerHardwareAddr: ends.Host})
	if err != nil {
		return nil, fmt.Errorf("trace: making link %s: %w", i.name, link.Explain(err))
	}
	for _, name := range []string{i.name, i.name + "p"} {
		l, err := h.LinkByName(name)
		if err != nil {
			return nil, fmt.Errorf("trace: finding link %s: %w", name, err)
		}
		if name == i.name {
			i.index = l.Attrs().Index
		} else if err := redirect(h, l.Attrs().Index, target.Attrs().Index); err != nil {
			return nil, err
		}
		if link.IPv6Enabled() { // this link must send no packets of its own
			if err := link.NoLinkLocal(h, l); err != nil {
				return nil, err
			}
		}
		if err := h.LinkSetUp(l); err != nil {
			return nil, fmt.Errorf("trace: setting link %s up: %w", name, link.Explain(err))
		}
	}
	i.socket, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("trace: opening a packet socket: %w: the agent needs the capability NET_RAW", err)
	}
	// A new link has no queue until a worker of the kernel gets to it, and would drop what is sent by the queue.
	if err := unix.SetsockoptInt(i.socket, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1); err != nil {
		return nil, fmt.Errorf("trace: setting up the packet socket: %w", err)
	}
	return i, nil
}

// redirect makes a link pass all that arrives to another link, as if it had arrived there.
func redirect(h *netlink.Handle, from, to int) error {
	failed := func(err error) error {
		return fmt.Errorf("trace: redirecting packets between links: %w: the kernel needs sch_ingress, cls_u32 and act_mirred: load them (modprobe sch_ingress cls_u32 act_mirred), or use a kernel that has them", err)
	}
	err := h.QdiscAdd(&netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: from, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_INGRESS,
	}})
	if err != nil {
		return failed(err)
	}
	err = h.FilterAdd(&netlink.U32{ // without a selector it matches every packet
		FilterAttrs: netlink.FilterAttrs{LinkIndex: from, Parent: netlink.MakeHandle(0xffff, 0), Priority: 1, Protocol: unix.ETH_P_ALL},
		Actions: []netlink.Action{&netlink.MirredAction{
			ActionAttrs: netlink.ActionAttrs{Action: netlink.TC_ACT_STOLEN}, MirredAction: netlink.TCA_INGRESS_REDIR, Ifindex: to,
		}},
	})
	if err != nil {
		return failed(err)
	}
	return nil
}

// Send sends a packet.
func (i *Injector) Send(p Packet, ends Ends) error {
	protocol := uint16(unix.ETH_P_IPV6)
	if p.Src.Is4() {
		protocol = unix.ETH_P_IP
	}
	to := &unix.SockaddrLinklayer{Ifindex: i.index, Protocol: protocol<<8 | protocol>>8, Halen: 6}
	copy(to.Addr[:], ends.Host)
	if err := unix.Sendto(i.socket, packet.Frame(ends.Host, ends.Container, p.Bytes()), 0, to); err != nil {
		return fmt.Errorf("trace: sending the packet: %w", err)
	}
	return nil
}

// Close removes the links.
func (i *Injector) Close() error {
	if i.socket >= 0 {
		_ = unix.Close(i.socket)
	}
	return link.RemoveLink(i.name)
}

// cleanLinks removes the links of injectors.
func cleanLinks() error {
	h, err := link.Handle()
	if err != nil {
		return err
	}
	defer h.Close()
	links, err := link.Dump(h.LinkList)
	if err != nil {
		return fmt.Errorf("trace: listing links: %w", err)
	}
	for _, l := range links {
		if name := l.Attrs().Name; strings.HasPrefix(name, linkPrefix) && !strings.HasSuffix(name, "p") {
			if err := link.RemoveLink(name); err != nil {
				return err
			}
		}
	}
	return nil
}

// SendLocal sends a packet of this host itself.
func SendLocal(p Packet) error {
	domain, to := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Addr: p.Dst.As16()})
	if p.Src.Is4() {
		domain, to = unix.AF_INET, &unix.SockaddrInet4{Addr: p.Dst.As4()}
	}
	socket, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return fmt.Errorf("trace: opening a raw socket: %w: the agent needs the capability NET_RAW", err)
	}
	defer unix.Close(socket)
	if err := unix.Sendto(socket, p.Bytes(), 0, to); err != nil && !errors.Is(err, unix.EPERM) { // EPERM: a rule drops the packet, and the trace shows it
		return fmt.Errorf("trace: sending the packet: %w", err)
	}
	return nil
}
