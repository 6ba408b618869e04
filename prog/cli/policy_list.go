package cli

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"weft/prog/api"
)

func (a *app) policyList() *cobra.Command {
	var namespace string
	cmd := &cobra.Command{
		Use: "list", Short: "list all policies, and the namespaces with labels", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := a.client().Policies(cmd.Context())
			if err != nil {
				return err
			}
			if namespace != "" {
				list = slices.DeleteFunc(list, func(p api.Policy) bool {
					return cmp.Or(p.Namespace, p.Name) != namespace // the document of a namespace itself has its name in Name
				})
			}
			return a.show(append([]api.Policy{}, list...), func() { printPolicies(a.out, list) })
		},
	}
	namespaceFlag(cmd, &namespace, "list only this namespace")
	a.jsonFlag(cmd)
	return cmd
}

func printPolicies(w io.Writer, list []api.Policy) {
	var policies, namespaces []api.Policy
	for _, p := range list {
		if p.Kind == api.KindNamespace {
			namespaces = append(namespaces, p)
		} else {
			policies = append(policies, p)
		}
	}
	if len(policies) == 0 {
		fmt.Fprintln(w, "no policies: everything is allowed (`weft policy apply -f FILE` adds one)")
	} else {
		t := newTable(w)
		t.row("NAMESPACE", "NAME", "SELECTS", "TYPES", "ENDPOINTS", "MODE", "WRITTEN", "BY")
		for _, p := range policies {
			t.row(p.Namespace, p.Name, orDash(p.Selector), orDash(strings.Join(p.Types, ",")), fmt.Sprint(p.Endpoints), mode(p.Audit, p.Unread), written(p), orDash(p.Writer))
		}
		t.flush()
	}
	if len(namespaces) == 0 {
		return
	}
	fmt.Fprintln(w)
	t := newTable(w)
	t.row("NAMESPACE", "WRITTEN", "BY")
	for _, p := range namespaces {
		t.row(p.Name, written(p), orDash(p.Writer))
	}
	t.flush()
}

// written returns the approximate age of a document, as kubectl formats it.
func written(p api.Policy) string {
	d := time.Since(p.Written)
	switch {
	case p.Written.IsZero():
		return "-"
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", max(0, int(d.Seconds()))) // another host's clock may be ahead
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}
