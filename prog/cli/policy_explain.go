package cli

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"weft/prog/api"
	"weft/prog/words"
)

func (a *app) policyExplain() *cobra.Command {
	var lastDrops, verbose bool
	cmd := &cobra.Command{
		Use: "explain SRC DST [PORT[/PROTO] | icmp] | --last-drops [-v]", Short: "explain whether a connection is allowed",
		Long: `Explains whether SRC may connect to DST. For both ends it shows which policies select the
endpoint, which rule allows the connection or why each rule does not match, and the kernel's
verdict. SRC and DST are an address, NAME, NAMESPACE/NAME, HOST/NAME, a name in the DNS
domain, or a container's id. PROTO is tcp (the default), udp or sctp. icmp asks about ICMP,
such as ping; in IPv6 about ICMPv6. Without a port it lists the ports that can be reached.

With --last-drops it explains the packets that policies dropped on this host, newest first.
It also lists, marked, the packets that policies in audit mode would have dropped.

The exit code is also 0 if the connection is denied.` + exitHelp,
		Example: "  weft policy explain shop/web shop/db 5432\n  weft policy explain 10.32.0.4 192.0.2.53 53/udp\n  weft policy explain shop/web shop/db icmp\n  weft policy explain shop/web shop/db\n  weft policy explain --last-drops -v",
		Args: func(_ *cobra.Command, args []string) error {
			switch {
			case lastDrops && len(args) > 0:
				return errors.New("--last-drops shows all packets that were dropped here: it takes no SRC and DST")
			case !lastDrops && (len(args) < 2 || len(args) > 3):
				return errors.New("want SRC DST [PORT[/PROTO] | icmp], such as shop/web shop/db 5432/tcp, or --last-drops")
			case !lastDrops && verbose:
				return errors.New("--verbose needs --last-drops: the explanation of one connection is always complete")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if lastDrops {
				drops, err := a.client().Drops(cmd.Context())
				if err != nil {
					return err
				}
				return a.show(append([]api.Drop{}, drops...), func() { printDrops(a.out, drops, verbose, time.Local) })
			}
			req := api.ExplainRequest{Source: args[0], Destination: args[1]}
			if len(args) == 3 {
				var err error
				if req.Port, req.Protocol, err = parsePort(args[2]); err != nil {
					return words.Misused(err)
				}
			}
			e, err := a.client().Explain(cmd.Context(), req)
			if err != nil {
				return err
			}
			return a.show(e, func() { printExplanation(a.out, e) })
		},
	}
	cmd.Flags().BoolVar(&lastDrops, "last-drops", false, "explain the packets that policies recently dropped on this host")
	cmd.Flags().BoolVarP(&verbose, "verbose", "v", false, "with --last-drops: explain each packet in full")
	return cmd
}

// icmp is the name of ICMP and ICMPv6 in questions; these protocols have no ports.
const icmp = "ICMP"

// parsePort parses PORT, PORT/PROTO or icmp.
func parsePort(s string) (port uint16, protocol string, err error) {
	if strings.EqualFold(s, icmp) {
		return 0, icmp, nil
	}
	number, protocol, given := strings.Cut(s, "/")
	if !given {
		protocol = "TCP"
	}
	protocol = strings.ToUpper(protocol)
	n, err := strconv.ParseUint(number, 10, 16)
	if err != nil || n == 0 || !slices.Contains([]string{"TCP", "UDP", "SCTP"}, protocol) {
		return 0, "", fmt.Errorf("%q is no port: want 1 to 65535 with an optional protocol, such as 80, 80/tcp, 53/udp or 5060/sctp; or icmp", s)
	}
	return uint16(n), protocol, nil
}

func printExplanation(w io.Writer, e api.Explanation) {
	what, asked := " on "+e.Port, "it"
	if e.Port == icmp {
		what = " with " + icmp
	}
	if e.Open != "" { // the question named no port: Open lists the ports that are open
		what, asked = "", "any port"
	}
	fmt.Fprintf(w, "%s → %s%s: %s\n", partyName(e.Source), partyName(e.Destination), what, headline(e))
	apart := slices.ContainsFunc(e.Verdicts, func(v api.Verdict) bool { return !alike(v, e.Verdicts[0]) })
	for i, v := range e.Verdicts {
		title := fmt.Sprintf("%s (%v → %v)", family(v.Source), v.Source, v.Destination)
		if same := slices.IndexFunc(e.Verdicts[:i], func(x api.Verdict) bool { return alike(x, v) }); same >= 0 {
			fmt.Fprintf(w, "\n%s: the same\n", title)
			continue
		}
		if apart && e.Open == "" {
			title += ": " + outcome(v)
		}
		if apart {
			fmt.Fprintln(w, "\n"+title)
		}
		if v.Exempt != "" {
			continue // the headline already gives the reason
		}
		printDecision(w, "Egress", v.Source, e.Source, v.Egress, asked)
		printDecision(w, "Ingress", v.Destination, e.Destination, v.Ingress, asked)
	}
}

func partyName(p api.Party) string {
	switch {
	case p.Endpoint != "":
		return p.Endpoint
	case p.Node && p.Peer != "":
		return "the host " + p.Peer
	}
	return p.Asked
}

func family(a netip.Addr) string {
	if a.Unmap().Is4() {
		return "IPv4"
	}
	return "IPv6"
}

// headline returns the answer to the question, whether the connection is allowed, in one line.
func headline(e api.Explanation) string {
	if len(e.Verdicts) == 0 {
		return "NO CONNECTION: source and destination have no addresses of the same family"
	}
	text, differs := outcome(e.Verdicts[0]), false
	var each []string
	for _, v := range e.Verdicts {
		if o := family(v.Source) + " " + outcome(v); !slices.Contains(each, o) {
			each = append(each, o)
		}
		if outcome(v) != text {
			differs = true
		}
	}
	if differs {
		text = strings.Join(each, "; ")
	}
	exempt := e.Verdicts[0].Exempt != "" && !differs
	switch {
	case exempt || e.Open == "":
	case e.Open == "all":
		text = "every port can be reached"
	case e.Open == "none":
		text = "no port can be reached"
	default:
		text = "these ports can be reached: " + e.Open
	}
	for _, v := range e.Verdicts {
		if differing(v.Egress) || differing(v.Ingress) {
			return text + "; BUT THE KERNEL DIFFERS, see below"
		}
	}
	return text
}

func differing(d api.Decision) bool { return d.Kernel != nil && d.Kernel.Differs }

// outcome describes a verdict, and at which end a connection is denied.
func outcome(v api.Verdict) string {
	var by []string
	if !v.Egress.Allowed {
		by = append(by, "by egress at the source")
	}
	if !v.Ingress.Allowed {
		by = append(by, "by ingress at the destination")
	}
	switch {
	case v.Exempt != "":
		return loud(v.Allowed) + "; policies do not apply: " + v.Exempt
	case v.Allowed:
		return "ALLOWED"
	}
	return strings.Join(append([]string{"DENIED"}, strings.Join(by, " and ")), ", ")
}

func loud(yes bool) string { return strings.ToUpper(allowed(yes)) }

// alike reports whether two verdicts only differ in their addresses. It ignores counters, which may
// change between the two queries.
func alike(a, b api.Verdict) bool { return reflect.DeepEqual(withoutAddresses(a), withoutAddresses(b)) }

func withoutAddresses(v api.Verdict) api.Verdict {
	names := strings.NewReplacer(v.Source.String(), "SRC", v.Destination.String(), "DST")
	v.Source, v.Destination = netip.Addr{}, netip.Addr{}
	v.Egress, v.Ingress = *anonymous(&v.Egress, names), *anonymous(&v.Ingress, names)
	return v
}

func anonymous(d *api.Decision, names *strings.Replacer) *api.Decision {
	if d == nil {
		return nil
	}
	out := *d
	out.Audit = anonymous(d.Audit, names)
	out.Misses = slices.Clone(d.Misses)
	for i := range out.Misses {
		out.Misses[i].Text = names.Replace(out.Misses[i].Text)
	}
	if d.By != nil {
		by := *d.By
		by.Text = names.Replace(by.Text)
		out.By = &by
	}
	if d.Kernel != nil {
		kernel := *d.Kernel
		kernel.Dropped = 0
		out.Kernel = &kernel
	}
	return &out
}

// printDecision prints how policies decide at one end of the connection.
func printDecision(w io.Writer, direction string, addr netip.Addr, p api.Party, d api.Decision, asked string) {
	fmt.Fprintln(w)
	switch {
	case d.Endpoint != "":
		where := ""
		if peer := cmp.Or(d.Peer, p.Peer); peer != "" {
			where = ", on " + peer
		}
		fmt.Fprintf(w, "%s at %s (%v%s)\n", direction, d.Endpoint, addr, where)
		if len(p.Labels) > 0 {
			fmt.Fprintln(w, "  its labels:", labelsText(p.Labels))
		}
		printLines(w, decisionLines(d, asked))
	case p.Node:
		fmt.Fprintf(w, "%s at %v (the host %s itself): policies do not apply to hosts\n", direction, addr, p.Peer)
	default:
		fmt.Fprintf(w, "%s at %v: no endpoint of the network has this address, so no policy selects it\n", direction, addr)
	}
}

func labelsText(labels map[string]string) string {
	var parts []string
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		parts = append(parts, key+"="+labels[key])
	}
	return strings.Join(parts, ",")
}

func printLines(w io.Writer, lines []string) {
	for _, line := range lines {
		fmt.Fprintln(w, "  "+line)
	}
}

// decisionLines describes the decision of one end: its policies, the reasons, audit mode and the kernel's verdict.
func decisionLines(d api.Decision, asked string) []string {
	out := []string{"no policy selects it: everything is allowed"}
	if len(d.Policies) > 0 {
		out = append([]string{"selected by " + strings.Join(d.Policies, ", ")}, reasonLines(d, asked)...)
	}
	if d.Audit != nil {
		out = append(out, auditLines(d, asked)...)
	}
	return append(out, kernelLines(d)...)
}

// reasonLines returns which rule allows the connection, or why each rule does not.
func reasonLines(d api.Decision, asked string) []string {
	switch {
	case d.Allowed && d.By != nil:
		return []string{"allowed by " + d.By.String()}
	case d.Allowed:
		return []string{"allowed"}
	}
	out := []string{"no rule allows " + asked + ":"}
	for _, miss := range d.Misses {
		out = append(out, "  "+miss.String())
	}
	return out
}

// auditLines describes what would change if policies in audit mode were enforced.
func auditLines(d api.Decision, asked string) []string {
	var tried []string
	for _, p := range d.Audit.Policies {
		if !slices.Contains(d.Policies, p) {
			tried = append(tried, p)
		}
	}
	out := []string{fmt.Sprintf("audit: it would be %s here if %s were enforced", loud(d.Audit.Allowed), cmp.Or(strings.Join(tried, ", "), "the policies in audit mode"))}
	for _, line := range reasonLines(*d.Audit, asked) {
		out = append(out, "  "+line)
	}
	return out
}

// kernelLines compares the decision with the kernel's verdict.
func kernelLines(d api.Decision) []string {
	switch k := d.Kernel; {
	case k == nil && d.Unasked == "":
		return nil
	case k == nil:
		return []string{"the kernel was not asked: " + d.Unasked}
	case k.Differs:
		return []string{
			fmt.Sprintf("THE KERNEL DIFFERS: its verdict for this packet is %s (%s)", loud(k.Allowed), kernelText(*k)),
			"  A change may not be applied yet: ask again in a few seconds. If the kernel still differs, see `weft status policy`,",
			fmt.Sprintf("  and `weft report` and the agent's log on %s.", cmp.Or(d.Peer, "that host")),
		}
	default:
		return []string{"the kernel agrees (" + kernelText(*k) + ")"}
	}
}

func kernelText(k api.Kernel) string {
	if k.Chain == "" {
		return "not isolated there"
	}
	return fmt.Sprintf("chain %s, %s dropped so far", k.Chain, words.Count(k.Dropped, "packet"))
}

// printDrops prints a line for each kind of dropped packet. With full it also prints why policies deny the packet.
func printDrops(w io.Writer, drops []api.Drop, full bool, zone *time.Location) {
	if len(drops) == 0 {
		fmt.Fprintln(w, "no known packet was dropped by a policy on this host (each host lists its own drops)")
		return
	}
	t := newTable(w)
	for _, d := range drops {
		mark := ""
		if d.Audit {
			mark = "audit, it passed: "
		}
		t.row(d.Last.In(zone).Format(time.DateTime), fmt.Sprintf("%d×", d.Count), d.Direction, d.Protocol,
			side(d.Source, d.From)+" → "+side(d.Dest, d.To), mark+d.Why())
		if full {
			t.flush() // the following lines must not widen the columns
			printLines(w, decisionLines(d.Decision, "it"))
		}
	}
	t.flush()
}
