package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"weft/mesh/directory"
	"weft/prog/agent/config"
	"weft/prog/api"
	"weft/prog/dns"
	"weft/prog/words"
)

// dnsFlags holds the name server's flags of launch and agent.
type dnsFlags struct {
	domain  string
	forward []string
}

func (d *dnsFlags) add(flags *pflag.FlagSet, o *config.DNS) {
	flags.BoolVar(&o.Off, "no-dns", false, "run no name server on this host")
	flags.StringVar(&d.domain, "dns-domain", dns.DefaultDomain, "the domain of the network's names; the same on all hosts")
	flags.DurationVar(&o.TTL, "dns-ttl", dns.DefaultTTL, "TTL of answers about the network, whole seconds up to 24h")
	flags.BoolVar(&o.PreferLocal, "dns-prefer-local", false, "answer with this host's endpoints first if several have the same name")
	flags.StringSliceVar(&d.forward, "dns-forward", nil, "DOMAIN=ADDRESS[:PORT]: forward queries for DOMAIN to this server, \".\" for all; repeatable")
	flags.BoolVar(&o.Fallback, "dns-fallback", false, "configure this host's own resolver as second nameserver of containers; read site/docs/dns.md first")
	flags.StringVar(&o.ResolvConf, "resolv-conf", dns.DefaultResolvConf, "file with this host's own nameservers, which get queries for names outside the network")
}

// complete checks the flags, and sets the name server's options from them.
func (d *dnsFlags) complete(o *config.DNS) error {
	o.Domain = strings.ToLower(strings.Trim(d.domain, "."))
	if err := (dns.Config{Domain: o.Domain}).Check(); err != nil {
		return fmt.Errorf("--dns-domain: %w", err)
	}
	if o.TTL < 0 || o.TTL > dns.MaxTTL || o.TTL%time.Second != 0 {
		return fmt.Errorf("--dns-ttl %v: want whole seconds, 0s to 24h", o.TTL)
	}
	for _, f := range d.forward {
		domain, server, ok := strings.Cut(f, "=")
		if !ok || domain == "" {
			return fmt.Errorf("--dns-forward %s: want DOMAIN=ADDRESS, such as corp=192.0.2.53, or .=192.0.2.53 for all names", f)
		}
		if domain != "." {
			domain = strings.ToLower(strings.Trim(domain, "."))
			if err := directory.CheckName(domain); err != nil {
				return fmt.Errorf("--dns-forward %s: %w", f, err)
			}
		}
		addr, err := parseServer(server)
		if err != nil {
			return fmt.Errorf("--dns-forward %s: %w", f, err)
		}
		if o.Forward == nil {
			o.Forward = map[string][]netip.AddrPort{}
		}
		o.Forward[domain] = append(o.Forward[domain], addr)
		if err := (dns.Config{Domain: o.Domain, Forward: o.Forward}).Check(); err != nil {
			return fmt.Errorf("--dns-forward %s: %w", f, err)
		}
	}
	return nil
}

// parseServer reads ADDRESS or ADDRESS:PORT.
func parseServer(s string) (netip.AddrPort, error) {
	bare := s
	if inner, ok := strings.CutPrefix(s, "["); ok && strings.HasSuffix(s, "]") {
		bare = strings.TrimSuffix(inner, "]")
	}
	if addr, err := words.Addr(bare); err == nil {
		return netip.AddrPortFrom(addr, 53), nil
	}
	addr, err := netip.ParseAddrPort(s)
	if err != nil || addr.Port() == 0 || addr.Addr().Zone() != "" {
		return addr, fmt.Errorf("%q is no address of a server: want one such as 192.0.2.53 or [2001:db8::53]:5353", s)
	}
	return addr, nil
}

func (a *app) dnsAdd() *cobra.Command {
	return a.dnsChange(&cobra.Command{
		Use: "dns-add [ADDRESS...] CONTAINER [-h NAME] | ADDRESS... -h NAME", Short: "give a container or an address a name in the DNS domain",
		Long: `Gives a container that is attached to this host another name in the DNS domain, until it
is detached. It also restores a container's own name after dns-remove. ADDRESS is the address
of a container on this host, of this host itself, or one outside the network: then the name
stays until it is removed. With CONTAINER, ADDRESS must be one of its addresses. Without -h,
the name is CONTAINER's.` + exitHelp,
		Example: "  weft dns-add web -h shop.weft.internal\n  weft dns-add 192.0.2.17 -h printer",
	}, func(ctx context.Context, req api.NameRequest, called string) error {
		if req.Name = cmp.Or(req.Name, called); req.Name == "" {
			return words.Misused(errors.New("no name: give a name with -h NAME"))
		}
		return a.did(a.client().AddName(ctx, req))
	})
}

func (a *app) dnsRemove() *cobra.Command {
	return a.dnsChange(&cobra.Command{
		Use: "dns-remove [ADDRESS...] CONTAINER [-h NAME] | ADDRESS... -h NAME", Short: "remove names that dns-add gave, or a container's own name",
		Long: `Removes names that dns-add gave on this host, or a container's own name, for example before
it ends: it keeps running, but new clients do not find it. Without -h it removes all its
names. The own name comes back with dns-add CONTAINER -h NAME, or when it is attached again.` + exitHelp,
		Example: "  weft dns-remove web\n  weft dns-remove web -h shop",
	}, func(ctx context.Context, req api.NameRequest, _ string) error {
		return a.did(a.client().RemoveName(ctx, req))
	})
}

// dnsChange makes a command with containers, addresses and, with -h as in Weave, a name as arguments.
// run also gets the container's own name.
func (a *app) dnsChange(cmd *cobra.Command, run func(ctx context.Context, req api.NameRequest, called string) error) *cobra.Command {
	req := api.NameRequest{}
	cmd.Args = cobra.MinimumNArgs(1)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		for _, word := range args {
			addr, err := netip.ParseAddr(word)
			switch {
			case err == nil:
				req.Addresses = append(req.Addresses, addr.Unmap())
			case req.Container != "":
				return words.Misused(fmt.Errorf("got %s and %s: want one container", req.Container, word))
			default:
				req.Container = word
			}
		}
		if req.Container == "" {
			return run(cmd.Context(), req, "")
		}
		c, err := findContainer(cmd.Context(), req.Container)
		if err != nil { // without Docker, Weft may still know the container by this name
			c.id = req.Container
			if !strings.Contains(c.id, "/") {
				c.name = c.id
			}
		}
		req.Container = c.id
		return run(cmd.Context(), req, c.name)
	}
	nameFlag(cmd, &req.Name)
	return cmd
}

// nameFlag adds -h NAME. Cobra would take -h for help.
func nameFlag(cmd *cobra.Command, name *string) {
	cmd.Flags().Bool("help", false, "help for "+cmd.Name())
	cmd.Flags().StringVarP(name, "hostname", "h", "", "the name, with or without the domain")
}

func (a *app) dnsLookup() *cobra.Command {
	return &cobra.Command{
		Use: "dns-lookup NAME", Short: "look up a name of the network", Args: cobra.ExactArgs(1),
		Long: "Prints the addresses of a name, as containers on this host would get them. For an ADDRESS it\nprints its names." + exitHelp,
		RunE: func(cmd *cobra.Command, args []string) error {
			found, err := a.client().Lookup(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return a.show(found, func() {
				_, reverse := netip.ParseAddr(args[0])
				for _, n := range found {
					if reverse == nil {
						fmt.Fprintln(a.out, n.Name)
						continue
					}
					for _, addr := range n.Addresses {
						fmt.Fprintln(a.out, addr)
					}
				}
			})
		},
	}
}

func (a *app) statusDNS() *cobra.Command {
	return &cobra.Command{
		Use: "dns", Short: "show all names of the network", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			names, err := a.client().Names(cmd.Context())
			if err != nil {
				return err
			}
			return a.show(append([]api.Name{}, names...), func() { printNames(a.out, names) })
		},
	}
}

// printNames prints name, address, container id and peer, as Weave does.
func printNames(w io.Writer, names []api.Name) {
	t := newTable(w)
	for _, n := range names {
		id, _, _ := strings.Cut(n.Endpoint, "/")
		note := ""
		if n.Unreachable {
			note = "- unreachable!"
		}
		for _, addr := range n.Addresses {
			t.row(n.Name, addr.String(), shortID(id), fmt.Sprintf("%s(%s)", n.Peer, n.Nickname), note)
		}
	}
	t.flush()
}

// printDNS prints the name server's section of weft status.
func printDNS(w io.Writer, d api.DNS) {
	b := block{w}
	b.line("Service", "dns")
	if d.Off {
		b.line("Status", "off: this host was launched with --no-dns")
		return
	}
	b.line("Domain", "%s", d.Domain)
	if d.Problem != "" {
		b.line("Problem", "%s", d.Problem)
	}
	b.line("Listening", "%s", orDash(join(d.Listening, " ")))
	var upstreams []string
	for _, u := range d.Upstreams {
		text := u.Server
		if u.Domain != "" {
			text = u.Domain + "=" + text
		}
		switch {
		case u.Own:
			text += " (this server itself: not used)"
		case u.Error != "":
			text += " (" + u.Error + ")"
		}
		upstreams = append(upstreams, text)
	}
	if d.NoUpstream != "" {
		upstreams = append(upstreams, "none for all other names: "+d.NoUpstream)
	}
	b.line("Upstream", "%s", orDash(strings.Join(upstreams, ", ")))
	b.line("TTL", "%v", time.Duration(d.TTL*float64(time.Second)))
	b.line("Entries", "%d", d.Entries)
}
