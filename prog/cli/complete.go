package cli

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"weft/prog/api"
)

// completeWithin bounds how long the Tab key waits for the agent.
const completeWithin = 2 * time.Second

// candidates asks the agent for words that an argument may be. Each may have a description after a tab.
type candidates func(context.Context, *api.Client) ([]string, error)

// completions gives arguments and flags of commands their candidates. Commands are named without "weft".
func (a *app) completions(root *cobra.Command) {
	complete := func(command string, of func(arg int) candidates) {
		cmd, _, err := root.Find(strings.Fields(command))
		if err != nil || cmd == root {
			panic("there is no command " + command)
		}
		cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
			return a.candidates(cmd.Context(), of(len(args)), args, begun)
		}
	}
	each := func(c candidates) func(int) candidates { return func(int) candidates { return c } }
	first := func(n int, c candidates) func(int) candidates {
		return func(arg int) candidates {
			if arg < n {
				return c
			}
			return nil
		}
	}
	complete("rmpeer", each(others))
	complete("forget", each(targets))
	complete("policy explain", first(2, endpoints))
	complete("trace", first(2, endpoints))
	complete("policy get", first(1, policies))
	complete("policy delete", each(policies))
	complete("detach", first(1, containers))
	complete("ps", each(containers))
	complete("dns-lookup", first(1, names))
	complete("token revoke", each(tokens))
}

// completeFlag gives a flag its candidates.
func (a *app) completeFlag(cmd *cobra.Command, flag string, of candidates) {
	err := cmd.RegisterFlagCompletionFunc(flag, func(cmd *cobra.Command, _ []string, begun string) ([]string, cobra.ShellCompDirective) {
		return a.candidates(cmd.Context(), of, nil, begun)
	})
	if err != nil {
		panic(err) // the command has no such flag
	}
}

// candidates returns those that begin with what the user has typed, without those that are given already.
func (a *app) candidates(ctx context.Context, of candidates, given []string, begun string) (out []string, _ cobra.ShellCompDirective) {
	if of == nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	all, err := of(ctx, a.client().Within(completeWithin))
	if err != nil {
		cobra.CompDebugln(err.Error(), false)
		return nil, cobra.ShellCompDirectiveError
	}
	for _, one := range all {
		word, _, _ := strings.Cut(one, "\t")
		if strings.HasPrefix(word, begun) && word != "" && !slices.Contains(given, word) {
			out = append(out, one)
		}
	}
	slices.Sort(out)
	return slices.Compact(out), cobra.ShellCompDirectiveNoFileComp
}

// others are the nicknames of other hosts, or the ids of hosts that share a nickname.
func others(ctx context.Context, c *api.Client) (out []string, err error) {
	r, err := c.Report(ctx)
	count := map[string]int{}
	for _, p := range r.Router.Peers {
		count[p.Nickname]++
	}
	for _, p := range r.Router.Peers {
		switch {
		case p.Self:
		case count[p.Nickname] > 1:
			out = append(out, p.ID+"\t"+p.Nickname+", "+p.State)
		default:
			out = append(out, p.Nickname+"\t"+p.ID+", "+p.State)
		}
	}
	return out, err
}

func targets(ctx context.Context, c *api.Client) (out []string, err error) {
	r, err := c.Report(ctx)
	for _, t := range r.Router.Targets {
		out = append(out, t.Host+"\t"+t.State)
	}
	return out, err
}

// endpoints are NAMESPACE/NAME of all endpoints of the network.
func endpoints(ctx context.Context, c *api.Client) (out []string, err error) {
	list, err := c.NetworkEndpoints(ctx)
	for _, e := range list.Endpoints {
		if e.Name != "" {
			out = append(out, e.Namespace+"/"+e.Name)
		}
	}
	return out, err
}

// endpointsAndNamespaces are all endpoints, and NAMESPACE/ of all namespaces with endpoints.
func endpointsAndNamespaces(ctx context.Context, c *api.Client) ([]string, error) {
	out, err := endpoints(ctx, c)
	for _, e := range slices.Clone(out) {
		namespace, _, _ := strings.Cut(e, "/")
		out = append(out, namespace+"/\tall of this namespace")
	}
	return out, err
}

func policies(ctx context.Context, c *api.Client) (out []string, err error) {
	list, err := c.Policies(ctx)
	for _, p := range list {
		out = append(out, p.String())
	}
	return out, err
}

// containers are the ids and names of containers on this host.
func containers(ctx context.Context, c *api.Client) (out []string, err error) {
	r, err := c.Report(ctx)
	for _, e := range r.Endpoints {
		if e.Name != "" {
			out = append(out, e.Name+"\t"+e.ContainerID)
		} else {
			out = append(out, e.ContainerID)
		}
	}
	return out, err
}

func names(ctx context.Context, c *api.Client) (out []string, err error) {
	list, err := c.Names(ctx)
	for _, n := range list {
		out = append(out, n.Name)
	}
	return out, err
}

func tokens(ctx context.Context, c *api.Client) (out []string, err error) {
	list, err := c.Tokens(ctx)
	for _, t := range list {
		out = append(out, t.ID+"\t"+t.Name)
	}
	return out, err
}
