package cli

import (
	"crypto/rand"
	"errors"
	"fmt"
	"math"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"weft/mesh/secret"
	"weft/prog/api"
	"weft/prog/words"
)

// token is the command for tokens. Without a subcommand it makes the secret of a new network, as earlier
// releases did.
func (a *app) token() *cobra.Command {
	cmd := &cobra.Command{
		Use: "token", Short: "create, list and revoke the tokens by which hosts join", Args: cobra.NoArgs,
		Long: `A token admits hosts to this network for a time. It does not contain the network's secret.
On the host that joins: weft launch --token - HOST, with the token on standard input.`,
		RunE: func(*cobra.Command, []string) error {
			fmt.Fprintln(a.err, "weft: to make the secret of a new network, use `weft token new`; to admit a host to this network, use `weft token create`")
			return a.newSecret()
		},
	}
	cmd.AddCommand(a.tokenCreate(), a.tokenList(), a.tokenRevoke(), a.tokenNew())
	return cmd
}

// tokenNew makes the secret of a network before any host founds it, for tools that install many hosts.
func (a *app) tokenNew() *cobra.Command {
	return &cobra.Command{
		Use: "new", Short: "make the secret of a network that does not exist yet", Args: cobra.NoArgs,
		Long: "Prints the secret of a new network. Give it to all hosts (weft launch --token FILE).\nEach host that has it can admit others. An existing network's secret is in /var/lib/weft/secret.",
		RunE: func(*cobra.Command, []string) error { return a.newSecret() },
	}
}

func (a *app) newSecret() error {
	t, err := secret.New(rand.Reader)
	if err != nil {
		return err
	}
	return a.show(tokened{Token: t.Reveal()}, func() { fmt.Fprintln(a.out, t.Reveal()) })
}

func (a *app) tokenCreate() *cobra.Command {
	var ttl time.Duration
	var req api.TokenRequest
	cmd := &cobra.Command{
		Use: "create", Short: "create a token by which hosts join this network", Args: cobra.NoArgs,
		Long: `Prints a token. Until it expires, it admits as many hosts as --uses says. Its time runs on the
clock of the member that admits. Members keep only its hash.`,
		Example: "  weft token create                          # for one host, for a day\n  weft token create --uses 20 --ttl 1h --name rack7",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if ttl < time.Second || ttl%time.Second != 0 {
				return words.Misused(fmt.Errorf("--ttl %v: want whole seconds, at least 1s", ttl))
			}
			req.TTL = int64(ttl / time.Second)
			r, err := a.client().CreateToken(cmd.Context(), req)
			if err != nil {
				return err
			}
			return a.show(tokened{r.Token, r.ID}, func() { fmt.Fprintln(a.out, r.Token) })
		},
	}
	flags := cmd.Flags()
	flags.DurationVar(&ttl, "ttl", 24*time.Hour, "how long it admits hosts, at most 8784h (366 days)")
	flags.Uint32Var(&req.Uses, "uses", 1, "how many hosts it admits")
	flags.StringVar(&req.Name, "name", "", "a name for lists and logs")
	flags.BoolVar(&req.Admits, "admits", false, "hosts that it admits may admit and ban others, without the network's secret")
	return cmd
}

func (a *app) tokenList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "list the tokens of this network, without their secrets", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := a.client().Tokens(cmd.Context())
			if err != nil {
				return err
			}
			return a.show(append([]api.Token{}, list...), func() { a.printTokens(list, time.Now()) })
		},
	}
}

func (a *app) printTokens(list []api.Token, now time.Time) {
	w := tabwriter.NewWriter(a.out, 0, 8, 2, ' ', 0)
	defer w.Flush()
	fmt.Fprintln(w, "ID\tNAME\tSTATE\tUSED\tADMITTED")
	for _, t := range list {
		hosts := strings.Join(t.Hosts, ", ")
		if hosts == "" {
			hosts = "-"
		}
		name := t.Name
		if name == "" {
			name = "-"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%d of %d\t%s\n", t.ID, name, tokenState(t, now), t.Used, t.Uses, hosts)
	}
}

func tokenState(t api.Token, now time.Time) string {
	switch {
	case t.Revoked:
		return "revoked"
	case !now.Before(t.Expires):
		return "expired"
	case t.Used >= t.Uses:
		return "used up"
	}
	left := t.Expires.Sub(now)
	if left > 48*time.Hour {
		return fmt.Sprintf("valid for %d days", int(math.Floor(left.Hours()/24)))
	}
	return "valid for " + left.Truncate(time.Second).String()
}

func (a *app) tokenRevoke() *cobra.Command {
	return &cobra.Command{
		Use: "revoke TOKEN...", Short: "have tokens admit no more hosts", Args: cobra.MinimumNArgs(1),
		Long: "Revokes tokens, given by the start of their ids or by their names. Hosts that they admitted stay\nmembers: weft rmpeer --ban removes a host.",
		RunE: func(cmd *cobra.Command, names []string) error {
			revoked := []api.RevokeReply{}
			var failed error
			for _, name := range names {
				r, err := a.client().RevokeToken(cmd.Context(), api.RevokeRequest{Token: name})
				if err != nil {
					failed = errors.Join(failed, err)
					continue
				}
				revoked = append(revoked, r)
			}
			return errors.Join(failed, a.show(revoked, func() {
				for _, r := range revoked {
					fmt.Fprintf(a.out, "token %s admits no more hosts\n", r.ID)
				}
			}))
		},
	}
}

func (a *app) unban() *cobra.Command {
	return &cobra.Command{
		Use: "unban PEER...", Short: "end the ban of hosts", Args: cobra.MinimumNArgs(1),
		Long: "Ends the ban of peers, given by their ids. Their agents join again by themselves.",
		RunE: func(cmd *cobra.Command, ids []string) error {
			for _, id := range ids {
				if err := a.client().Unban(cmd.Context(), api.UnbanRequest{Peer: id}); err != nil {
					return err
				}
			}
			return a.did(nil)
		},
	}
}
