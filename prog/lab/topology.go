package lab

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"

	"weft/prog/lab/node"
)

// UnderlayName is the name of the bridge's namespace, for exec. Its interfaces are the bridge's ports
// and have the hosts' names: frames that h1 sends arrive on h1.
const UnderlayName = "underlay"

// The underlay's addresses (RFC 5737, RFC 3849): host n has the last byte n in both families. The
// gateway does not exist, but hosts send packets to it; see node.Uplink.
var (
	prefix4  = netip.MustParsePrefix("192.0.2.0/24")
	prefix6  = netip.MustParsePrefix("2001:db8::/64")
	gateway4 = netip.MustParseAddr("192.0.2.254")
	gateway6 = netip.MustParseAddr("2001:db8::fe")
)

// These are the addresses of second links. They have their own switch, and host n has the last byte n too.
var (
	second4        = netip.MustParsePrefix("198.51.100.0/24")
	second6        = netip.MustParsePrefix("2001:db8:1::/64")
	secondGateway4 = netip.MustParseAddr("198.51.100.254")
	secondGateway6 = netip.MustParseAddr("2001:db8:1::fe")
)

const gatewayMAC = "02:00:c0:00:02:fe"

// uplinkMetric is the metric of the hosts' default routes. Second links can have a lower or a higher
// metric.
const uplinkMetric = 100

func hostNumber(host string) (int, error) {
	n, err := strconv.Atoi(strings.TrimPrefix(host, "h"))
	if err != nil || !strings.HasPrefix(host, "h") || n < 1 || n > MaxHosts {
		return 0, fmt.Errorf("lab: bad host %q: hosts are called h1, h2 and so on", host)
	}
	return n, nil
}

// UnderlayAddr returns a host's underlay address in the lab's first family. Once the host has a NAT, this is
// the NAT's outer address.
func (l *Lab) UnderlayAddr(host string) (netip.Addr, error) {
	addrs, err := l.underlayAddrs(host)
	if err != nil {
		return netip.Addr{}, err
	}
	return addrs[0].Addr(), nil
}

func (l *Lab) underlayAddrs(host string) ([]netip.Prefix, error) {
	return l.addrsIn(host, prefix4, prefix6)
}

// addrsIn returns a host's addresses in a network, of the lab's families.
func (l *Lab) addrsIn(host string, net4, net6 netip.Prefix) (addrs []netip.Prefix, err error) {
	n, err := hostNumber(host)
	if err != nil {
		return nil, err
	}
	if strings.Contains(l.opts.Underlay, "4") {
		addrs = append(addrs, nth(net4, n))
	}
	if strings.Contains(l.opts.Underlay, "6") {
		addrs = append(addrs, nth(net6, n))
	}
	return addrs, nil
}

// nth returns the address whose last byte is n, with the prefix's length.
func nth(p netip.Prefix, n int) netip.Prefix {
	b := p.Addr().AsSlice()
	b[len(b)-1] = byte(n)
	addr, _ := netip.AddrFromSlice(b)
	return netip.PrefixFrom(addr, p.Bits())
}

// uplink returns the link of a host without NAT.
func (l *Lab) uplink(host string) (node.Uplink, error) {
	n, err := hostNumber(host)
	if err != nil {
		return node.Uplink{}, err
	}
	addrs, err := l.underlayAddrs(host)
	return node.Uplink{
		Link: node.HostLink, Port: host, Switch: node.Bridge,
		MAC:   fmt.Sprintf("02:00:c0:00:02:%02x", n), // the address stays the same after a reboot, like a real card's
		Addrs: addrs, Gateways: gateways(addrs, gateway4, gateway6), GatewayMAC: gatewayMAC, Metric: uplinkMetric,
	}, err
}

func (l *Lab) hostConfig(host string, up node.Uplink) (node.Config, error) {
	names, err := l.hostNames()
	if err != nil {
		return node.Config{}, err
	}
	return node.Config{
		Role: node.Host, Name: host, Bin: l.opts.Bin, Socket: l.socket(host), Names: names,
		StateDir: l.StateDir(host), Settings: filepath.Join(l.dir, host, "etc"), Scratch: filepath.Join(l.dir, host, "scratch"), Uplink: &up,
	}, nil
}

// gateways returns the gateways for the families of a host's addresses.
func gateways(addrs []netip.Prefix, gw4, gw6 netip.Addr) (all []netip.Addr) {
	for _, a := range addrs {
		if a.Addr().Is4() {
			all = append(all, gw4)
		} else {
			all = append(all, gw6)
		}
	}
	return all
}

const localNames = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"

// hostNames returns the /etc/hosts of a host, with the names of all hosts of the lab.
func (l *Lab) hostNames() (string, error) {
	var names strings.Builder
	names.WriteString(localNames)
	for _, host := range l.Hosts() {
		addrs, err := l.underlayAddrs(host)
		if err != nil {
			return "", err
		}
		for _, a := range addrs {
			fmt.Fprintf(&names, "%v\t%s\n", a.Addr(), host)
		}
	}
	return names.String(), nil
}

// StateDir returns the path of a host's /var/lib/weft on this machine.
func (l *Lab) StateDir(host string) string { return filepath.Join(l.dir, host, "lib") }

// socket returns the path of a node's socket; target is "underlay", "h1" or "h1/c1".
func (l *Lab) socket(target string) string {
	return filepath.Join(l.dir, strings.ReplaceAll(target, "/", ".")+".sock")
}

func (l *Lab) node(target string) node.Node { return node.Node(l.socket(target)) }
