package lab

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"strings"

	"weft/prog/lab/node"
)

// The functions below change a host's own network while the lab runs, like its operator, a VPN or a
// firewall would. The changes last until the host reboots.

// SetMTU sets the MTU of a host's eth0 and of the port that it is connected to, in bytes.
func (l *Lab) SetMTU(ctx context.Context, host string, mtu int) error {
	if err := l.checkHost(host); err != nil {
		return err
	}
	if err := l.node(UnderlayName).SetMTU(ctx, host, mtu); err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	return l.atHost(host, l.node(host).SetMTU(ctx, node.HostLink, mtu))
}

// AddLink adds a second link, eth1, to a host, on a switch for second links. With a metric, eth1 has
// default routes with that metric; eth0's default routes have 100.
func (l *Lab) AddLink(ctx context.Context, host string, metric int) error {
	if err := l.checkHost(host); err != nil {
		return err
	}
	n, err := hostNumber(host)
	if err != nil {
		return err
	}
	addrs, err := l.addrsIn(host, second4, second6)
	if err != nil {
		return err
	}
	up := node.Uplink{
		Link: node.SecondLink, Port: node.SecondPort(host), Switch: node.SecondBridge,
		MAC: fmt.Sprintf("02:00:c6:33:64:%02x", n), Addrs: addrs, GatewayMAC: gatewayMAC, Metric: metric,
	}
	if metric > 0 {
		up.Gateways = gateways(addrs, secondGateway4, secondGateway6)
	}
	if err := l.node(UnderlayName).Plug(ctx, host, up); err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	return l.atHost(host, l.node(host).SetUplink(ctx, up))
}

// SetRouteMTU sets the MTU, in bytes, of a host's route to a prefix, or removes it with 0. It keeps
// the route's other attributes.
func (l *Lab) SetRouteMTU(ctx context.Context, host string, prefix netip.Prefix, mtu int) error {
	if err := l.checkHost(host); err != nil {
		return err
	}
	return l.atHost(host, l.node(host).SetRouteMTU(ctx, prefix.String(), mtu))
}

// LoadRules loads another program's firewall rules into a host: the output of nft or of iptables-save.
// Output of iptables-save is for IPv6 if the file's name ends with v6, like Debian's rules.v4 and
// rules.v6.
func (l *Lab) LoadRules(ctx context.Context, host, name string, rules []byte) error {
	if err := l.checkHost(host); err != nil {
		return err
	}
	load := []string{"nft", "-f", "-"}
	switch saved := isSaved(rules); {
	case saved && strings.HasSuffix(name, "v6"):
		load = []string{"ip6tables-restore"}
	case saved:
		load = []string{"iptables-restore"}
	}
	if _, err := l.Exec(ctx, host, bytes.NewReader(rules), load...); err != nil {
		return fmt.Errorf("lab: loading the firewall %s on %s: %w", name, host, err)
	}
	return nil
}

// isSaved reports whether rules are in the format of iptables-save, which begins with the name of a
// table. Otherwise they are in the format of nft.
func isSaved(rules []byte) bool {
	for line := range bytes.Lines(rules) {
		if line = bytes.TrimSpace(line); len(line) > 0 && line[0] != '#' {
			return line[0] == '*'
		}
	}
	return false
}

func (l *Lab) atHost(host string, err error) error {
	if err = l.explain(host, err); err != nil {
		return fmt.Errorf("lab: on %s: %w", host, err)
	}
	return nil
}
