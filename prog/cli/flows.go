package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"weft/prog/api"
	"weft/prog/words"
)

// flowsPeriod is the pause between two questions of flows --follow. The agent reads counters every 3 s.
const flowsPeriod = time.Second

func (a *app) flows() *cobra.Command {
	var req api.FlowsRequest
	var follow bool
	var since time.Duration
	cmd := &cobra.Command{
		Use: "flows", Short: "list connections of containers, allowed and denied",
		Long: `Lists connections of this host's containers that the host has seen, the latest one last: who
connected to whom, how many bytes were sent and received, and whether policies allow it. For
packets that policies dropped it says why. --all-hosts asks all hosts of the network; a
connection between two hosts is then listed by both.

--from and --to select an end by NAMESPACE/NAME, NAME, NAMESPACE/ (all of a namespace), the
name of a host, an address or a CIDR. --verdict audit selects connections that pass, but that
policies in audit mode would deny.

--follow shows what changes from now on, until interrupted: new connections, the bytes of those
that go on, and ends. With --since it first shows what happened before. With --json it prints
one flow on each line.

A host remembers its last flows in memory only. Payload is never read.` + exitHelp,
		Example: "  weft flows --since 5m\n  weft flows --verdict denied --all-hosts\n  weft flows --from shop/web --to shop/db --port 5432\n  weft flows --follow --to kube-system/",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if since < 0 || cmd.Flags().Changed("since") && since == 0 {
				return words.Misused(fmt.Errorf("--since %v: want more than 0, such as 5m", since))
			}
			req.Since = since.Seconds()
			if follow {
				return a.followFlows(cmd.Context(), req)
			}
			r, err := a.client().Flows(cmd.Context(), req)
			if err != nil {
				return err
			}
			if r.Flows == nil { // an empty list instead of null
				r.Flows = []api.Flow{}
			}
			if err := a.show(r, func() { printFlows(a.out, r.Flows, time.Local, true) }); err != nil {
				return err
			}
			return (&hostNotes{out: a.err}).print(r.Hosts, req.AllHosts)
		},
	}
	flags := cmd.Flags()
	flags.BoolVarP(&follow, "follow", "f", false, "show changes until interrupted")
	flags.StringVar(&req.From, "from", "", "only connections from this NAMESPACE/NAME, NAME, NAMESPACE/, host, address or CIDR")
	flags.StringVar(&req.To, "to", "", "only connections to this NAMESPACE/NAME, NAME, NAMESPACE/, host, address or CIDR")
	a.completeFlag(cmd, "from", endpointsAndNamespaces)
	a.completeFlag(cmd, "to", endpointsAndNamespaces)
	flags.Uint16Var(&req.Port, "port", 0, "only connections to this port")
	flags.StringVar(&req.Protocol, "protocol", "", "only tcp, udp, sctp or icmp")
	flags.StringVar(&req.Verdict, "verdict", "", "only allowed, denied or audit")
	flags.DurationVar(&since, "since", 0, "only flows with a packet or a change in this time, such as 5m")
	flags.BoolVar(&req.AllHosts, "all-hosts", false, "ask all hosts of the network")
	a.jsonFlag(cmd)
	return cmd
}

// followFlows prints flows as they change, until ctx ends. An agent that restarts is asked again.
func (a *app) followFlows(ctx context.Context, req api.FlowsRequest) error {
	notes := &hostNotes{out: a.err, told: map[string]string{}}
	quiet := req.Since == 0
	if quiet { // the first answer only says where to go on
		req.Most = 1
	}
	for first := true; ; first = false {
		r, err := a.client().Flows(ctx, req)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && first:
			return err
		case err != nil:
			fmt.Fprintln(a.err, "weft:", err)
		default:
			if req.After == nil {
				req.After = map[string]uint64{}
			}
			for _, h := range r.Hosts {
				if h.Next > 0 {
					req.After[h.Peer] = h.Next
				}
			}
			if first && quiet {
				for i := range r.Hosts {
					r.Hosts[i].More = 0
				}
				req.Most = 0
			} else if err := a.printNews(r.Flows, first); err != nil {
				return err
			}
			req.Since = 0 // the cursors select
			if err := notes.print(r.Hosts, req.AllHosts); err != nil && first {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(min(a.watchPeriod, flowsPeriod)):
		}
	}
}

func (a *app) printNews(list []api.Flow, first bool) error {
	if !a.json {
		printFlows(a.out, list, time.Local, first)
		return nil
	}
	enc := json.NewEncoder(a.out)
	for _, f := range list {
		if err := enc.Encode(f); err != nil {
			return err
		}
	}
	return nil
}

// hostNotes prints what is missing in the answers of hosts, each thing once.
type hostNotes struct {
	out  io.Writer
	told map[string]string // by host; nil: everything is told
}

// print fails if no host of the answer remembers flows.
func (n *hostNotes) print(hosts []api.FlowsHost, all bool) error {
	off := 0
	for _, h := range hosts {
		var text []string
		if h.Error != "" {
			text = append(text, "no answer: "+h.Error)
		}
		if h.Off {
			off++
			text = append(text, "launched with --no-flows: it remembers no flows")
		}
		if h.Lost > 0 {
			text = append(text, words.Count(h.Lost, "event")+" of connections lost since its agent started: some flows are missing or incomplete")
		}
		if h.More > 0 {
			text = append(text, words.Count(h.More, "older flow")+" omitted: select fewer with --since, --from, --to or --port")
		}
		line := fmt.Sprintf("weft: %s: %s", flowHost(h.Peer, h.Nickname), strings.Join(text, "; "))
		if len(text) == 0 || n.told[h.Peer] == line {
			continue
		}
		if n.told != nil {
			n.told[h.Peer] = line
		}
		fmt.Fprintln(n.out, line)
	}
	if !all && off > 0 {
		return errors.New("this host remembers no flows: launch it without --no-flows, or ask the others with --all-hosts")
	}
	return nil
}

func flowHost(id, nickname string) string {
	if nickname == "" {
		return id
	}
	return nickname
}

// printFlows prints a line for each flow.
func printFlows(w io.Writer, list []api.Flow, zone *time.Location, head bool) {
	if len(list) == 0 {
		return
	}
	t := newTable(w)
	if head {
		t.row("TIME", "STATE", "VERDICT", "PROTOCOL", "FROM → TO", "SENT", "RECEIVED", "HOST", "WHY")
	}
	for _, f := range list {
		sent, received := flowBytes(f.SentBytes, f.SentPackets), flowBytes(f.ReceivedBytes, f.ReceivedPackets)
		if f.Verdict != api.FlowAllowed && f.SentBytes == 0 { // the kernel logs some of the dropped packets, without their sizes
			sent, received = fmt.Sprintf("%d×", f.SentPackets), "-"
		}
		t.row(f.Last.In(zone).Format(time.TimeOnly), flowState(f), f.Verdict, f.Protocol, flowEnd(f.Source, f.From)+" → "+flowEnd(f.Destination, f.To)+flowService(f.Service),
			sent, received, flowHost(f.Peer, f.Nickname), flowWhy(f))
	}
	t.flush()
}

// flowState says whether a flow goes on.
func flowState(f api.Flow) string {
	switch {
	case f.Ended:
		return "ended"
	case f.Last.Sub(f.Start) < time.Second:
		return "new"
	}
	return "open"
}

func flowBytes(bytes, packets uint64) string {
	if bytes == 0 && packets == 0 {
		return "-"
	}
	return byteCount(bytes)
}

// byteCount returns bytes with a unit that needs at most four digits.
func byteCount(n uint64) string {
	if n < 10000 {
		return fmt.Sprintf("%d B", n)
	}
	value := float64(n) / 1024
	for _, unit := range []string{"KiB", "MiB", "GiB"} {
		if value < 1000 {
			return fmt.Sprintf("%.1f %s", value, unit)
		}
		value /= 1024
	}
	return fmt.Sprintf("%.1f TiB", value)
}

// flowEnd names an end: its name with the port, and the address if it has no name.
func flowEnd(a netip.AddrPort, e api.FlowEnd) string {
	name := ""
	switch {
	case e.Node:
		name = "host " + e.Name
	case e.Name != "" && e.Namespace != "":
		name = e.Namespace + "/" + e.Name
	case e.Name != "":
		name = e.Name
	}
	return side(a, name)
}

func flowService(a netip.AddrPort) string {
	if !a.IsValid() {
		return ""
	}
	return fmt.Sprintf(" (service %v)", a)
}

// flowWhy returns the rule that allows a flow, or why it is denied.
func flowWhy(f api.Flow) string {
	if f.Why != "" {
		return strings.TrimSpace(f.Direction + ": " + f.Why)
	}
	return strings.Join(slices.DeleteFunc([]string{f.Policy, f.Rule}, func(s string) bool { return s == "" }), " ")
}
