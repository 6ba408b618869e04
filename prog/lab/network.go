package lab

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"strings"

	"weft/prog/lab/node"
)

// What follows changes a host's own network while the lab runs, as its operator, a VPN or a firewall would. It lasts
// until the host reboots.

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

// AddLink gives a host a second link, eth1, on a switch that only second links are connected to. With a metric it has
// default routes of that metric: those of eth0 have 100.
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

// SetRouteMTU gives a host's route to a prefix an MTU, in bytes, or takes it away with 0; all else of the route stays.
func (l *Lab) SetRouteMTU(ctx context.Context, host string, prefix netip.Prefix, mtu int) error {
	if err := l.checkHost(host); err != nil {
		return err
	}
	return l.atHost(host, l.node(host).SetRouteMTU(ctx, prefix.String(), mtu))
}

// LoadRules loads a foreign firewall's rules into a host: what nft prints and reads, or what iptables-save prints. The
// latter is for IPv6 if the file's name ends with v6, as Debian's rules.v4 and rules.v6 do.
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
		return fmt.Errorf("lab: load %s on %s: %w", name, host, err)
	}
	return nil
}

// isSaved tells what iptables-save prints from what nft prints: it names a table first.
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
