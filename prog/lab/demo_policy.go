package lab

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"weft/prog/lab/probe"
)

// demoPolicy isolates h2's containers: only h1's containers may reach them, on one port.
const demoPolicy = `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: only-from-h1
  namespace: h2
spec:
  podSelector: {}
  ingress:
  - from:
    - namespaceSelector:
        matchLabels: {kubernetes.io/metadata.name: h1}
    ports:
    - port: 7007
`

// policy shows that a policy takes effect on all hosts at once, and that `weft policy explain` names it.
func (d *demo) policy(ctx context.Context) error {
	d.caption("A NetworkPolicy, applied on h3: h2's containers are reachable from namespace h1 only (a host's name is its containers' namespace)")
	fmt.Fprintf(d.out, "h3 $ weft policy apply --wait -f - <<EOF\n%sEOF\n", indented(demoPolicy))
	out, err := d.lab.Exec(ctx, "h3", strings.NewReader(demoPolicy), "weft", "policy", "apply", "--wait", "-f", "-")
	if err != nil {
		return err
	}
	fmt.Fprintln(d.out, indented(out))
	listener, err := d.lab.Background(ctx, "h2/c1", probe.ListenReady, "weft", "probe", "listen")
	if err != nil {
		return err
	}
	defer listener.cancel()
	addrs, err := d.lab.Addrs(ctx, "h2/c1")
	if err != nil {
		return err
	}
	send := append([]string{"weft", "probe", "udp", "--count", "3", "--interval", "20ms", "--timeout", "300ms"}, addrs...)
	ask := append([]string{"weft", "probe", "tcp", "--count", "3", "--interval", "20ms"}, addrs...)
	if err := d.show(ctx, "h1/c1", ask...); err != nil {
		return err
	}
	if err := d.show(ctx, "h1/c1", send...); err == nil {
		return errors.New("lab: h1/c1 reached h2/c1 by UDP, which the policy does not allow")
	}
	for _, step := range [][]string{
		{"h1", "weft", "policy", "explain", "c1.h1", "c1.h2", "7007/udp"},
		{"h2", "weft", "policy", "explain", "--last-drops"},
		{"h2", "weft", "status", "policy"},
		{"h1", "weft", "policy", "delete", "h2/only-from-h1"},
	} {
		if err := d.show(ctx, step[0], step[1:]...); err != nil {
			return err
		}
	}
	return nil
}

// indented indents a quoted text for output.
func indented(text string) string {
	return "  " + strings.ReplaceAll(strings.TrimRight(text, "\n"), "\n", "\n  ") + "\n"
}
