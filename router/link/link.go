// Package link reads and writes links, addresses, routes and sysctls of this host
// over netlink.
//
// Every writer takes the desired state and tolerates repeats. What it makes can be
// told apart: routes carry Protocol, links the names below. It is linked into
// weft-cni, so it imports nothing beyond netlink.
package link

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/ipam/slot"
)

// Names of our links: the tunnel, and the prefix of the host side of endpoints.
const (
	Device         = "weft"
	EndpointPrefix = "weft-"
)

// Protocol marks our routes (rtnetlink's rtm_protocol), so that `ip route show
// proto 87` lists them and a reset finds them.
const Protocol netlink.RouteProtocol = 0x57

// Ours reports whether a link was made by Weft.
func Ours(name string) bool { return name == Device || strings.HasPrefix(name, EndpointPrefix) }

// Handle opens netlink in the current namespace. The family is named, since a
// kernel may lack others.
func Handle() (*netlink.Handle, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	return h, nil
}

// Dump calls a function that lists things until nothing changed meanwhile: the
// kernel marks a list that changed while it was read, since it may lack entries.
func Dump[T any](list func() ([]T, error)) (out []T, err error) {
	for range 20 {
		if out, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return out, err
		}
	}
	return nil, err
}

// OverlapError says that the host routes a part of the universe elsewhere.
type OverlapError struct {
	Universe, Route netip.Prefix
	Link            string
}

func (e *OverlapError) Error() string {
	return fmt.Sprintf("the universe %v overlaps this host's route %v dev %s: found the network with another range (--ipalloc-range CIDR, under Kubernetes WEFT_IPALLOC_RANGE), or remove that route",
		e.Universe, e.Route, e.Link)
}

// Overlap refuses a universe of which the host routes a part elsewhere already.
// Default routes and our own do not count.
func Overlap(universe slot.Universe) error {
	h, err := Handle()
	if err != nil {
		return err
	}
	defer h.Close()
	routes, err := listRoutes(h, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return err
	}
	for _, r := range routes {
		dst, ok := prefixOf(r.Dst)
		if r.Protocol == Protocol || !ok || dst.Bits() == 0 || dst.Addr().IsMulticast() || dst.Addr().IsLinkLocalUnicast() {
			continue
		}
		for _, u := range []netip.Prefix{universe.V4, universe.V6} {
			if !u.Overlaps(dst) {
				continue
			}
			name := "-"
			if l, err := h.LinkByIndex(r.LinkIndex); err == nil {
				name = l.Attrs().Name
			}
			if !Ours(name) {
				return &OverlapError{u, dst, name}
			}
		}
	}
	return nil
}

func listRoutes(h *netlink.Handle, filter *netlink.Route, mask uint64) ([]netlink.Route, error) {
	routes, err := Dump(func() ([]netlink.Route, error) { return h.RouteListFiltered(netlink.FAMILY_ALL, filter, mask) })
	if err != nil {
		return nil, fmt.Errorf("routes: %w", err)
	}
	return routes, nil
}

// Routes lists our routes in the main table, of both families.
func Routes(h *netlink.Handle) ([]netlink.Route, error) {
	return listRoutes(h, &netlink.Route{Protocol: Protocol}, netlink.RT_FILTER_PROTOCOL)
}

func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	addr, ok := netip.AddrFromSlice(n.IP)
	ones, bits := n.Mask.Size()
	if !ok || bits == 0 {
		return netip.Prefix{}, false
	}
	if addr.Is4In6() && bits == 32 {
		addr = addr.Unmap()
	}
	return netip.PrefixFrom(addr, ones), true
}

// IPNet is a prefix in the standard library's older form, which netlink takes.
func IPNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// sysctlRoot is the directory with this host's sysctls.
var sysctlRoot = "/proc/sys/net"

// SetSysctlRoot names another directory with the same content: in a container /proc/sys is
// read-only, and the host's is mounted elsewhere. It is called before anything else here.
func SetSysctlRoot(dir string) { sysctlRoot = dir }

// IPv6Enabled reports whether new links of this host carry IPv6.
func IPv6Enabled() bool {
	for _, scope := range []string{"all", "default"} {
		v, err := os.ReadFile(filepath.Join(sysctlRoot, "ipv6/conf", scope, "disable_ipv6"))
		if err != nil || strings.TrimSpace(string(v)) != "0" {
			return false
		}
	}
	return true
}

// Sysctl sets one value below /proc/sys/net, unless it is right already: in a
// container that tree is often read-only.
func Sysctl(value string, path ...string) error {
	if SysctlIs(value, path...) {
		return nil
	}
	return WriteSysctl(value, path...)
}

// WriteSysctl is Sysctl for a link that is new: looking there first takes as long as writing.
func WriteSysctl(value string, path ...string) error {
	name := sysctlName(path)
	if err := os.WriteFile(name, []byte(value), 0o644); err != nil {
		return fmt.Errorf("sysctl %s=%s: %w", "net."+strings.ReplaceAll(strings.Join(path, "/"), "/", "."), value, err)
	}
	return nil
}

// SysctlIs reports whether a value below /proc/sys/net is there and is this one.
func SysctlIs(value string, path ...string) bool {
	have, err := os.ReadFile(sysctlName(path))
	return err == nil && strings.TrimSpace(string(have)) == value
}

func sysctlName(path []string) string {
	return filepath.Join(append([]string{sysctlRoot}, path...)...)
}

// Forwarding makes this host route packets between its links. A host that takes
// its default route from router advertisements would lose it by that: such links
// are told to go on accepting them (accept_ra=2). changing, if there is one, hears of each
// value before it is another one: who removes Weft wants it back.
func Forwarding(ipv6 bool, changing func(name, was, set string) error) error {
	set := func(value, name string) error {
		was, err := os.ReadFile(sysctlName([]string{name}))
		if err == nil && strings.TrimSpace(string(was)) != value && changing != nil {
			if err := changing(name, strings.TrimSpace(string(was)), value); err != nil {
				return err
			}
		}
		return Sysctl(value, name)
	}
	if err := set("1", "ipv4/ip_forward"); err != nil {
		return err
	}
	if !ipv6 {
		return nil
	}
	have, err := os.ReadFile(filepath.Join(sysctlRoot, "ipv6/conf/all/forwarding"))
	if err == nil && strings.TrimSpace(string(have)) == "1" {
		return nil
	}
	links, err := os.ReadDir(filepath.Join(sysctlRoot, "ipv6/conf"))
	if err != nil {
		return fmt.Errorf("sysctl: %w", err)
	}
	for _, l := range links {
		v, err := os.ReadFile(filepath.Join(sysctlRoot, "ipv6/conf", l.Name(), "accept_ra"))
		if err != nil || strings.TrimSpace(string(v)) != "1" || Ours(l.Name()) || l.Name() == "lo" {
			continue
		}
		if err := set("2", "ipv6/conf/"+l.Name()+"/accept_ra"); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return set("1", "ipv6/conf/all/forwarding")
}
