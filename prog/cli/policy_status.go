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
		Use: "policy", Short: "show which policies are in force, and where not yet", Args: cobra.NoArgs,
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

// mode says whether a policy is in force, all of it, or only tried.
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

// printUnread says what of policies is not understood.
func printUnread(w io.Writer, list []api.PolicyInForce) {
	list = slices.DeleteFunc(slices.Clone(list), func(p api.PolicyInForce) bool { return len(p.Unread) == 0 })
	if len(list) == 0 {
		return
	}
	fmt.Fprintln(w, "\nnot read as it is written; what cannot be read allows nothing (correct it, or update Weft):")
	t := newTable(w)
	t.row("POLICY", "WHAT")
	for _, p := range list {
		for _, what := range p.Unread {
			t.row(p.Policy, what)
		}
	}
	t.flush()
}

// printPolicy prints the part of weft status that is about policies.
func printPolicy(w io.Writer, r api.PolicyReport) {
	b := block{w}
	b.line("Service", "policy")
	if r.Current {
		b.line("Status", "in force")
	} else {
		b.line("Status", "not all that is known is in force on this host yet: see `weft status policy` and the agent's log")
	}
	policies := fmt.Sprint(r.Policies)
	if r.Audit > 0 {
		policies += fmt.Sprintf(" (%d of them in audit mode)", r.Audit)
	}
	if r.Partial > 0 {
		policies += fmt.Sprintf(" (%d of them not understood completely: see `weft status policy`)", r.Partial)
	}
	b.line("Policies", "%s", policies)
	b.line("Isolated", "%s", words.Count(r.Isolated, "endpoint"))
	b.line("Dropped", "%s", words.Count(r.Dropped["ingress"]+r.Dropped["egress"], "packet"))
}

// peerName is a peer as all output names one.
func peerName(p api.PeerPolicies) string { return p.Peer + "(" + p.Nickname + ")" }

// lack is why a peer does not enforce what it should.
func lack(p api.PeerPolicies) string {
	switch {
	case p.Error != "":
		return p.Error
	case p.Unreachable:
		return "unreachable: it gets what is missing when it is back"
	case p.Generation == "":
		return "it enforces nothing yet"
	}
	return "it still enforces generation " + p.Generation
}

// pollPolicies is how long waitInForce leaves the peers alone between two questions.
const pollPolicies = 250 * time.Millisecond

// waitInForce waits until every peer that can be reached enforces a generation.
func (a *app) waitInForce(ctx context.Context, generation string, timeout time.Duration) error {
	limited, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	last, err := a.followPolicies(limited, generation)
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("applied, but no longer waited for: %w", ctx.Err())
	case err != nil:
		return fmt.Errorf("applied, but it is not known where it is in force: %w", err)
	case !last.over():
		return last.failure(timeout)
	}
	for _, p := range last.unreachable {
		fmt.Fprintf(a.err, "%s is unreachable: it gets this when it is back\n", peerName(p))
	}
	if !a.json {
		fmt.Fprintf(a.out, "in force on %s\n", words.Count(len(last.done), "peer"))
	}
	return nil
}

// followPolicies asks who enforces a generation until all do or the context ends, and shows
// a person how far it is.
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
		if terminal { // what comes next has the line for itself
			fmt.Fprint(a.err, "\r\x1b[K")
		}
		return last, nil
	}
}

// waiting is which peers enforce a generation.
type waiting struct{ done, lacking, unreachable []api.PeerPolicies }

// waitingFor sorts the peers. Where somebody has applied more since, whoever is up to date
// has this generation's documents too, or newer ones.
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

// over reports whether all have it. Nobody is not all: this peer itself is always there.
func (x waiting) over() bool { return len(x.done) > 0 && len(x.lacking) == 0 }

func (x waiting) reachable() int { return len(x.done) + len(x.lacking) }

// failure names the peers that are late.
func (x waiting) failure(timeout time.Duration) error {
	if len(x.lacking) == 0 {
		return errors.New("applied, but no peer said within " + timeout.String() + " what it enforces: see `weft status policy`")
	}
	var late []string
	for _, p := range x.lacking {
		late = append(late, peerName(p)+" ("+lack(p)+")")
	}
	return fmt.Errorf("applied, but after %v %d of %s did not enforce it: %s; `weft status policy` shows when they do",
		timeout, len(late), words.Count(x.reachable(), "peer"), strings.Join(late, ", "))
}
