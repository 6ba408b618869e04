package kube

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// flows starts one flow of each protocol and family between the probes of two nodes.
func flows(t *testing.T, from, to string) (all []*flow) {
	t.Helper()
	for _, proto := range []string{"udp", "tcp"} {
		for _, six := range []bool{false, true} {
			all = append(all, startFlow(t, proto, getPod(t, from), getPod(t, to).ip(t, six)))
		}
	}
	time.Sleep(time.Second)
	return all
}

func stopAll(t *testing.T, all []*flow) {
	t.Helper()
	for _, f := range all {
		f.stop(t)
	}
}

// agentsReplaced waits until every agent's pod is new and ready.
func agentsReplaced(t *testing.T, before string) {
	t.Helper()
	eventually(t, 2*time.Minute, "new agent pods", func() error {
		now := agentPods(t)
		for name := range strings.FieldsSeq(now) {
			if strings.Contains(before, name) {
				return fmt.Errorf("%s is still there", name)
			}
		}
		if len(strings.Fields(now)) != len(nodes) {
			return errNot
		}
		return nil
	})
	kubectl(t, "-n", "weft", "rollout", "status", "ds/weft", "--timeout=2m")
}

func agentPods(t *testing.T) string {
	t.Helper()
	return kubectl(t, "-n", "weft", "get", "pods", "-l", "app=weft", "--field-selector=status.phase=Running", "-o", "jsonpath={.items[*].metadata.name}")
}

// Running flows lose no message while agents are killed, deleted and upgraded. The data path's pods stay.
func agentsKilledAndRolled(t *testing.T) {
	datapath := kubectl(t, "-n", "weft", "get", "pods", "-l", "app=weft-datapath", "-o", "jsonpath={.items[*].metadata.uid}")
	all := flows(t, "probe-node1", "probe-node2")
	before := agentPods(t)
	kubectl(t, "-n", "weft", "delete", "pods", "-l", "app=weft", "--force", "--grace-period=0")
	agentsReplaced(t, before)
	upgraded(t)
	stopAll(t, all)
	if now := kubectl(t, "-n", "weft", "get", "pods", "-l", "app=weft-datapath", "-o", "jsonpath={.items[*].metadata.uid}"); now != datapath {
		t.Errorf("the data path's pods changed from %s to %s, want no change", datapath, now)
	}
	mayReach(t, "server-node3", "server-node2", false) // node2 still enforces the policy
	mayReach(t, "server-node1", "server-node2", true)
}

// outage is how long the API server is stopped.
const outage = 2 * time.Minute

// Without the API server, pods communicate, a pod whose sandbox dies gets a new sandbox (DEL and ADD),
// and restarted agents know policies and pods. Changes made meanwhile are applied once the API server
// is back.
func withoutAPIServer(t *testing.T) {
	victim, other := getPod(t, "probe-node3"), getPod(t, "probe-node2")
	stranger := getPod(t, "server-node3")
	strangerPID, friendPID := stranger.pid(t), getPod(t, "server-node1").pid(t)
	denied := url(getPod(t, "server-node2").ip(t, false), 8080, "/hostname")
	all := flows(t, "probe-node1", "probe-node2")
	out, err := cluster(t, "", "apiserver-stop")
	must(t, out, err)
	start := time.Now()
	agents := func(node string) { // kill agents, like a crash: the kubelet restarts them
		out, err := cluster(t, "", "in", node, "pkill", "-KILL", "-f", "^/weft agent")
		must(t, out, err)
	}
	agents("node2")
	sandbox := killSandbox(t, victim)
	eventually(t, time.Minute, "a new sandbox", func() error {
		now, err := sandboxOf(t, victim)
		if err == nil && (now == "" || now == sandbox) {
			err = errNot
		}
		return err
	})
	eventually(t, time.Minute, "the new pod's address in the directory", func() error {
		for _, six := range []bool{false, true} {
			addr, err := addressOf(t, victim, six)
			if err != nil {
				return err
			}
			if out, err := cluster(t, "", "in", other.Spec.NodeName, "nsenter", "-t", other.pid(t), "--net", weftProgram, "probe", "udp", "-c", "3", addr); err != nil {
				return fmt.Errorf("%s: %w: %s", addr, err, out)
			}
		}
		return nil
	})
	eventually(t, time.Minute, "node2's agent is ready", func() error {
		r, err := reportOf(t, "node2")
		if err == nil && !r.Ready {
			err = fmt.Errorf("not ready: %s", r.NotReady)
		}
		return err
	})
	ask := func(node, pid string) error {
		_, err := cluster(t, "", "in", node, "nsenter", "-t", pid, "--net", "curl", "-sgf", "--max-time", "3", denied)
		return err
	}
	if ask("node3", strangerPID) == nil {
		t.Error("after a restart without the API server, a denied client reached the server, want it denied")
	}
	if err := ask("node1", friendPID); err != nil {
		t.Errorf("after a restart without the API server, an allowed client got %v, want an answer", err)
	}
	time.Sleep(outage - time.Since(start))
	out, err = cluster(t, "", "apiserver-start")
	must(t, out, err)
	stopAll(t, all)
	eventually(t, time.Minute, "the API server answers", func() error {
		_, err := cluster(t, "", "kubectl", "label", "pod", "server-node3", "friend=yes", "--overwrite")
		return err
	})
	mayReach(t, "server-node3", "server-node2", true)
	kubectl(t, "label", "pod", "server-node3", "friend-")
	mayReach(t, "server-node3", "server-node2", false)
	ready(t, "probe-node3")
}

// sandboxOf returns the process that holds a pod's namespaces, for a pod with one container.
func sandboxOf(t *testing.T, p pod) (string, error) {
	t.Helper()
	out, err := cluster(t, "", "in", p.Spec.NodeName, "ctr", "-n", "k8s.io", "containers", "ls", "-q",
		"labels.\"io.kubernetes.pod.uid\"=="+p.Metadata.UID+",labels.\"io.cri-containerd.kind\"==sandbox")
	if err != nil {
		return "", err
	}
	running, err := cluster(t, "", "in", p.Spec.NodeName, "ctr", "-n", "k8s.io", "task", "ls")
	for line := range strings.Lines(running) {
		if f := strings.Fields(line); len(f) == 3 && f[2] == "RUNNING" && slices.Contains(strings.Fields(out), f[0]) {
			return f[1], nil
		}
	}
	return "", err
}

func killSandbox(t *testing.T, p pod) (pid string) {
	t.Helper()
	pid, err := sandboxOf(t, p)
	if must(t, pid, err) == "" {
		t.Fatalf("%s has no sandbox, want one", p.Metadata.Name)
	}
	out, err := cluster(t, "", "in", p.Spec.NodeName, "kill", "-KILL", pid)
	must(t, out, err)
	return pid
}

// addressOf returns a pod's address according to its own node, which allocated the address.
func addressOf(t *testing.T, p pod, six bool) (string, error) {
	t.Helper()
	out, err := weft(t, p.Spec.NodeName, "report", "-f", `{{range .endpoints}}{{if eq .name "`+p.Metadata.Name+`"}}{{range .addresses}}{{.}} {{end}}{{end}}{{end}}`)
	for a := range strings.FieldsSeq(out) {
		if strings.Contains(a, ":") == six {
			return a, nil
		}
	}
	if err == nil {
		err = fmt.Errorf("the agent has no address of %s yet", p.Metadata.Name)
	}
	return "", err
}

// owners returns the nicknames of the peers that own addresses.
func owners(t *testing.T, node string) (names []string, err error) {
	t.Helper()
	r, err := reportOf(t, node)
	for _, o := range r.IPAM.Owners {
		names = append(names, o.Nickname)
	}
	slices.Sort(names)
	return names, err
}

// reclaimed returns how often addresses were taken over, according to the agents' events. The ring's
// generation does not tell: it is the highest of any slot.
func reclaimed(t *testing.T) int {
	t.Helper()
	out := kubectl(t, "get", "events", "-n", "default", "--field-selector=reason=AddressesReclaimed", "-o", "name")
	return len(strings.Fields(out))
}

// reclaimedOnce waits for the event of another take-over.
func reclaimedOnce(t *testing.T, before int) {
	t.Helper()
	eventually(t, 10*time.Second, "the event AddressesReclaimed", func() error {
		if now := reclaimed(t); now != before+1 {
			return fmt.Errorf("there are %d take-overs, want one more than %d", now, before)
		}
		return nil
	})
}

// nodePods returns the pods of testdata on a node.
func nodePods(node string) []string {
	return []string{"server-" + node, "probe-" + node, "host-" + node}
}

func removePods(t *testing.T, node string) {
	t.Helper()
	kubectl(t, append([]string{"delete", "pod", "--force", "--grace-period=0", "--ignore-not-found"}, nodePods(node)...)...)
}

// Pods leave a drained node. Its agent stays with its addresses, and pods come back after uncordon.
func drained(t *testing.T) {
	const node = "node3"
	apply(t, manifestOf(t, "drained.yaml", node))
	kubectl(t, "rollout", "status", "deployment/drained", "--timeout=1m")
	agent := func() string {
		return kubectl(t, "-n", "weft", "get", "pods", "-l", "app=weft", "--field-selector=spec.nodeName="+node, "-o", "jsonpath={.items[*].metadata.uid} {.items[*].status.containerStatuses[*].restartCount}")
	}
	homes := func() string {
		return kubectl(t, "get", "pods", "-l", "app=drained", "-o", "jsonpath={.items[*].spec.nodeName}")
	}
	before, err := reportOf(t, node)
	must(t, "", err)
	process, takeOvers := agent(), reclaimed(t)
	kubectl(t, "drain", node, "--ignore-daemonsets", "--force", "--delete-emptydir-data", "--timeout=1m")
	same := func(when string, now report) {
		if now.Router.ID != before.Router.ID || now.owns() != before.owns() || !now.Ready || agent() != process || reclaimed(t) != takeOvers {
			t.Errorf("%s: the agent is %s with %d addresses, ready: %v, after %d take-overs; want %s with %d addresses, ready, without a take-over", when, now.Router.ID, now.owns(), now.Ready, reclaimed(t), before.Router.ID, before.owns())
		}
	}
	eventually(t, 20*time.Second, "no pods on the drained node", func() error {
		r, err := reportOf(t, node)
		switch {
		case err != nil:
			return err
		case len(r.Endpoints) > 0:
			return fmt.Errorf("endpoints are left: %v", r.Endpoints)
		}
		same("drained", r)
		return nil
	})
	if where := homes(); where != "" {
		t.Errorf("the Deployment's pod is on the cordoned node %s, want it on no node", where)
	}
	mayReach(t, "server-node1", "server-node2", true)
	kubectl(t, "uncordon", node)
	apply(t, manifestOf(t, "pods.yaml", node)) // apply the pods again, since no controller recreates them
	kubectl(t, "rollout", "status", "deployment/drained", "--timeout=1m")
	ready(t, nodePods(node)...)
	back := kubectl(t, "get", "pods", "-l", "app=drained", "-o", "jsonpath={.items[*].metadata.name}")
	mayReach(t, back, "server-node1", true)
	mayReach(t, "server-node1", back, true)
	mayReach(t, "server-"+node, "server-node1", true)
	if where := homes(); where != node {
		t.Errorf("the Deployment's pod runs on %q, want the uncordoned node", where)
	}
	now, err := reportOf(t, node)
	must(t, "", err)
	same("uncordoned", now)
	kubectl(t, "delete", "deployment", "drained")
}

// A node that is switched off and on keeps its identity and its addresses, and its pods come back.
func nodeRebooted(t *testing.T) {
	const node = "node3"
	before, err := reportOf(t, node)
	must(t, "", err)
	takeOvers := reclaimed(t)
	out, err := cluster(t, "", "node-restart", node)
	must(t, out, err)
	eventually(t, 2*time.Minute, "the agent of the restarted node", func() error {
		r, err := reportOf(t, node)
		switch {
		case err != nil:
			return err
		case !r.Ready:
			return fmt.Errorf("not ready: %s", r.NotReady)
		case r.Router.ID != before.Router.ID:
			t.Fatalf("after the restart, the agent's report changed from %+v to %+v, want the same peer", before, r)
		}
		return nil
	})
	kubectl(t, "wait", "--for=condition=Ready", "node/"+node, "--timeout=2m")
	removePods(t, node)
	apply(t, manifestOf(t, "pods.yaml", node))
	ready(t, nodePods(node)...)
	mayReach(t, "server-"+node, "server-node1", true)
	mayReach(t, "server-"+node, "server-node2", false)
	if now := reclaimed(t); now != takeOvers {
		t.Errorf("after the restart there were %d take-overs, want %d as before", now, takeOvers)
	}
}

// A node returns without its disk, with the same name and Node object. Its agent is a new peer, and
// the old peer's addresses are reclaimed once.
func diskLost(t *testing.T) {
	const node = "node3"
	old, err := reportOf(t, node)
	must(t, "", err)
	before := reclaimed(t)
	for _, args := range [][]string{{"node-down", node}, {"node-up", node, "3"}} {
		out, err := cluster(t, "", args...)
		must(t, out, err)
	}
	removePods(t, node)
	eventually(t, 2*time.Minute, "the addresses of the lost peer are reclaimed", func() error {
		r, err := reportOf(t, "node1")
		if err != nil {
			return err
		}
		for _, o := range r.IPAM.Owners {
			if o.Peer == old.Router.ID {
				return fmt.Errorf("the old peer still owns %d addresses", o.Slots)
			}
		}
		return nil
	})
	kubectl(t, "wait", "--for=condition=Ready", "node/"+node, "--timeout=2m")
	apply(t, manifestOf(t, "pods.yaml", node))
	ready(t, nodePods(node)...)
	mayReach(t, "server-"+node, "server-node1", true)
	reclaimedOnce(t, before)
}

// A node that does not answer, but was not deleted, keeps its addresses. When the node is deleted,
// they are reclaimed once. Another node with the same name then joins like any new node.
func nodeDeleted(t *testing.T) {
	const gone = "node3"
	all := flows(t, "probe-node1", "probe-node2")
	before := reclaimed(t)
	out, err := cluster(t, "", "node-down", gone)
	must(t, out, err)
	kubectl(t, "wait", "--for=condition=Ready=Unknown", "node/"+gone, "--timeout=2m")
	time.Sleep(10 * time.Second) // wait longer than a deleted node may be silent
	if names, err := owners(t, "node1"); err != nil || reclaimed(t) != before || !slices.Contains(names, gone) {
		t.Errorf("while a node was not ready: %d take-overs, want %d; owners %v (error %v), want the node among the owners", reclaimed(t), before, names, err)
	}
	kubectl(t, "delete", "node", gone)
	took := eventually(t, 2*time.Minute, "the addresses of the deleted node are reclaimed", func() error {
		for _, node := range []string{"node1", "node2"} {
			names, err := owners(t, node)
			if err != nil {
				return err
			}
			if slices.Contains(names, gone) {
				return fmt.Errorf("according to %s, the owners of addresses are %v", node, names)
			}
		}
		return nil
	})
	t.Logf("reclaimed %v after its Node was deleted", took.Round(time.Second))
	out, err = cluster(t, "", "node-up", gone, "3")
	must(t, out, err)
	kubectl(t, "wait", "--for=condition=Ready", "node/"+gone, "--timeout=2m")
	stopAll(t, all)
	removePods(t, gone)
	apply(t, manifestOf(t, "pods.yaml", gone))
	ready(t, nodePods(gone)...)
	mayReach(t, "server-"+gone, "server-node1", true)
	mayReach(t, "server-"+gone, "server-node2", false)
	reclaimedOnce(t, before)
}
