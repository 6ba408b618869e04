package cli

import (
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"weft/prog/api"
	"weft/prog/words"
)

func (a *app) status() *cobra.Command {
	cmd := &cobra.Command{
		Use: "status", Short: "show the state of this host and its network", Args: cobra.NoArgs,
		Long: "Shows the state of the agent, the mesh and the addresses, and exits with 4 while this host is not ready.\nEach subcommand shows one part in detail." + exitHelp,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := a.client().Report(cmd.Context())
			if err == nil {
				err = a.show(r, func() { printStatus(a.out, r) })
			}
			if err == nil && !r.Ready {
				return errNotReady
			}
			return err
		},
	}
	cmd.AddCommand(
		&cobra.Command{
			Use: "connections", Short: "show the tunnels to other peers", Args: cobra.NoArgs,
			Long: connectionsHelp,
			RunE: a.printReport(func(r api.Report) any { return r.Router.Connections }, printConnections),
		},
		&cobra.Command{
			Use: "peers", Short: "show the members of the mesh", Args: cobra.NoArgs,
			RunE: a.printReport(func(r api.Report) any { return r.Router.Peers }, printPeers),
		},
		&cobra.Command{
			Use: "targets", Short: "show the hosts that this host joins", Args: cobra.NoArgs,
			RunE: a.printReport(func(r api.Report) any { return r.Router.Targets }, printTargets),
		},
		&cobra.Command{
			Use: "ipam", Short: "show which peers own which addresses", Args: cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				r, err := a.reportWithUsage(cmd.Context())
				if err != nil {
					return err
				}
				return a.show(r.IPAM, func() { printIPAM(a.out, r) })
			},
		},
		a.statusDNS(), a.statusPolicy(),
	)
	a.addWatch(cmd)
	return cmd
}

// printReport returns a command that fetches the report and prints one part of it.
func (a *app) printReport(part func(api.Report) any, print func(io.Writer, api.Report)) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, _ []string) error {
		r, err := a.client().Report(cmd.Context())
		if err != nil {
			return err
		}
		return a.show(part(r), func() { print(a.out, r) })
	}
}

// reportWithUsage returns the report, with the usage of addresses that each peer itself
// reports.
func (a *app) reportWithUsage(ctx context.Context) (api.Report, error) {
	client := a.client()
	r, err := client.Report(ctx)
	if err != nil || len(r.IPAM.Owners) == 0 { // an agent that waits for a network has no ring and cannot ask peers
		return r, err
	}
	usage, err := client.Usage(ctx)
	for i, o := range r.IPAM.Owners {
		if u, ok := usage[o.Peer]; ok {
			r.IPAM.Owners[i].Usage = &u
		}
	}
	return r, err
}

func (a *app) report() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use: "report [-f TEMPLATE]", Short: "print the whole state as JSON, or with a Go template", Args: cobra.NoArgs,
		Example: "  weft report -f '{{range .router.peers}}{{.nickname}} {{.state}}{{\"\\n\"}}{{end}}'\n  weft report -f '{{json .router.targets}}'",
		RunE: func(cmd *cobra.Command, _ []string) error {
			t, err := reportTemplate(format)
			if err != nil {
				return words.Misused(fmt.Errorf("-f: %w", err))
			}
			r, err := a.reportWithUsage(cmd.Context())
			if err != nil {
				return err
			}
			if format == "" {
				a.json = true
				return a.show(r, nil)
			}
			return a.fill(t, r)
		},
	}
	cmd.Flags().StringVarP(&format, "format", "f", "", "a Go template; fields have their JSON names, and the function json prints a value as JSON")
	return cmd
}

// block prints right-aligned `Key: value` lines, as Weave's status does.
type block struct{ w io.Writer }

func (b block) line(key, format string, args ...any) {
	fmt.Fprintf(b.w, "%15s: %s\n", key, fmt.Sprintf(format, args...))
}

func printStatus(w io.Writer, r api.Report) {
	b := block{w}
	b.line("Version", "%s", r.Version)
	if !r.Ready {
		b.line("Not ready", "%s", r.NotReady)
	}
	for _, warning := range r.Warnings {
		b.line("Warning", "%s", warning)
	}
	for _, x := range r.Rejections {
		b.line("Turned away", "%s (%s, last %s ago): %s", x.Addr, words.Count(x.Count, "time"), age(x.Last), x.Reason)
	}
	fmt.Fprintln(w)
	rt := r.Router
	b.line("Service", "router")
	b.line("Protocol", "weft %d", rt.Protocol)
	b.line("Name", "%s(%s)", rt.ID, rt.Nickname)
	b.line("Cluster", "%s", orDash(rt.Cluster))
	b.line("Encryption", "always; WireGuard, %s", orDash(rt.Datapath))
	b.line("Targets", "%d", len(rt.Targets))
	b.line("Connections", "%s", countConnections(rt.Connections))
	reachable := 0
	for _, p := range rt.Peers {
		if p.Self || p.State == "running" {
			reachable++
		}
	}
	b.line("Peers", "%d (%d reachable, with %s)", len(rt.Peers), reachable, words.Count(inState(rt.Connections, api.ConnDirect), "direct connection"))
	if len(rt.Relays) > 0 {
		b.line("Relay", "this host forwards for %s of hosts", words.Count(len(rt.Relays)/2, "pair"))
	}
	b.line("Node", "%s", orDash(join(rt.Node, " ")))
	b.line("MTU", "%d", rt.MTU)
	if !rt.IPv6 {
		b.line("IPv6", "disabled on this host: the overlay carries IPv4 only here")
	}
	if rt.Exposed {
		b.line("Exposed", "yes: the underlay reaches containers through this host")
	}
	fmt.Fprintln(w)
	b.line("Service", "ipam")
	b.line("Status", "%s", r.IPAM.Status)
	b.line("Range", "%s", orDash(r.IPAM.Range))
	b.line("Range6", "%s", orDash(r.IPAM.Range6))
	if r.IPAM.Conflict != "" {
		b.line("Conflict", "%s", r.IPAM.Conflict)
	}
	fmt.Fprintln(w)
	printDNS(w, r.DNS)
	fmt.Fprintln(w)
	printPolicy(w, r.Policy)
	if r.CNI != nil {
		fmt.Fprintln(w)
		printCNI(w, *r.CNI)
	}
}

func printCNI(w io.Writer, c api.CNI) {
	b := block{w}
	b.line("Service", "cni")
	b.line("Config", "%s (CNI %s)", c.Config, c.Version)
	b.line("Plugins", "%s", strings.Join(c.Plugins, ", "))
	if len(c.Missing) > 0 {
		b.line("Missing", "%s", strings.Join(c.Missing, ", "))
	}
}

func printTargets(w io.Writer, r api.Report) {
	t := newTable(w)
	for _, x := range r.Router.Targets {
		note := x.Error
		if x.Discovered {
			note = strings.TrimSuffix("found on the LAN: "+x.Error, ": ")
		}
		t.row(x.Host, x.State, note)
	}
	t.flush()
}

// barWidth is the width in characters of a bar for the whole universe.
const barWidth = 20

func printIPAM(w io.Writer, r api.Report) {
	fmt.Fprintf(w, "%s  %s  %s\n", r.IPAM.Status, orDash(r.IPAM.Range), orDash(r.IPAM.Range6))
	if r.IPAM.Ring != "" {
		fmt.Fprintf(w, "ring %s, generation %d\n", r.IPAM.Ring, r.IPAM.Generation)
	}
	if v := r.IPAM.Vote; v != nil {
		fmt.Fprintf(w, "voters: %s\n", strings.Join(v.Known, " "))
	}
	t := newTable(w)
	for _, o := range r.IPAM.Owners {
		note := "(no answer)"
		switch {
		case o.Usage != nil:
			note = fmt.Sprintf("(%d active)", o.Usage.Active)
		case !o.Self && !o.Reachable:
			note = "- unreachable!"
		}
		t.row(fmt.Sprintf("%s(%s)", o.Peer, o.Nickname), bar(o.Percent), words.Count(o.Slots, "IP"), fmt.Sprintf("(%04.1f%% of total)", o.Percent), note)
	}
	t.flush()
	if len(r.IPAM.Excluded) > 0 {
		fmt.Fprintf(w, "excluded here: %s\n", join(r.IPAM.Excluded, " "))
	}
	for _, l := range r.IPAM.Lost {
		fmt.Fprintf(w, "lost: %s had %v, which %s owns now; its container is cut off\n", l.Endpoint, l.Address, l.Owner)
	}
	if r.IPAM.Conflict != "" {
		fmt.Fprintln(w, "conflict:", r.IPAM.Conflict)
	}
}

// bar draws a share of the universe. Even the smallest share is visible.
func bar(percent float64) string {
	const eighths = " ▏▎▍▌▋▊▉"
	n := int(percent*barWidth*8/100 + 0.5)
	if n == 0 && percent > 0 {
		n = 1
	}
	full, part := n/8, []rune(eighths)[n%8]
	text := strings.Repeat("█", full)
	if full < barWidth {
		text += string(part) + strings.Repeat(" ", barWidth-full-1)
	}
	return "▕" + text + "▏"
}

// table prints aligned columns.
type table struct{ w *tabwriter.Writer }

func newTable(w io.Writer) table { return table{tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)} }

func (t table) row(cells ...string) {
	fmt.Fprintln(t.w, strings.TrimRight(strings.Join(cells, "\t"), "\t"))
}

func (t table) flush() { t.w.Flush() }

func join[T fmt.Stringer](list []T, sep string) string {
	words := make([]string, len(list))
	for i, v := range list {
		words[i] = v.String()
	}
	return strings.Join(words, sep)
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func age(t time.Time) time.Duration { return time.Since(t).Round(time.Second) }
