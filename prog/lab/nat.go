package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"weft/prog/lab/node"
)

// A NAT is a router with an inner switch:
//
//	underlay (192.0.2.0/24)
//	  │ 192.0.2.2, h2's own address before
//	nat-h2
//	  │ 192.168.2.254
//	inside-h2 (192.168.2.0/24)
//	├── h2, 192.168.2.2
//	└── h3, 192.168.2.3
//
// Hosts inside have IPv4 only. There is no hairpinning (RFC 4787, section 6): from inside, the outer address is
// the router itself. The router drops packets to inner addresses that arrive from outside, so a route to them
// does not help either.

// SetNAT puts a host behind a NAT of its own, or changes the kind of that NAT. The NAT's outer address is the
// host's underlay address. Idle mappings of UDP end after the timeout; 0 means conntrack's own. Connections of
// the host break, as if its cable had been moved.
func (l *Lab) SetNAT(ctx context.Context, host string, kind node.NATKind, udpTimeout time.Duration) error {
	if err := l.checkHost(host); err != nil {
		return err
	}
	switch {
	case !slices.Contains(node.NATKinds, kind):
		return fmt.Errorf("lab: no kind of NAT is called %q: use full-cone, restricted or symmetric", kind)
	case udpTimeout != 0 && (udpTimeout < time.Second || udpTimeout%time.Second != 0):
		return fmt.Errorf("lab: bad UDP timeout %v: use whole seconds", udpTimeout)
	case !strings.Contains(l.opts.Underlay, "4"):
		return errors.New("lab: NAT translates IPv4, but this lab's underlay has IPv6 only: make the lab with --underlay 4 or 46")
	}
	owner, old, err := l.natOf(ctx, host)
	switch {
	case err != nil:
		return err
	case owner != "" && owner != host:
		return fmt.Errorf("lab: %s is behind the NAT of %s: change that one, or first run weft lab nat %s --kind none", host, owner, host)
	}
	outer, err := l.uplink(host)
	if err != nil {
		return err
	}
	outer.Addrs, outer.Gateways = outer.Addrs[:1], outer.Gateways[:1] // IPv4 comes first
	nat := node.NAT{Kind: kind, UDPTimeout: udpTimeout, Outer: outer.Addrs[0].Addr(), Hosts: []string{host}}
	if owner != "" {
		nat.Hosts = old.Hosts
		return l.atHost(node.RouterOf(host), l.node(node.RouterOf(host)).SetNAT(ctx, nat))
	}
	err = l.addRouter(ctx, host, outer, nat)
	if err == nil {
		err = l.move(ctx, host)
	}
	if err != nil {
		ctx := context.WithoutCancel(ctx)
		return errors.Join(err, l.node(UnderlayName).End(ctx, node.RouterOf(host)), l.move(ctx, host))
	}
	return nil
}

// JoinNAT puts a host behind the NAT of another host. The two reach each other by their inner addresses.
func (l *Lab) JoinNAT(ctx context.Context, host, owner string) error {
	for _, h := range []string{host, owner} {
		if err := l.checkHost(h); err != nil {
			return err
		}
	}
	now, _, err := l.natOf(ctx, host)
	if err != nil {
		return err
	}
	theirs, nat, err := l.natOf(ctx, owner)
	switch {
	case err != nil:
		return err
	case theirs != owner:
		return fmt.Errorf("lab: %s has no NAT of its own: make one first, such as weft lab nat %s --kind restricted", owner, owner)
	case now == owner:
		return nil
	case now != "":
		return fmt.Errorf("lab: %s is behind the NAT of %s: first run weft lab nat %s --kind none", host, now, host)
	}
	nat.Hosts = append(nat.Hosts, host)
	if err := l.atHost(node.RouterOf(owner), l.node(node.RouterOf(owner)).SetNAT(ctx, nat)); err != nil {
		return err
	}
	return l.move(ctx, host)
}

// RemoveNAT connects a host with the underlay again. A host's own NAT ends with it. It is no error if the
// host is not behind NAT.
func (l *Lab) RemoveNAT(ctx context.Context, host string) error {
	if err := l.checkHost(host); err != nil {
		return err
	}
	owner, nat, err := l.natOf(ctx, host)
	others := slices.DeleteFunc(nat.Hosts, func(h string) bool { return h == host })
	switch {
	case err != nil || owner == "":
		return err
	case owner == host && len(others) > 0:
		return fmt.Errorf("lab: %s is still behind the NAT of %s: first run weft lab nat %s --kind none", others[0], host, others[0])
	case owner == host:
		err = l.node(UnderlayName).End(ctx, node.RouterOf(host))
	default:
		nat.Hosts = others
		err = l.node(node.RouterOf(owner)).SetNAT(ctx, nat)
	}
	if err != nil {
		return l.atHost(node.RouterOf(owner), err)
	}
	return l.move(ctx, host)
}

// addRouter makes a router with its two links and its rules.
func (l *Lab) addRouter(ctx context.Context, host string, outer node.Uplink, nat node.NAT) error {
	router := node.RouterOf(host)
	outer.Port = router // it keeps the host's MAC address, which other hosts know
	err := l.node(UnderlayName).Spawn(ctx, node.Config{
		Role: node.Router, Name: router, Bin: l.opts.Bin, Socket: l.socket(router), Uplink: &outer,
	})
	if err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	inner, err := insideUplink(host, routerNumber)
	if err != nil {
		return err
	}
	inner.Link, inner.Port, inner.Gateways = node.SecondLink, node.SecondPort(router), nil
	if err := l.node(UnderlayName).Plug(ctx, router, inner); err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	if err := l.node(router).SetUplink(ctx, inner); err != nil {
		return l.atHost(router, err)
	}
	return l.atHost(router, l.node(router).SetNAT(ctx, nat))
}

// move connects a running host where it belongs now. A host that is powered off gets there when it boots.
func (l *Lab) move(ctx context.Context, host string) error {
	underlay := l.node(UnderlayName)
	info, err := underlay.Info(ctx)
	if err != nil {
		return l.explain(UnderlayName, err)
	}
	if !slices.ContainsFunc(info.Children, func(c node.Child) bool { return c.Name == host }) {
		return nil
	}
	up, err := l.currentUplink(ctx, host)
	if err != nil {
		return err
	}
	if err := underlay.Unplug(ctx, host); err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	if err := underlay.Plug(ctx, host, up); err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	return l.atHost(host, l.node(host).SetUplink(ctx, up))
}

// currentUplink returns a host's link: on the underlay, or inside a NAT.
func (l *Lab) currentUplink(ctx context.Context, host string) (node.Uplink, error) {
	owner, _, err := l.natOf(ctx, host)
	if err != nil {
		return node.Uplink{}, err
	}
	return l.uplinkBehind(host, owner)
}

// uplinkBehind returns a host's link inside the NAT of owner, or on the underlay if owner is empty.
func (l *Lab) uplinkBehind(host, owner string) (node.Uplink, error) {
	if owner == "" {
		return l.uplink(host)
	}
	n, err := hostNumber(host)
	if err != nil {
		return node.Uplink{}, err
	}
	up, err := insideUplink(owner, byte(n))
	up.Port = host
	return up, err
}

// routerNumber is the last byte of a router's inner address.
const routerNumber = 254

// insideUplink returns the link eth0 with number n as its last byte inside the NAT of a host.
func insideUplink(owner string, n byte) (node.Uplink, error) {
	nat, err := hostNumber(owner)
	if err != nil {
		return node.Uplink{}, err
	}
	addr := func(n byte) netip.Addr { return netip.AddrFrom4([4]byte{192, 168, byte(nat), n}) }
	mac := func(n byte) string { return fmt.Sprintf("02:00:c0:a8:%02x:%02x", nat, n) }
	return node.Uplink{
		Link: node.HostLink, Switch: node.InsideBridge(owner), MAC: mac(n), Addrs: []netip.Prefix{netip.PrefixFrom(addr(n), 24)},
		Gateways: []netip.Addr{addr(routerNumber)}, GatewayMAC: mac(routerNumber), Metric: uplinkMetric,
	}, nil
}

// natOf returns the NAT that a host is behind, and the host whose NAT it is. Without NAT, that name is empty.
func (l *Lab) natOf(ctx context.Context, host string) (owner string, nat node.NAT, err error) {
	info, err := l.node(UnderlayName).Info(ctx)
	if err != nil {
		return "", nat, l.explain(UnderlayName, err)
	}
	for _, c := range info.Children {
		owner, ok := node.RouterHost(c.Name)
		if !ok {
			continue
		}
		router, err := l.node(c.Name).Info(ctx)
		if err != nil {
			return "", nat, l.explain(c.Name, err)
		}
		if router.NAT != nil && slices.Contains(router.NAT.Hosts, host) {
			return owner, *router.NAT, nil
		}
	}
	return "", nat, nil
}

// cutBetween returns the two ports between which to cut two hosts.
func (l *Lab) cutBetween(ctx context.Context, a, b string) (node.Cut, error) {
	cut := node.Cut{A: a, B: b}
	ownerA, _, err := l.natOf(ctx, a)
	if err != nil {
		return cut, err
	}
	ownerB, _, err := l.natOf(ctx, b)
	if err != nil || ownerA == ownerB { // the two are on one switch
		return cut, err
	}
	if ownerA != "" {
		cut.A = node.RouterOf(ownerA)
	}
	if ownerB != "" {
		cut.B = node.RouterOf(ownerB)
	}
	return cut, nil
}
