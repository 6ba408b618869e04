package cli

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"weft/prog/api"
	"weft/prog/words"
)

func (a *app) trace() *cobra.Command {
	var family int
	cmd := &cobra.Command{
		Use: "trace SRC DST [PORT[/PROTO] | icmp]", Short: "send a packet from a container, and show where it ends",
		Long: `Sends one packet from SRC to DST as if SRC had sent it, and shows each hop that the kernels of both
hosts report: links, routes, policies, rules of other programs that drop it, the tunnel, and the
answer. SRC is a container or a host of the network, on any host. DST may also be an address
outside. Both are named as in weft policy explain. PROTO is tcp (the default: a SYN), udp (one
datagram) or sctp. Without a port it sends an echo request.

Times count from the first sight of the packet on each host. The exit code is 0 if an answer came
back or the packet left the network, and 1 if it ended before.` + exitHelp,
		Example: "  weft trace shop/web shop/db 5432\n  weft trace shop/web 192.0.2.53 53/udp\n  weft trace h1 shop/db icmp --family 6\n  weft trace shop/web shop/db 80 --json",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) < 2 || len(args) > 3 {
				return errors.New("want SRC DST [PORT[/PROTO] | icmp], such as shop/web shop/db 5432/tcp")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			req := api.TraceRequest{Source: args[0], Destination: args[1], Family: family}
			if family != 0 && family != 4 && family != 6 {
				return words.Misused(fmt.Errorf("--family %d: want 4 or 6", family))
			}
			if len(args) == 3 {
				var err error
				if req.Port, req.Protocol, err = parsePort(args[2]); err != nil {
					return words.Misused(err)
				}
			}
			r, err := a.client().Trace(cmd.Context(), req)
			if err != nil {
				return err
			}
			if err := a.show(r, func() { printTrace(a.out, r) }); err != nil {
				return err
			}
			if !r.Passed() {
				return errFailed
			}
			return nil
		},
	}
	cmd.Flags().IntVar(&family, "family", 0, "4 or 6: the IP version (default: the first one that both ends have)")
	return cmd
}

// printTrace prints the hops, and where the packet ended.
func printTrace(w io.Writer, r api.TraceReply) {
	what := r.Protocol
	if r.Port != 0 {
		what = fmt.Sprintf("%d/%s", r.Port, strings.ToLower(r.Protocol))
	}
	fmt.Fprintf(w, "%s (%v) → %s (%v), %s\n", partyName(r.Source), r.From, partyName(r.Destination), r.To, what)
	host := ""
	for _, h := range r.Hops {
		if h.Host != host {
			host = h.Host
			fmt.Fprintln(w, host)
		}
		text := h.What
		if h.Detail != "" {
			text += ": " + h.Detail
		}
		fmt.Fprintf(w, "%9.2f ms  %-11s  %-6s  %s\n", h.At*1000, h.Stage, h.Verdict, text)
	}
	for _, text := range r.Incomplete {
		fmt.Fprintln(w, "incomplete:", text)
	}
	trip := ""
	if r.RoundTrip != nil {
		trip = fmt.Sprintf(" (round trip %.2f ms)", *r.RoundTrip*1000)
	}
	fmt.Fprintf(w, "%s: %s%s\n", strings.ToUpper(r.Result), r.Ended, trip)
}
