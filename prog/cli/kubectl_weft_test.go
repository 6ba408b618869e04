package cli

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// kubectlStub replaces kubectl. It logs its arguments, and knows agents on node1 and node2, and two
// pods. Variables simulate failures: ABSENT: there are no agents; SILENT: these agents do not answer;
// NOTREADY: these are not ready; DOWN: the API server does not answer.
const kubectlStub = `#!/bin/sh
printf '%s\n' "$*" >>"$CALLS"
case "$*" in *"config view"*) printf shop; exit ;; esac
[ -z "$DOWN" ] || { echo "The connection to the server was refused" >&2; exit 1; }
case "$*" in
*" exec "*)
	for node in $SILENT; do
		case "$*" in *"agent-$node "*) echo "error: unable to upgrade connection" >&2; exit 1 ;; esac
	done
	echo "asked: $*"
	case "$*" in *"agent-$NOTREADY "*) echo "command terminated with exit code 4" >&2; exit 4 ;; esac ;;
*"get node node1 "*) echo node/node1 ;;
*"get node "*) ;;
*"-n shop get pod web-0 "*) printf 'Pod node2' ;;
*"-n shop get pod later "*) printf 'Pod ' ;;
*"get pod "*) ;;
*"get pods "*spec.nodeName=node[12],*) [ -n "$ABSENT" ] || printf 'agent-%s' "$(echo "$*" | sed 's/.*spec.nodeName=\(node.\).*/\1/')" ;;
*"get pods "*) [ -n "$ABSENT" ] || printf 'node2\nnode1\n' ;;
*) echo "the stub does not know: $*" >&2; exit 9 ;;
esac
`

// The kubectl plugin finds the right agent, accepts kubectl's flags at any position, and fails if no
// agent answers.
func TestKubectlPlugin(t *testing.T) {
	script, err := filepath.Abs("../../site/deploy/kubectl-weft")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "kubectl"), []byte(kubectlStub), 0o755); err != nil {
		t.Fatal(err)
	}
	const on1, on2 = "-n weft exec agent-node1 -c weft -- weft ", "-n weft exec agent-node2 -c weft -- weft "
	for _, c := range []struct {
		args, env string
		code      int
		out, errs string // each must contain this
		not       string // neither may contain this
	}{
		{args: "status", out: "== node1\nasked: " + on1 + "status\n== node2\nasked: " + on2 + "status\n"},
		{args: "status ipam --json", out: "asked: " + on2 + "status ipam --json\n"},
		{args: "status web-0", out: "asked: " + on2 + "status\n", not: "=="},
		{args: "status node1 policy", out: "asked: " + on1 + "status policy\n", not: "=="},
		{args: "report shop/web-0", out: "asked: " + on2 + "report\n"},
		{args: "explain web-0 db 5432", out: on2 + "policy explain shop/web-0 shop/db 5432\n"},
		{args: "explain 192.0.2.1 web-0", out: on2 + "policy explain 192.0.2.1 shop/web-0\n"},
		{args: "explain --last-drops web-0", out: on2 + "policy explain --last-drops --verbose\n"},
		{args: "explain web-0 --last-drops", out: on2 + "policy explain --last-drops --verbose\n"},

		{args: "--context east status web-0", out: "asked: --context east " + on2 + "status\n"},
		{args: "status web-0 --context east", out: "asked: --context east " + on2 + "status\n"},
		{args: "status --context=east --kubeconfig /k --as=me", out: "asked: --context=east --kubeconfig /k --as=me " + on1 + "status\n"},
		{args: "-n shop report web-0", out: on2 + "report\n"},
		{args: "report -n shop web-0", out: on2 + "report\n"},
		{args: "report web-0 --namespace shop", out: on2 + "report\n"},
		{args: "report web-0 --namespace=shop", out: on2 + "report\n"},
		{args: "report web-0 -n=shop", out: on2 + "report\n"},
		{args: "report web-0 -nshop", out: on2 + "report\n"},
		{args: "report web-0 -n other", code: 1, errs: "no pod other/web-0, and no node web-0"},
		{args: "explain web-0 db -n shop", out: "explain shop/web-0 shop/db\n"},

		{args: "--help", out: "kubectl weft status [POD|NODE]", not: "set -"},
		{args: "-h", out: "--context NAME"},
		{args: "status web-0 --help", out: "WEFT_NAMESPACE", not: "asked:"},
		{args: "", out: "kubectl weft report"},
		{args: "help", out: "kubectl weft report"},

		{args: "status", env: "ABSENT=1", code: 1, errs: "namespace weft has no agents"},
		{args: "status", env: "WEFT_NAMESPACE=net", out: "asked: -n net exec agent-node1"},
		{args: "status", env: "SILENT=node1 node2", code: 1, errs: "none of the 2 agents answers"},
		{args: "status", env: "SILENT=node1", code: 1, out: "asked: " + on2 + "status\n", errs: "no answer from node1: only the others'"},
		{args: "status", env: "NOTREADY=node1", code: 4, out: "asked: " + on2 + "status\n", errs: "exit code 4", not: "no answer"},
		{args: "status web-0", env: "NOTREADY=node2", code: 4, errs: "exit code 4"},
		{args: "status", env: "DOWN=1", code: 1, errs: "the agents cannot be listed", not: "has no agents"},
		{args: "status web-0", env: "SILENT=node2", code: 1, errs: "unable to upgrade"},
		{args: "status web-0", env: "ABSENT=1", code: 1, errs: "no agent runs on node node2", not: "asked:"},
		{args: "report web-0", env: "ABSENT=1", code: 1, errs: "no agent runs on node node2"},
		{args: "report web-0", env: "DOWN=1", code: 1, errs: "refused", not: "there is no pod"},
		{args: "report nothing", code: 1, errs: "no pod shop/nothing, and no node nothing", not: "no agent runs"},
		{args: "report later", code: 1, errs: "pod shop/later is on no node"},
		{args: "explain nothing db", code: 1, errs: "no pod shop/nothing", not: "asked:"},
		{args: "explain 192.0.2.1 192.0.2.2", code: 1, errs: "neither 192.0.2.1 nor 192.0.2.2 is a pod"},

		{args: "report", code: 2, errs: "see kubectl weft --help"},
		{args: "status -n", code: 2, errs: "-n has no value"},
		{args: "status --contxt east", code: 2, errs: "there is no flag --contxt"},
		{args: "status web-0 nonsense", code: 2, errs: "one part of"},
		{args: "stats", code: 2, errs: "there is no command stats"},
		{args: "status --last-drops", code: 2, errs: "--last-drops goes with explain"},
		{args: "explain web-0", code: 2, errs: "explain takes SRC DST"},
	} {
		t.Run(strings.TrimSpace(c.env+" "+c.args), func(t *testing.T) {
			calls := filepath.Join(t.TempDir(), "calls")
			cmd := exec.Command(script, strings.Fields(c.args)...)
			cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"), "CALLS="+calls, "WEFT_NAMESPACE=")
			if c.env != "" {
				cmd.Env = append(cmd.Env, c.env)
			}
			var out, errs bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &errs
			code := 0
			if err := cmd.Run(); err != nil {
				exit, ok := errors.AsType[*exec.ExitError](err)
				if !ok {
					t.Fatal(err)
				}
				code = exit.ExitCode()
			}
			if code != c.code || !strings.Contains(out.String(), c.out) || !strings.Contains(errs.String(), c.errs) ||
				c.errs == "" && errs.Len() > 0 || c.not != "" && strings.Contains(out.String()+errs.String(), c.not) {
				t.Errorf("exit code %d, want %d\n%s\n%s", code, c.code, out.String(), errs.String())
			}
			asked, _ := os.ReadFile(calls)
			for call := range strings.Lines(string(asked)) { // every call has the flags that select the cluster
				if strings.Contains(c.args, "--context") && !strings.Contains(call, "--context") {
					t.Errorf("kubectl %s", call)
				}
			}
		})
	}
}
