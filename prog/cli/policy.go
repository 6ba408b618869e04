package cli

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"sigs.k8s.io/yaml"

	"weft/prog/api"
	"weft/prog/words"
)

// defaultNamespace is the namespace of policies whose names have no namespace, as in kubectl.
const defaultNamespace = "default"

func (a *app) policy() *cobra.Command {
	cmd := &cobra.Command{
		Use: "policy", Short: "allow and deny traffic between containers, and explain it", Args: cobra.NoArgs,
		Long: `Policies are ordinary NetworkPolicy manifests (networking.k8s.io/v1). A policy applied on
one host is enforced on every host, including those that join later. A Namespace manifest
gives a namespace labels. Under Kubernetes, policies come from its API: change them with
kubectl. The commands list, get and explain work there too.` + exitHelp,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.policyApply(), a.policyList(), a.policyGet(), a.policyDelete(), a.policyExplain())
	return cmd
}

// manifestFile is the flag -f. It keeps all given files, in order to refuse more than one file:
// otherwise the last file would silently win.
type manifestFile struct{ files []string }

func (m *manifestFile) add(flags *pflag.FlagSet) {
	flags.StringArrayVarP(&m.files, "filename", "f", nil, "the manifest, YAML or JSON; -: standard input")
}

// read returns the text of the manifest, and its name for errors.
func (m *manifestFile) read(in io.Reader) (text, name string, err error) {
	if len(m.files) > 1 {
		return "", "", words.Misused(errors.New("one -f at a time: put several documents into one file, with --- between them"))
	}
	name = m.files[0]
	if name == "-" {
		name = "standard input"
	} else {
		f, err := os.Open(name)
		if err != nil {
			return "", "", words.Misused(fmt.Errorf("-f: %w", err))
		}
		defer f.Close()
		in = f
	}
	data, err := io.ReadAll(io.LimitReader(in, api.MaxBody+1))
	if err != nil {
		return "", "", words.Misused(fmt.Errorf("-f: %w", err))
	}
	if len(data) > api.MaxBody {
		return "", "", words.Misused(fmt.Errorf("-f: %s is larger than %d MiB: is it a manifest?", name, api.MaxBody>>20))
	}
	return string(data), name, nil
}

// inFile adds the manifest's name to an error of the agent, which has only line and field.
func inFile(name string, err error) error {
	if e, ok := errors.AsType[*api.Error](err); ok && e.Code == api.CodeBadRequest && name != "" {
		return fmt.Errorf("%s: %w", name, err)
	}
	return err
}

// applying holds the flags of commands that change policies.
type applying struct {
	dryRun, wait bool
	timeout      time.Duration
}

func (o *applying) add(flags *pflag.FlagSet) {
	flags.BoolVar(&o.dryRun, "dry-run", false, "only show what would change")
	flags.BoolVar(&o.wait, "wait", false, "wait until every reachable peer enforces the change")
	flags.DurationVar(&o.timeout, "timeout", time.Minute, "how long --wait waits")
}

func (o *applying) check() error {
	switch {
	case o.dryRun && o.wait:
		return words.Misused(errors.New("--dry-run changes nothing: omit --wait"))
	case o.timeout <= 0:
		return words.Misused(fmt.Errorf("--timeout %v: want more than 0s", o.timeout))
	}
	return nil
}

// show prints the result of a change, and with --wait waits until it is in force.
func (o *applying) show(ctx context.Context, a *app, r api.ApplyReply) error {
	if err := a.show(r, func() { printApplied(a.out, r, o.dryRun) }); err != nil || !o.wait {
		return err
	}
	return a.waitInForce(ctx, r.Generation, o.timeout)
}

func (a *app) policyApply() *cobra.Command {
	var file manifestFile
	var then applying
	cmd := &cobra.Command{
		Use: "apply -f FILE|-", Short: "add or change policies", Args: cobra.NoArgs,
		Long: `Applies all documents of a manifest: NetworkPolicies, and Namespaces for their labels; also
lists of them, as kubectl get -o yaml prints them. If the API server would refuse a document,
it is refused with its line and field, and no document is applied. A policy with the
annotation weft.internal/audit: "true" is in audit mode: traffic that it would deny passes,
and weft policy explain --last-drops shows it.

With --dry-run nothing changes: it shows which current connections, and which pairs of
endpoints, would get another verdict. With --wait it returns once every reachable peer
enforces the change. It fails if one does not within --timeout; the change stays applied.` + exitHelp,
		Example: "  weft policy apply -f shop.yaml --dry-run\n  weft policy apply -f shop.yaml --wait\n  weft policy get shop/db | weft policy apply -f -",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(file.files) == 0 {
				return words.Misused(errors.New("no manifest: give it with -f FILE, or -f - for standard input"))
			}
			if err := then.check(); err != nil {
				return err
			}
			text, name, err := file.read(a.in)
			if err != nil {
				return err
			}
			r, err := a.client().ApplyPolicy(cmd.Context(), api.ApplyRequest{Manifest: text, DryRun: then.dryRun})
			if err != nil {
				return inFile(name, err)
			}
			return then.show(cmd.Context(), a, r)
		},
	}
	file.add(cmd.Flags())
	then.add(cmd.Flags())
	return cmd
}

func (a *app) policyDelete() *cobra.Command {
	var file manifestFile
	var namespace string
	var then applying
	cmd := &cobra.Command{
		Use: "delete [NAMESPACE/]NAME... | -f FILE|-", Short: "delete policies",
		Long: `Deletes policies by name, or those that a manifest names. If one of them does not exist, it
deletes none. namespace/NAME removes the labels of a namespace.` + exitHelp,
		Example: "  weft policy delete shop/db-access\n  weft policy delete -n shop db-access web-access --dry-run\n  weft policy delete -f shop.yaml",
		Args: func(_ *cobra.Command, args []string) error {
			switch {
			case len(file.files) > 0 && (len(args) > 0 || namespace != ""):
				return errors.New("give names or -f, not both; with -f, the namespaces are those of the manifest")
			case len(file.files) == 0 && len(args) == 0:
				return errors.New("which policies? Give their names, or a manifest with -f FILE")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			req, name := api.DeleteRequest{DryRun: then.dryRun}, ""
			err := then.check()
			if err != nil {
				return err
			}
			if len(file.files) > 0 {
				if req.Manifest, name, err = file.read(a.in); err != nil {
					return err
				}
			}
			for _, word := range args {
				ref, err := parseRef(word, namespace)
				if err != nil {
					return words.Misused(err)
				}
				req.Refs = append(req.Refs, ref)
			}
			r, err := a.client().DeletePolicy(cmd.Context(), req)
			if err != nil {
				return inFile(name, err)
			}
			return then.show(cmd.Context(), a, r)
		},
	}
	file.add(cmd.Flags())
	then.add(cmd.Flags())
	namespaceFlag(cmd, &namespace, "the namespace of names without one (default \""+defaultNamespace+"\")")
	return cmd
}

func namespaceFlag(cmd *cobra.Command, namespace *string, usage string) {
	cmd.Flags().StringVarP(namespace, "namespace", "n", "", usage)
}

// parseRef parses NAME, NAMESPACE/NAME, namespace/NAME for a namespace itself, and names as apply
// prints them. A policy in a namespace that is called "namespace" needs -n.
func parseRef(word, namespace string) (api.DocumentRef, error) {
	ref := api.DocumentRef{Kind: api.KindPolicy, Namespace: cmp.Or(namespace, defaultNamespace)}
	parts := strings.Split(word, "/")
	if len(parts) == 3 && strings.EqualFold(parts[0], api.KindPolicy) {
		parts = parts[1:]
	} else if len(parts) == 2 && strings.EqualFold(parts[0], api.KindNamespace) {
		ref, parts = api.DocumentRef{Kind: api.KindNamespace}, parts[1:]
	}
	if len(parts) > 2 || slices.Contains(parts, "") {
		return ref, fmt.Errorf("%q is no name of a policy: want NAME, NAMESPACE/NAME, or namespace/NAME for a namespace", word)
	}
	if len(parts) == 2 {
		ref.Namespace = parts[0]
	}
	ref.Name = parts[len(parts)-1]
	return ref, nil
}

// printApplied prints the change of each document, as kubectl does.
func printApplied(w io.Writer, r api.ApplyReply, dryRun bool) {
	for _, c := range r.Changes {
		name := c.DocumentRef.String()
		if c.Kind != api.KindNamespace {
			name = "networkpolicy/" + name
		}
		if dryRun {
			name, c.Change = name+" "+c.Change, "(dry run)"
		}
		fmt.Fprintln(w, name, c.Change)
	}
	if dryRun {
		if len(r.Changes) > 0 {
			fmt.Fprintln(w)
		}
		printEffects(w, r.Effects)
	}
}

// printEffects prints the result of a dry run; nil means no effects.
func printEffects(w io.Writer, e *api.Effects) {
	if e == nil {
		e = &api.Effects{}
	}
	if len(e.Flows) == 0 {
		where := ""
		if len(e.Silent) > 0 {
			where = " on the peers that answered"
		}
		fmt.Fprintln(w, "nothing would change for any current connection"+where)
	} else {
		fmt.Fprintln(w, "current connections with a new verdict:")
		t := newTable(w)
		t.row("PEER", "PROTO", "SOURCE", "DESTINATION", "NOW", "THEN", "WHY")
		for _, f := range e.Flows {
			t.row(f.Peer, f.Protocol, side(f.Source, f.From), side(f.Destination, f.To), allowed(!f.Allowed), allowed(f.Allowed), f.Why)
		}
		t.flush()
	}
	if e.MoreFlows > 0 {
		fmt.Fprintf(w, "and %d more\n", e.MoreFlows)
	}
	if len(e.Pairs) > 0 {
		fmt.Fprintln(w, "\nallowed destination ports between endpoints:")
		t := newTable(w)
		t.row("FROM", "TO", "BEFORE", "AFTER")
		for _, p := range e.Pairs {
			t.row(p.From, p.To, p.Before, p.After)
		}
		t.flush()
	}
	if e.MorePairs > 0 {
		fmt.Fprintf(w, "and %d more\n", e.MorePairs)
	}
	if len(e.Silent) > 0 {
		fmt.Fprintf(w, "\nwithout the connections of these peers, which did not answer: %s\n", strings.Join(e.Silent, ", "))
	}
}

// side formats one end of a flow, with the endpoint's name. Protocols without ports have port 0.
func side(a netip.AddrPort, name string) string {
	text := a.String()
	if a.Port() == 0 {
		text = a.Addr().String()
	}
	if name != "" {
		text += "(" + name + ")"
	}
	return text
}

func allowed(yes bool) string {
	if yes {
		return "allowed"
	}
	return "denied"
}

func (a *app) policyGet() *cobra.Command {
	var namespace, output string
	cmd := &cobra.Command{
		Use: "get [NAMESPACE/]NAME", Short: "print a policy's manifest", Args: cobra.ExactArgs(1),
		Long: `Prints the manifest as it was applied, as input for apply. namespace/NAME prints the
manifest with the labels of a namespace.` + exitHelp,
		Example: "  weft policy get shop/db-access\n  weft policy get -n shop db-access -o json",
		RunE: func(cmd *cobra.Command, args []string) error {
			if output != "yaml" && output != "json" {
				return words.Misused(fmt.Errorf("-o %s: want yaml or json", output))
			}
			ref, err := parseRef(args[0], namespace)
			if err != nil {
				return words.Misused(err)
			}
			list, err := a.client().Policies(cmd.Context())
			if err != nil {
				return err
			}
			i := slices.IndexFunc(list, func(p api.Policy) bool { return p.DocumentRef == ref })
			if i < 0 {
				return fmt.Errorf("there is no %s %s: `weft policy list` shows all", ref.Kind, ref.Name+inNamespace(ref))
			}
			if a.json || output == "json" {
				return a.printManifestJSON(list[i].Manifest)
			}
			fmt.Fprintln(a.out, strings.TrimRight(list[i].Manifest, "\n"))
			return nil
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "yaml", "yaml or json")
	namespaceFlag(cmd, &namespace, "the namespace of a name without one (default \""+defaultNamespace+"\")")
	return cmd
}

func inNamespace(ref api.DocumentRef) string {
	if ref.Namespace == "" {
		return ""
	}
	return " in namespace " + ref.Namespace
}

func (a *app) printManifestJSON(manifest string) error {
	data, err := yaml.YAMLToJSON([]byte(manifest))
	if err != nil {
		return fmt.Errorf("the stored manifest is unreadable: %w", err)
	}
	var out bytes.Buffer
	if err := json.Indent(&out, data, "", "  "); err != nil {
		return err
	}
	fmt.Fprintln(a.out, out.String())
	return nil
}
