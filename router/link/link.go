// Package link reads and writes links, addresses, routes and sysctls of this host over netlink.
//
// Every function that writes takes the desired state and may be repeated. Weft's objects are
// marked: routes by Protocol, links by the names of the constants below. Functions hold no state
// between calls, except for the sysctl directory. The package is linked into weft-cni, so it
// imports little beyond netlink.
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

// These are the names of Weft's links: the name of the tunnel, and the prefix of the names of
// endpoints' host's ends.
const (
	Device         = "weft"
	EndpointPrefix = "weft-"
)

// Protocol marks Weft's routes (rtnetlink's rtm_protocol), so that `ip route show proto 87` lists
// them and a reset finds them.
const Protocol netlink.RouteProtocol = 0x57

// Ours reports whether a link was made by Weft.
func Ours(name string) bool { return name == Device || strings.HasPrefix(name, EndpointPrefix) }

// Handle opens netlink in the current network namespace. It opens only the netlink family that it
// needs, since a kernel may lack other families.
func Handle() (*netlink.Handle, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	return h, nil
}

// Dump repeats a call that lists objects until no object has changed during the call. The kernel
// marks a list that changed while it was read, since such a list may lack entries.
func Dump[T any](list func() ([]T, error)) (out []T, err error) {
	for range 20 {
		if out, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return out, err
		}
	}
	return nil, err
}

// OverlapError reports that the host routes a part of the universe to another network.
type OverlapError struct {
	Universe, Route netip.Prefix
	Link            string
}

func (e *OverlapError) Error() string {
	return fmt.Sprintf("the universe %v overlaps this host's route %v dev %s: Weft would hide a network that this host uses; choose another range (--ipalloc-range CIDR, under Kubernetes WEFT_IPALLOC_RANGE), or remove that route",
		e.Universe, e.Route, e.Link)
}

// Overlap returns an error if the host already routes a part of the universe to another network.
// Default routes and Weft's own routes do not count.
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
		return nil, fmt.Errorf("listing routes: %w", err)
	}
	return routes, nil
}

// Routes lists Weft's routes in the main table, of both families.
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

// IPNet converts a prefix to the type that netlink takes.
func IPNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// sysctlRoot is the directory of this host's sysctls.
var sysctlRoot = "/proc/sys/net"

// SetSysctlRoot sets another directory for the host's sysctls. In a container /proc/sys is
// read-only, and the host's /proc/sys is mounted elsewhere. SetSysctlRoot must be called before any
// other function of this package.
func SetSysctlRoot(dir string) { sysctlRoot = dir }

// IPv6Enabled reports whether IPv6 is enabled on new links of this host.
func IPv6Enabled() bool {
	for _, scope := range []string{"all", "default"} {
		v, err := os.ReadFile(filepath.Join(sysctlRoot, "ipv6/conf", scope, "disable_ipv6"))
		if err != nil || strings.TrimSpace(string(v)) != "0" {
			return false
		}
	}
	return true
}

// Sysctl sets one value below /proc/sys/net, unless it is set already: in a container that tree is
// often read-only.
func Sysctl(value string, path ...string) error {
	if SysctlIs(value, path...) {
		return nil
	}
	return WriteSysctl(value, path...)
}

// WriteSysctl sets a value without reading it first, for a new link: reading takes as long as
// writing.
func WriteSysctl(value string, path ...string) error {
	name := sysctlName(path)
	if err := os.WriteFile(name, []byte(value), 0o644); err != nil {
		return fmt.Errorf("setting sysctl %s=%s: %w", "net."+strings.ReplaceAll(strings.Join(path, "/"), "/", "."), value, err)
	}
	return nil
}

// SysctlIs reports whether a value below /proc/sys/net exists and equals value.
func SysctlIs(value string, path ...string) bool {
	have, err := os.ReadFile(sysctlName(path))
	return err == nil && strings.TrimSpace(string(have)) == value
}

func sysctlName(path []string) string {
	return filepath.Join(append([]string{sysctlRoot}, path...)...)
}

// ChangeSysctl sets a value that an uninstallation restores. changing, unless nil, is called before the
// change, with the value so far.
func ChangeSysctl(value, name string, changing func(name, was, set string) error) error {
	was, err := os.ReadFile(sysctlName([]string{name}))
	if err == nil && strings.TrimSpace(string(was)) != value && changing != nil {
		if err := changing(name, strings.TrimSpace(string(was)), value); err != nil {
			return err
		}
	}
	return Sysctl(value, name)
}

// CountConnections is the sysctl by which conntrack counts the packets and bytes of connections that
// begin afterwards.
const CountConnections = "netfilter/nf_conntrack_acct"

// Forwarding makes this host route packets between its links. With forwarding, a link ignores
// router advertisements, and the host would lose a default route that it has from them. Forwarding
// makes such links accept router advertisements (accept_ra=2). changing, unless nil, is called
// before each change, so that an uninstallation can restore the value.
func Forwarding(ipv6 bool, changing func(name, was, set string) error) error {
	set := func(value, name string) error { return ChangeSysctl(value, name, changing) }
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
		return fmt.Errorf("listing sysctls of IPv6: %w", err)
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
