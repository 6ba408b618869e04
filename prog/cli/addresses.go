package cli

import (
	"context"
	"fmt"
	"net"
	"net/netip"

	"weft/prog/words"
)

// askedAddresses parses the addresses that attach requests. It refuses prefix lengths: Weave isolates
// containers by subnet, and Weave's users must learn that Weft does not.
func askedAddresses(args []string) (out []netip.Addr, err error) {
	for _, s := range args {
		if instead := weaveAddress(s); instead != "" {
			return nil, fmt.Errorf("%s: %s", s, instead)
		}
		p, err := netip.ParsePrefix(s)
		if err == nil && p.Bits() != p.Addr().BitLen() {
			return nil, fmt.Errorf("%s: a container has no subnet of its own: give %s; `weft policy` isolates containers", s, p.Addr())
		}
		addr := p.Addr().Unmap()
		if err != nil {
			if addr, err = words.Addr(s); err != nil {
				return nil, err
			}
		}
		out = append(out, addr)
	}
	return out, nil
}

// addressesOf returns the addresses of a name in the network, or none if no agent runs.
func (a *app) addressesOf(ctx context.Context, name string) (out []netip.Addr) {
	found, err := a.client().Lookup(ctx, name)
	if err != nil {
		return nil
	}
	for _, n := range found {
		out = append(out, n.Addresses...)
	}
	return out
}

// checkListenAddr refuses an address that the agent could not listen on. An empty address means that it does
// not listen, and an empty host means all addresses.
func checkListenAddr(flag, s string) error {
	if s == "" {
		return nil
	}
	host, port, err := net.SplitHostPort(s)
	if err == nil {
		_, err = words.Port(port)
	}
	if err == nil && host != "" && host != "localhost" {
		_, err = netip.ParseAddr(host)
	}
	if err != nil {
		return fmt.Errorf("%s %s: want ADDRESS:PORT, such as 127.0.0.1:6784 or [::1]:6784, or an empty value for none", flag, s)
	}
	return nil
}
