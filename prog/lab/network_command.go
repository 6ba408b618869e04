package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/spf13/cobra"
)

// changes holds the flags of weft lab network.
type changes struct {
	mtu    int
	second bool
	metric int
	routes map[string]int
	rules  []string
}

func networkCommand(name *string) *cobra.Command {
	var c changes
	cmd := &cobra.Command{
		Use: "network HOST", Short: "change a host's own network: its MTU, a second link, a route's MTU, a firewall",
		Long: "Change a host's own network, like its operator, a VPN or a firewall would. The changes last until the host reboots.",
		Example: "  weft lab network h1 --mtu 9000\n  weft lab network h2 --second-link --metric 50\n" +
			"  weft lab network h2 --route 192.0.2.0/24=1280\n  weft lab network h3 --firewall /etc/iptables/rules.v4",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := c.check(); err != nil {
				return err
			}
			l, err := Open(*name)
			if err != nil {
				return err
			}
			return c.apply(cmd.Context(), l, args[0])
		},
	}
	f := cmd.Flags()
	f.IntVar(&c.mtu, "mtu", 0, "MTU of eth0 and of the switch's port, bytes")
	f.BoolVar(&c.second, "second-link", false, "add eth1, on another switch (198.51.100.0/24 and 2001:db8:1::/64)")
	f.IntVar(&c.metric, "metric", 0, "metric of default routes through eth1 (0: no such routes); default routes through eth0 have 100")
	f.StringToIntVar(&c.routes, "route", nil, "PREFIX=MTU: set the MTU of the route to a prefix, bytes")
	f.StringArrayVar(&c.rules, "firewall", nil, "load rules from a file: output of nft or iptables-save (for IPv6 if the file's name ends with v6)")
	return cmd
}

func (c changes) check() error {
	switch {
	case c.metric != 0 && !c.second:
		return errors.New("lab: --metric is for the routes of a second link: add --second-link")
	case c.metric < 0 || c.mtu < 0:
		return errors.New("lab: want a metric and MTUs of at least 0")
	case c.mtu == 0 && !c.second && len(c.routes)+len(c.rules) == 0:
		return errors.New("lab: nothing to change: use --mtu, --second-link, --route or --firewall")
	}
	return nil
}

func (c changes) apply(ctx context.Context, l *Lab, host string) error {
	if c.mtu > 0 {
		if err := l.SetMTU(ctx, host, c.mtu); err != nil {
			return err
		}
	}
	if c.second {
		if err := l.AddLink(ctx, host, c.metric); err != nil {
			return err
		}
	}
	for to, mtu := range c.routes {
		prefix, err := netip.ParsePrefix(to)
		if err != nil {
			return fmt.Errorf("lab: %q is no prefix: want one such as 192.0.2.0/24", to)
		}
		if err := l.SetRouteMTU(ctx, host, prefix, mtu); err != nil {
			return err
		}
	}
	for _, file := range c.rules {
		data, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("lab: %w", err)
		}
		if err := l.LoadRules(ctx, host, file, data); err != nil {
			return err
		}
	}
	return nil
}
