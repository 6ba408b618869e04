package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"weft/prog/api"
	"weft/prog/words"
)

func (a *app) statusPolicy() *cobra.Command {
	return &cobra.Command{
		Use: "policy", Short: "show policies, and the peers that do not enforce them yet", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.client().PolicyStatus(cmd.Context())
			if err != nil {
				return err
			}
			return a.show(s, func() { printPolicyStatus(a.out, s) })
		},
	}
}

func printPolicyStatus(w io.Writer, s api.PolicyStatus) {
	isolated, dropped, tried := 0, uint64(0), 0
	var behind []api.PeerPolicies
	for _, p := range s.Peers {
		isolated += p.Isolated
		dropped += p.Dropped
		if !p.Current || p.Error != "" {
			behind = append(behind, p)
		}
	}
	for _, p := range s.Policies {
		if p.Audit {
			tried++
		}
	}
	b := block{w}
	b.line("Service", "policy")
	b.line("Source", "%s", orDash(s.Source))
	b.line("Generation", "%s", orDash(s.Generation))
	if tried > 0 {
		b.line("Policies", "%d (%d of them in audit mode)", len(s.Policies), tried)
	} else {
		b.line("Policies", "%d", len(s.Policies))
	}
	b.line("Isolated", "%s", words.Count(isolated, "endpoint"))
	b.line("Dropped", "%s", words.Count(dropped, "packet"))
	exempt := strings.Join(s.Exempt, "; ")
	if exempt == "" {
		exempt = "nothing"
	}
	b.line("Exempt", "%s", exempt)
	if len(s.Policies) > 0 {
		fmt.Fprintln(w)
		t := newTable(w)
		t.row("POLICY", "MODE", "PEERS", "ENDPOINTS")
		for _, p := range s.Policies {
			t.row(p.Policy, mode(p.Audit, p.Unread), fmt.Sprintf("%d/%d", p.Peers, len(s.Peers)), fmt.Sprint(p.Endpoints))
		}
		t.flush()
	}
	printUnread(w, s.Policies)
	if len(behind) > 0 {
		fmt.Fprintln(w)
		t := newTable(w)
		t.row("PEER", "PROBLEM")
		for _, p := range behind {
			t.row(peerName(p), lack(p))
		}
		t.flush()
	}
}

// mode returns whether a policy is enforced, in audit mode, or not fully understood.
func mode(audit bool, unread []string) string {
	switch {
	case audit && len(unread) > 0:
		return "audit,partial"
	case audit:
		return "audit"
	case len(unread) > 0:
		return "partial"
	}
	return "enforced"
}

// printUnread prints the parts of policies that this version does not understand.
func printUnread(w io.Writer, list []api.PolicyInForce) {
	list = slices.DeleteFunc(slices.Clone(list), func(p api.PolicyInForce) bool { return len(p.Unread) == 0 })
	if len(list) == 0 {
		return
	}
	fmt.Fprintln(w, "\nnot fully understood; the parts below allow nothing (correct them, or update Weft):")
	t := newTable(w)
	t.row("POLICY", "WHAT")
	for _, p := range list {
		for _, what := range p.Unread {
			t.row(p.Policy, what)
		}
	}
	t.flush()
}

// printPolicy prints the policy section of weft status.
func printPolicy(w io.Writer, r api.PolicyReport) {
	b := block{w}
	b.line("Service", "policy")
	if r.Current {
		b.line("Status", "in force")
	} else {
		b.line("Status", "this host does not enforce all known policies yet: see `weft status policy` and the agent's log")
	}
	policies := fmt.Sprint(r.Policies)
	if r.Audit > 0 {
		policies += fmt.Sprintf(" (%d of them in audit mode)", r.Audit)
	}
	if r.Partial > 0 {
		policies += fmt.Sprintf(" (%d of them not fully understood: see `weft status policy`)", r.Partial)
	}
	b.line("Policies", "%s", policies)
	b.line("Isolated", "%s", words.Count(r.Isolated, "endpoint"))
	b.line("Dropped", "%s", words.Count(r.Dropped["ingress"]+r.Dropped["egress"], "packet"))
}

// peerName returns a peer's name as all output shows it.
func peerName(p api.PeerPolicies) string { return p.Peer + "(" + p.Nickname + ")" }

// lack returns the reason why a peer does not enforce the current policies.
func lack(p api.PeerPolicies) string {
	switch {
	case p.Error != "":
		return p.Error
	case p.Unreachable:
		return "unreachable: it gets the changes when it is back"
	case p.Generation == "":
		return "it enforces nothing yet"
	}
	return "it still enforces generation " + p.Generation
}

// pollPolicies is the interval at which waitInForce asks the peers.
const pollPolicies = 250 * time.Millisecond

// waitInForce waits until every reachable peer enforces a generation.
func (a *app) waitInForce(ctx context.Context, generation string, timeout time.Duration) error {
	limited, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	last, err := a.followPolicies(limited, generation)
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("applied, but waiting was interrupted: %w", ctx.Err())
	case err != nil:
		return fmt.Errorf("applied, but the agent does not report where the change is in force: %w", err)
	case !last.over():
		return last.failure(timeout)
	}
	for _, p := range last.unreachable {
		fmt.Fprintf(a.err, "%s is unreachable: it gets the change when it is back\n", peerName(p))
	}
	if !a.json {
		fmt.Fprintf(a.out, "in force on %s\n", words.Count(len(last.done), "peer"))
	}
	return nil
}

// followPolicies asks the peers until all enforce a generation or the context ends. On a terminal it
// shows progress.
func (a *app) followPolicies(ctx context.Context, generation string) (last waiting, err error) {
	client, terminal := a.client(), isTerminal(a.err)
	for {
		s, err := client.PolicyStatus(ctx)
		switch {
		case err == nil:
			last = waitingFor(s, generation)
		case ctx.Err() == nil:
			return last, err
		}
		if terminal {
			fmt.Fprintf(a.err, "\r\x1b[Kin force on %d of %s", len(last.done), words.Count(last.reachable(), "peer"))
		}
		if !last.over() {
			select {
			case <-ctx.Done():
			case <-time.After(pollPolicies):
				continue
			}
		}
		if terminal { // clear the progress line
			fmt.Fprint(a.err, "\r\x1b[K")
		}
		return last, nil
	}
}

// waiting divides the peers: peers that enforce a generation, peers that do not yet, and unreachable
// peers.
type waiting struct{ done, lacking, unreachable []api.PeerPolicies }

// waitingFor sorts the peers. If policies were changed again meanwhile, a peer that is up to date
// counts as done: it has this generation's documents or newer documents.
func waitingFor(s api.PolicyStatus, generation string) (out waiting) {
	overtaken := s.Generation != generation
	for _, p := range s.Peers {
		switch {
		case p.Generation == generation && p.Error == "", overtaken && p.Current:
			out.done = append(out.done, p)
		case p.Unreachable:
			out.unreachable = append(out.unreachable, p)
		default:
			out.lacking = append(out.lacking, p)
		}
	}
	return out
}

// over reports whether all reachable peers are done. An empty list of peers is no answer, since an
// answer has at least this peer.
func (x waiting) over() bool { return len(x.done) > 0 && len(x.lacking) == 0 }

func (x waiting) reachable() int { return len(x.done) + len(x.lacking) }

// failure returns an error that names the peers that do not enforce the change.
func (x waiting) failure(timeout time.Duration) error {
	if len(x.lacking) == 0 {
		return errors.New("applied, but no peer reported its policies within " + timeout.String() + ": see `weft status policy`")
	}
	var late []string
	for _, p := range x.lacking {
		late = append(late, peerName(p)+" ("+lack(p)+")")
	}
	return fmt.Errorf("applied, but after %v %d of %s did not enforce the change: %s; `weft status policy` shows the progress of all peers",
		timeout, len(late), words.Count(x.reachable(), "peer"), strings.Join(late, ", "))
}
