package kube

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"
)

// A pod with another pod's UID in an annotation does not get that pod's labels. The other pod's
// policies stay enforced.
func annotations(t *testing.T) {
	for name, label := range map[string]string{"thief": "nobody", "friend": "yes"} {
		apply(t, fmt.Sprintf(`{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "%s", "labels": {"friend": "%s"}, "annotations": {"kubernetes.io/config.hash": "%s"}},
			"spec": {"nodeName": "node2", "terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": "%s", "args": ["pause"]}]}}`,
			name, label, getPod(t, map[string]string{"thief": "server-node2", "friend": "server-node3"}[name]).Metadata.UID, agnhost(t)))
	}
	ready(t, "thief", "friend")
	mayReach(t, "server-node3", "server-node2", false) // its policies still apply, and the other pod is no friend
	mayReach(t, "server-node1", "server-node2", true)
	mayReach(t, "thief", "server-node2", false)
	mayReach(t, "friend", "server-node2", true)
	kubectl(t, "delete", "pod", "thief", "friend")
}

// A pod whose name is no DNS name gets a network, and a warning. The longest valid name also gets a
// DNS name.
func longNames(t *testing.T) {
	const node = "node1"
	long, fits := "workflow"+strings.Repeat("-step", 13), "ok"+strings.Repeat("x", 61)
	for _, name := range []string{long, fits} {
		apply(t, fmt.Sprintf(`{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "%s"},
			"spec": {"nodeName": "%s", "terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": "%s", "args": ["netexec", "--http-port=8080"]}]}}`, name, node, agnhost(t)))
	}
	ready(t, long, fits)
	mayReach(t, "server-node3", long, true)
	mayReach(t, long, "server-node3", true)
	r, err := reportOf(t, node)
	if text := strings.Join(r.Warnings, "\n"); err != nil || len(r.Warnings) != 1 || !strings.Contains(text, long) || !strings.Contains(text, "DNS name") {
		t.Errorf("error %v, warnings %q; want no error, and one warning about the DNS name of the long pod name", err, text)
	}
	if out, err := weft(t, node, "dns-lookup", fits+".default"); err != nil {
		t.Errorf("dns-lookup of %s returned %v, want addresses: %s", fits, err, out)
	}
	event(t, node, "LeftOut", long)
	kubectl(t, "delete", "pod", long, fits)
}

// event waits for a warning event on a node.
func event(t *testing.T, node, reason, text string) {
	t.Helper()
	eventually(t, 40*time.Second, "an event "+reason, func() error {
		out := kubectl(t, "get", "events", "-n", "default", "--field-selector=type=Warning,reason="+reason+",involvedObject.kind=Node,involvedObject.name="+node, "-o", "jsonpath={.items[*].message}")
		if !strings.Contains(out, text) {
			return fmt.Errorf("got the events %q", out)
		}
		return nil
	})
}

// A policy with the nodes' addresses allows packets of the nodes themselves in both families, also
// those forwarded by a NodePort. Weft reads leading zeros like the API server of this
// version.
func policiesMatchNodeAddresses(t *testing.T) {
	const ingress = `{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "nodes"}, "spec": {
		"podSelector": {"matchLabels": {"app": "server", "node": "node2"}}, "ingress": [{"from": [%s]}]}}`
	asks := func(from string, want bool) {
		t.Helper()
		mayReach(t, from, "server-node2", want)
	}
	asks("host-node1", false) // the policy allows friends only
	asks("host-node2", true)  // a pod's own node always reaches it
	for name, from := range map[string]string{
		"node addresses as kubectl shows them": `{"ipBlock": {"cidr": "10.200.0.0/24"}}, {"ipBlock": {"cidr": "fd00:10:200::/64"}}`,
		"node addresses with leading zeros":    `{"ipBlock": {"cidr": "10.200.000.0/24"}}, {"ipBlock": {"cidr": "fd00:10:200::/64"}}`,
		"all addresses":                        `{"ipBlock": {"cidr": "0.0.0.0/0"}}, {"ipBlock": {"cidr": "::/0"}}`,
	} {
		apply(t, fmt.Sprintf(ingress, from))
		asks("host-node1", true)
		asks("server-node3", name == "all addresses")
	}
	apply(t, fmt.Sprintf(ingress, `{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.200.0.0/24"]}}, {"ipBlock": {"cidr": "::/0", "except": ["fd00:10:200::/64"]}}`))
	asks("host-node1", false) // the policy allows all sources but the nodes
	asks("server-node3", true)
	out, err := cluster(t, "", "in", "node3", weftProgram, "policy", "explain", "node1", "server-node2.default", "8080")
	if must(t, out, err); !strings.Contains(out, "10.200.0.11") {
		t.Errorf("explain lacks the node's address 10.200.0.11, want it:\n%s", out)
	}
	kubectl(t, "delete", "networkpolicy", "nodes")
	asks("host-node1", false)

	kubectl(t, "annotate", "networkpolicy", "friends", "weft.internal/audit=perhaps") // the annotation's value is invalid
	event(t, "node2", "PolicyUnread", "default/friends")
	asks("server-node3", false)
	if r, err := reportOf(t, "node3"); err != nil || !strings.Contains(strings.Join(r.Warnings, " "), "default/friends") {
		t.Errorf("error %v, warnings %q; want one about default/friends", err, r.Warnings)
	}
	kubectl(t, "annotate", "networkpolicy", "friends", "weft.internal/audit-")
}

// A missing right in the role is reported with its fix: in the status, as an event, and to pods that
// start meanwhile. The host is not ready for new pods, and running pods keep working.
func rightMissing(t *testing.T) {
	const node = "node1"
	role := kubectl(t, "get", "clusterrole", "weft", "-o", "json")
	var fields map[string]any
	if err := json.Unmarshal([]byte(role), &fields); err != nil {
		t.Fatal(err)
	}
	for _, rule := range fields["rules"].([]any) {
		if r := rule.(map[string]any); fmt.Sprint(r["resources"]) == "[networkpolicies]" {
			r["verbs"] = []string{"get"}
		}
	}
	narrow, err := json.Marshal(fields)
	if err != nil {
		t.Fatal(err)
	}
	apply(t, string(narrow))
	before := agentPods(t)
	kubectl(t, "-n", "weft", "delete", "pods", "-l", "app=weft", "--field-selector=spec.nodeName="+node, "--force", "--grace-period=0")
	eventually(t, time.Minute, "the host reports that it is not ready", func() error {
		r, err := reportOf(t, node)
		if err == nil && (r.Ready || !strings.Contains(r.NotReady, "list the networkpolicies") || !strings.Contains(r.NotReady, "apply Weft's manifest")) {
			err = fmt.Errorf("ready: %v, %s", r.Ready, r.NotReady)
		}
		return err
	})
	event(t, node, "APIServer", "networkpolicies")
	event(t, node, "NotReady", "networkpolicies")
	mayReach(t, "server-node1", "server-node2", true)
	mayReach(t, "server-node3", "server-node2", false)
	follow(t, "kubectl apply -f weft.yaml")
	eventually(t, time.Minute, "the host is ready again", func() error {
		r, err := reportOf(t, node)
		if err == nil && (!r.Ready || len(r.Warnings) > 0) {
			err = fmt.Errorf("not ready: %s; warnings %q", r.NotReady, r.Warnings)
		}
		return err
	})
	if agentPods(t) == before {
		t.Error("the agent's pod is the same as before, want a new one")
	}
}

// A Secret that is deleted or incomplete is restored unchanged, so that restarted agents have it.
func secretDeleted(t *testing.T) {
	read := func() (f founder, err error) {
		out, err := cluster(t, "", "kubectl", "-n", "weft", "get", "secret", "weft", "-o", "json")
		if err == nil {
			err = json.Unmarshal([]byte(out), &f)
		}
		return f, err
	}
	was, err := read()
	if err != nil {
		t.Fatal(err)
	}
	for what, command := range map[string][]string{
		"deleted": {"-n", "weft", "delete", "secret", "weft"},
		"older":   {"-n", "weft", "annotate", "secret", "weft", "weft.dev/founded-", "--overwrite", "weft.dev/founder=0011223344556677"},
	} {
		kubectl(t, command...)
		took := eventually(t, 20*time.Second, what, func() error {
			now, err := read()
			if err == nil && (string(now.Data["token"]) != string(was.Data["token"]) || fmt.Sprint(now.Metadata.Annotations) != fmt.Sprint(was.Metadata.Annotations)) {
				err = fmt.Errorf("the annotations are %v, and were %v", now.Metadata.Annotations, was.Metadata.Annotations)
			}
			return err
		})
		t.Logf("%s: restored after %v", what, took.Round(100*time.Millisecond))
	}
	if out := kubectl(t, "get", "events", "-n", "default", "--field-selector=reason=SecretRestored", "-o", "name"); out == "" {
		t.Error("there is no event SecretRestored, want one")
	}
}
