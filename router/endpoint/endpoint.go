// Package endpoint is a container's veth pair: made and set up inside the
// container by weft-cni, programmed on the host side by the agent.
//
//	container                        host
//	eth0  10.32.0.7/32        ---    weft-1f0c9a73be  169.254.1.1/32, fe80::1/64
//	default via 169.254.1.1          10.32.0.7/32 dev weft-1f0c9a73be src NODE
//
// It is routed, not bridged: every packet crosses the forward hook, and since the
// endpoint's route points to its own link, a packet with another's address has no
// way in. The gateways are link-local and the same everywhere; both sides know each
// other's MAC address from the start, so that no packet waits for a neighbour.
//
// It is linked into weft-cni, so it imports nothing beyond netlink.
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

// The gateways of every endpoint, answered by the host side of its link.
var (
	Gateway4 = netip.MustParseAddr("169.254.1.1")
	Gateway6 = netip.MustParseAddr("fe80::1")
)

// Errors of the container's side.
var (
	ErrExists      = errors.New("the endpoint's link exists already")
	ErrNoNamespace = errors.New("the network namespace does not exist")
)

// HostLink is the name of an endpoint's host side: the same for an endpoint at any
// time, so that whoever knows the endpoint can remove it.
func HostLink(containerID, ifname string) string {
	sum := sha256.Sum256([]byte(containerID + "\x00" + ifname))
	return link.EndpointPrefix + hex.EncodeToString(sum[:5])
}

// Pair is the two ends of a veth pair.
type Pair struct {
	HostMAC, ContainerMAC net.HardwareAddr
}

// PairOf derives the addresses of a pair from the link's name: known before the link
// is made, and fixed, which keeps udev from changing them.
func PairOf(hostLink string) Pair { return Pair{mac(hostLink, "host"), mac(hostLink, "container")} }

// maxInterface is the most bytes that an interface's name has (IFNAMSIZ, with a NUL).
const maxInterface = unix.IFNAMSIZ - 1

// CheckInterface refuses what the kernel takes for no interface's name (dev_valid_name).
func CheckInterface(name string) error {
	switch {
	case name == "" || name == "." || name == "..":
		return fmt.Errorf("interface %q: that is no name of an interface: want one such as eth1", name)
	case len(name) > maxInterface:
		return fmt.Errorf("interface %s: its name has %d bytes, at most %d are allowed", name, len(name), maxInterface)
	case strings.ContainsFunc(name, func(r rune) bool { return r == '/' || r == ':' || unicode.IsSpace(r) }):
		return fmt.Errorf("interface %q: its name has a slash, a colon or a space, which none may have", name)
	}
	return nil
}

// Container is the network namespace of a container, opened for one interface.
type Container struct {
	path, ifname string
	ns, own      netns.NsHandle // the container's, and the one to come back to
	socket       link.Socket    // in the container
}

// Open opens a network namespace other than this one.
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
		return nil, fmt.Errorf("%w: %s is something else", ErrNoNamespace, netnsPath)
	}
	if c.own, err = netns.Get(); err != nil {
		return nil, fmt.Errorf("this network namespace: %w", err)
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

// Close lets go of the namespace.
func (c *Container) Close() {
	c.socket.Close()
	c.ns.Close()
	c.own.Close()
}

func mac(hostLink, side string) net.HardwareAddr {
	sum := sha256.Sum256([]byte(hostLink + "\x00" + side))
	m := net.HardwareAddr(sum[:6])
	m[0] = m[0]&^0x01 | 0x02 // unicast, locally administered
	return m
}

// Create makes the pair: one end here, and the other, still down, in the container.
// It does all that needs no address. It returns ErrExists if the host side is there
// already.
func (c *Container) Create(hostLink string) error {
	if err := c.add(hostLink); err != nil {
		return err
	}
	if err := ignoreAdvertisements(hostLink); err != nil {
		return errors.Join(err, Delete(hostLink))
	}
	if err := c.socket.Do(link.Up(loopback, 0)); err != nil {
		return errors.Join(fmt.Errorf("container's lo: %w", err), Delete(hostLink))
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
		return fmt.Errorf("make link %s, with %s in %s: %w", hostLink, c.ifname, c.path, link.Explain(err))
	}
	return nil
}

// loopback is the index that lo has in every network namespace.
const loopback = 1

// Config is the container's side.
type Config struct {
	Addr4, Addr6 netip.Addr // Addr6 is invalid where the host carries no IPv6
	HostMAC      net.HardwareAddr
	MTU          int
	Routes       []netip.Prefix // what goes this way
	// Beside says that the container has another network already, whose routes stay as they are
	// and count again once the link is gone. The latest such link comes first.
	Beside bool
}

// Where the default routes of links beside another network are, and the rules that lead there:
// before the main table's (32766), behind what a container has of its own.
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

// Configure sets up the container's side of what Create made, and brings it up.
func (c *Container) Configure(cfg Config) error {
	index, err := c.socket.Index(c.ifname)
	if err != nil {
		return fmt.Errorf("container: %w", err)
	}
	err = c.socket.Do(cfg.requests(index)...)
	if errors.Is(err, unix.EACCES) && cfg.Addr6.IsValid() { // IPv6 is switched off
		if err := c.allowIPv6(); err != nil {
			return err
		}
		err = c.socket.Do(cfg.requests(index)...)
	}
	if err != nil {
		return fmt.Errorf("container's %s: %w", c.ifname, err)
	}
	return nil
}

// requests give the container its addresses, its gateways, known by their MAC address,
// and its routes.
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
		if a.Is4() { // fe80::1 is on the link by itself
			out = append(out, link.Route(netip.PrefixFrom(Gateway4, 32), link.Via{Index: index, Scope: netlink.SCOPE_LINK, Metric: via.Metric}))
		}
		out = append(out, c.routes(a.Is4(), via)...)
	}
	return out
}

// routes lead one family. Beside another network, what has that network's addresses keeps its
// ways: answers to a published port leave as the questions came.
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
		out = append(out, link.Route(p, own), link.SpecificFirst(is4, rulesPriority))
		for _, from := range c.Routes {
			if from.Addr().Is4() == is4 && from.Bits() > 0 {
				out = append(out, link.Chooses(from, DefaultTable, rulesPriority+1)...)
			}
		}
	}
	return out
}

// allowIPv6 undoes a container runtime's net.ipv6.conf.default.disable_ipv6=1 for
// this one interface. Sysctls belong to a thread's namespace, so it borrows one.
func (c *Container) allowIPv6() error {
	return c.inside(func() error {
		return link.Sysctl("0", "ipv6/conf", c.ifname, "disable_ipv6")
	})
}

// inside runs f in the container's namespace. A thread that cannot come back ends
// with its goroutine: it is never unlocked.
func (c *Container) inside(f func() error) error {
	runtime.LockOSThread()
	if err := netns.Set(c.ns); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter the container's namespace: %w", err)
	}
	err := f()
	if back := netns.Set(c.own); back != nil {
		return errors.Join(err, fmt.Errorf("come back from the container's namespace: %w", back))
	}
	runtime.UnlockOSThread()
	return err
}

// Check compares the container's side with what it should be, and names what is missing.
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
		return fmt.Errorf("look into %s: %w", netnsPath, err)
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
		return fmt.Errorf("addresses of %s in %s: %w", ifname, netnsPath, err)
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
			return fmt.Errorf("routes of %s in %s: %w", ifname, netnsPath, err)
		}
		if !slices.ContainsFunc(routes, func(r netlink.Route) bool { return r.Gw.Equal(gateway.AsSlice()) }) {
			return fmt.Errorf("%s in %s has no route by its gateway %v", ifname, netnsPath, gateway)
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

// Delete removes a pair by its host side; one that is gone already is no error.
func Delete(hostLink string) error {
	h, err := link.Handle()
	if err != nil {
		return err
	}
	defer h.Close()
	return link.DeleteLink(h, hostLink)
}

// Remove is Delete for a program that lives on: it returns once the pair is gone, while
// the kernel still waits for itself.
func Remove(hostLink string) error { return link.RemoveLink(hostLink) }

// List names the host sides that exist.
func List() ([]string, error) {
	h, err := link.Handle()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	links, err := link.Dump(h.LinkList)
	if err != nil {
		return nil, fmt.Errorf("links: %w", err)
	}
	var out []string
	for _, l := range links {
		if strings.HasPrefix(l.Attrs().Name, link.EndpointPrefix) {
			out = append(out, l.Attrs().Name)
		}
	}
	return out, nil
}
