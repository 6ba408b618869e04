// Package endpoint owns the veth pair of a container. weft-cni makes it and sets up the container's
// end; the agent programs the host's end.
//
//	container                        host
//	eth0  10.32.0.7/32        ---    weft-1f0c9a73be  169.254.1.1/32, fe80::1/64
//	default via 169.254.1.1          10.32.0.7/32 dev weft-1f0c9a73be src NODE
//
// The pair is routed, not bridged: every packet traverses the forward hook. Reverse path filtering
// drops a packet with another endpoint's source address, since that address is routed to another
// link. The gateways are link-local and the same for all endpoints. Both ends have a permanent
// neighbour entry for each other, so no packet waits for resolution.
//
// Functions may be called concurrently for different endpoints. The package never assigns
// addresses. It is linked into weft-cni, so it imports little beyond netlink.
package endpoint

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"unicode"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"weft/router/link"
)

// Gateway4 and Gateway6 are the gateways of every endpoint: addresses of the host's end of its
// link.
var (
	Gateway4 = netip.MustParseAddr("169.254.1.1")
	Gateway6 = netip.MustParseAddr("fe80::1")
)

// These are the errors of setting up the container's end.
var (
	ErrExists      = errors.New("the endpoint's link on the host exists already")
	ErrNoNamespace = errors.New("the network namespace does not exist")
)

// HostLink returns the name of the host's end of an endpoint's link. It depends on its arguments
// only, so that any program that knows the endpoint can find and remove the link.
func HostLink(containerID, ifname string) string {
	sum := sha256.Sum256([]byte(containerID + "\x00" + ifname))
	return link.EndpointPrefix + hex.EncodeToString(sum[:5])
}

// Pair holds the MAC addresses of both ends of a veth pair.
type Pair struct {
	HostMAC, ContainerMAC net.HardwareAddr
}

// PairOf derives the MAC addresses of a pair from the link's name, so that they are known before
// the link is made. Since they are set explicitly, udev does not change them.
func PairOf(hostLink string) Pair { return Pair{mac(hostLink, "host"), mac(hostLink, "container")} }

// maxInterface is the maximum length of an interface name in bytes (IFNAMSIZ without the NUL).
const maxInterface = unix.IFNAMSIZ - 1

// CheckInterface returns an error if the kernel would refuse an interface name (dev_valid_name).
func CheckInterface(name string) error {
	switch {
	case name == "" || name == "." || name == "..":
		return fmt.Errorf("interface %q: this is not a valid interface name: want one such as eth1", name)
	case len(name) > maxInterface:
		return fmt.Errorf("interface %s: its name has %d bytes, at most %d are allowed", name, len(name), maxInterface)
	case strings.ContainsFunc(name, func(r rune) bool { return r == '/' || r == ':' || unicode.IsSpace(r) }):
		return fmt.Errorf("interface %q: its name contains a slash, a colon or a space: choose a name without them", name)
	}
	return nil
}

// Container is the network namespace of a container, opened for one interface. It must be used by
// one goroutine at a time.
type Container struct {
	path, ifname string
	ns, own      netns.NsHandle // the container's namespace, and the namespace to return to
	socket       link.Socket    // is open in the container's namespace
}

// Open opens a network namespace. This must not be the namespace of the calling process.
func Open(netnsPath, ifname string) (_ *Container, err error) {
	c := &Container{path: netnsPath, ifname: ifname, own: netns.None(), socket: -1}
	defer func() {
		if err != nil {
			c.Close()
		}
	}()
	if c.ns, err = netns.GetFromPath(netnsPath); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrNoNamespace, netnsPath, err)
	}
	kind, err := unix.IoctlRetInt(int(c.ns), unix.NS_GET_NSTYPE)
	if err != nil || kind != unix.CLONE_NEWNET {
		return nil, fmt.Errorf("%w: %s is not a network namespace", ErrNoNamespace, netnsPath)
	}
	if c.own, err = netns.Get(); err != nil {
		return nil, fmt.Errorf("opening this process's network namespace: %w", err)
	}
	if c.own.Equal(c.ns) {
		return nil, fmt.Errorf("%s is this host's own network namespace: only containers can be attached", netnsPath)
	}
	err = c.inside(func() error {
		c.socket, err = link.OpenSocket()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrNoNamespace, netnsPath, err)
	}
	return c, nil
}

// Close closes the handles of the namespace; the namespace itself stays.
func (c *Container) Close() {
	c.socket.Close()
	c.ns.Close()
	c.own.Close()
}

func mac(hostLink, side string) net.HardwareAddr {
	sum := sha256.Sum256([]byte(hostLink + "\x00" + side))
	m := net.HardwareAddr(sum[:6])
	m[0] = m[0]&^0x01 | 0x02 // make a unicast address that is locally administered
	return m
}

// Create makes the pair. One end is in this namespace, and the other end is in the container and
// still down. Create sets everything that does not depend on addresses. It returns ErrExists if the
// host's end exists already.
func (c *Container) Create(hostLink string) error {
	if err := c.add(hostLink); err != nil {
		return err
	}
	if err := ignoreAdvertisements(hostLink); err != nil {
		return errors.Join(err, Delete(hostLink))
	}
	if err := c.socket.Do(link.Up(loopback, 0)); err != nil {
		return errors.Join(fmt.Errorf("setting up lo in the container: %w", err), Delete(hostLink))
	}
	return nil
}

func (c *Container) add(hostLink string) error {
	h, err := link.Handle()
	if err != nil {
		return err
	}
	defer h.Close()
	pair := PairOf(hostLink)
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr = hostLink, pair.HostMAC
	err = h.LinkAdd(&netlink.Veth{
		LinkAttrs: attrs, PeerName: c.ifname, PeerHardwareAddr: pair.ContainerMAC, PeerNamespace: netlink.NsFd(c.ns),
	})
	if errors.Is(err, unix.EEXIST) {
		if exists(hostLink) == nil {
			return fmt.Errorf("%w: %s", ErrExists, hostLink)
		}
		return fmt.Errorf("the container has an interface %s already: choose another name", c.ifname)
	}
	if err != nil {
		return fmt.Errorf("making link %s, with %s in %s: %w", hostLink, c.ifname, c.path, link.Explain(err))
	}
	return nil
}

// loopback is the index of lo in every network namespace.
const loopback = 1

// Config is the desired state of the container's end.
type Config struct {
	Addr4, Addr6 netip.Addr // Addr6 is invalid if IPv6 is disabled on the host
	HostMAC      net.HardwareAddr
	MTU          int
	Routes       []netip.Prefix // the destinations that are routed through this link
	// Beside is set if the container already has another network. That network's routes stay
	// unchanged, and apply again when this link is deleted. Of several such links, the link that
	// was made last has priority.
	Beside bool
}

// DefaultTable is the table of the default routes of links beside another network. rulesPriority is
// the priority of the rules that use it: before the main table's rule (32766), and after any rules
// that the container has.
const (
	DefaultTable  = 6784
	rulesPriority = 32000
)

func (c Config) addresses() []netip.Addr {
	if c.Addr6.IsValid() {
		return []netip.Addr{c.Addr4, c.Addr6}
	}
	return []netip.Addr{c.Addr4}
}

// Configure configures the container's end of the pair that Create made, and sets this link up.
func (c *Container) Configure(cfg Config) error {
	index, err := c.socket.Index(c.ifname)
	if err != nil {
		return fmt.Errorf("in the container: %w", err)
	}
	err = c.socket.Do(cfg.requests(index)...)
	if errors.Is(err, unix.EACCES) && cfg.Addr6.IsValid() { // IPv6 is disabled
		if err := c.allowIPv6(); err != nil {
			return err
		}
		err = c.socket.Do(cfg.requests(index)...)
	}
	if err != nil {
		return fmt.Errorf("in the container, on %s: %w", c.ifname, err)
	}
	return nil
}

// requests returns the changes that give the container its addresses, neighbour entries for its
// gateways, and routes.
func (c Config) requests(index int) (out []link.Request) {
	for _, a := range c.addresses() {
		out = append(out, link.Address(index, netip.PrefixFrom(a, a.BitLen()), netlink.SCOPE_UNIVERSE))
	}
	out = append(out, link.Up(index, c.MTU))
	for _, a := range c.addresses() {
		via := link.Via{Index: index, Gateway: Gateway4, Source: a}
		if a.Is6() {
			via.Gateway = Gateway6
		}
		if c.Beside {
			via.Metric = max(1, 1<<16-index)
		}
		out = append(out, link.Neighbour(index, via.Gateway, c.HostMAC))
		if a.Is4() { // fe80::1 needs no route: it is link-local
			out = append(out, link.Route(netip.PrefixFrom(Gateway4, 32), link.Via{Index: index, Scope: netlink.SCOPE_LINK, Metric: via.Metric}))
		}
		out = append(out, c.routes(a.Is4(), via)...)
	}
	return out
}

// routes returns the routes of one family. If the container has another network, packets with that
// network's source addresses keep its routes. So the replies of a published port leave by the
// interface of the requests.
func (c Config) routes(is4 bool, via link.Via) (out []link.Request) {
	for _, p := range c.Routes {
		if p.Addr().Is4() != is4 {
			continue
		}
		if !c.Beside || p.Bits() > 0 {
			out = append(out, link.Route(p, via))
			continue
		}
		own := via
		own.Table = DefaultTable
		out = append(out, link.Route(p, own), link.MainTableFirst(is4, rulesPriority))
		for _, from := range c.Routes {
			if from.Addr().Is4() == is4 && from.Bits() > 0 {
				out = append(out, link.SourceRules(from, DefaultTable, rulesPriority+1)...)
			}
		}
	}
	return out
}

// allowIPv6 enables IPv6 on this one interface, for container runtimes that set
// net.ipv6.conf.default.disable_ipv6=1. Sysctls depend on the thread's namespace, so allowIPv6
// enters the container's namespace.
func (c *Container) allowIPv6() error {
	return c.inside(func() error {
		return link.Sysctl("0", "ipv6/conf", c.ifname, "disable_ipv6")
	})
}

// inside runs f on a thread in the container's namespace. If the thread cannot return to its own
// namespace, it stays locked, and ends with its goroutine.
func (c *Container) inside(f func() error) error {
	runtime.LockOSThread()
	if err := netns.Set(c.ns); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("entering the container's namespace: %w", err)
	}
	err := f()
	if back := netns.Set(c.own); back != nil {
		return errors.Join(err, fmt.Errorf("returning from the container's namespace: %w", back))
	}
	runtime.UnlockOSThread()
	return err
}

// Check compares the container's end with its desired state. The error names the missing part.
func Check(hostLink, netnsPath, ifname string, addrs []netip.Addr) error {
	if err := exists(hostLink); err != nil {
		return err
	}
	c, err := Open(netnsPath, ifname)
	if err != nil {
		return err
	}
	defer c.Close()
	h, err := netlink.NewHandleAt(c.ns, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("opening netlink in %s: %w", netnsPath, err)
	}
	defer h.Close()
	l, err := h.LinkByName(ifname)
	if err != nil {
		return fmt.Errorf("%s is missing in %s: %w", ifname, netnsPath, err)
	}
	if l.Attrs().Flags&net.FlagUp == 0 {
		return fmt.Errorf("%s in %s is down", ifname, netnsPath)
	}
	have, err := link.Dump(func() ([]netlink.Addr, error) { return h.AddrList(l, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("listing the addresses of %s in %s: %w", ifname, netnsPath, err)
	}
	for _, want := range addrs {
		if !slices.ContainsFunc(have, func(a netlink.Addr) bool { return a.IP.Equal(want.AsSlice()) }) {
			return fmt.Errorf("%s in %s does not have the address %v", ifname, netnsPath, want)
		}
		family, gateway := netlink.FAMILY_V4, Gateway4
		if want.Is6() {
			family, gateway = netlink.FAMILY_V6, Gateway6
		}
		routes, err := link.Dump(func() ([]netlink.Route, error) { return h.RouteList(l, family) })
		if err != nil {
			return fmt.Errorf("listing the routes of %s in %s: %w", ifname, netnsPath, err)
		}
		if !slices.ContainsFunc(routes, func(r netlink.Route) bool { return r.Gw.Equal(gateway.AsSlice()) }) {
			return fmt.Errorf("%s in %s has no route through its gateway %v", ifname, netnsPath, gateway)
		}
	}
	return nil
}

func exists(hostLink string) error {
	h, err := link.Handle()
	if err != nil {
		return err
	}
	defer h.Close()
	if _, err := h.LinkByName(hostLink); err != nil {
		return fmt.Errorf("the host's link %s is missing: %w", hostLink, err)
	}
	return nil
}

// Delete removes a pair. hostLink is the name of its host's end. A missing pair is no error.
func Delete(hostLink string) error {
	h, err := link.Handle()
	if err != nil {
		return err
	}
	defer h.Close()
	return link.DeleteLink(h, hostLink)
}

// Remove deletes a pair like Delete, for a long-lived process. It returns when the pair has left
// the host's tables, and does not wait until the kernel has freed it.
func Remove(hostLink string) error { return link.RemoveLink(hostLink) }

// List returns the names of the host's ends that exist.
func List() ([]string, error) {
	h, err := link.Handle()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	links, err := link.Dump(h.LinkList)
	if err != nil {
		return nil, fmt.Errorf("listing links: %w", err)
	}
	var out []string
	for _, l := range links {
		if strings.HasPrefix(l.Attrs().Name, link.EndpointPrefix) {
			out = append(out, l.Attrs().Name)
		}
	}
	return out, nil
}
