package kube

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// nodes are the nodes of the cluster that the tests start.
var nodes = []string{"node1", "node2", "node3"}

// checkout is the main module's folder, where `make test-kube` has built the programs and the
// image.
var checkout = func() string {
	dir, err := filepath.Abs("../../..")
	if err != nil {
		panic(err)
	}
	return dir
}()

var weftProgram = filepath.Join(checkout, "bin", "weft")

// The tests share one cluster. KEEP=1 leaves it running.
func TestMain(m *testing.M) {
	up := exec.Command("./cluster.sh", "up")
	up.Env = append(os.Environ(), "CNI=none", fmt.Sprintf("NODES=%d", len(nodes)))
	up.Stdout, up.Stderr = os.Stderr, os.Stderr
	if err := up.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "cannot start the cluster:", err)
		os.Exit(1)
	}
	code := m.Run()
	if os.Getenv("KEEP") == "" {
		down := exec.Command("./cluster.sh", "down")
		down.Stdout, down.Stderr = os.Stderr, os.Stderr
		if err := down.Run(); err != nil {
			fmt.Fprintln(os.Stderr, "cannot stop the cluster:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// cluster runs a command of cluster.sh, and returns its output.
func cluster(t testing.TB, stdin string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "./cluster.sh", args...)
	cmd.Stdin = strings.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(errs.String()))
	}
	return strings.TrimSpace(out.String()), nil
}

func must(t testing.TB, out string, err error) string {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func kubectl(t testing.TB, args ...string) string {
	t.Helper()
	out, err := cluster(t, "", append([]string{"kubectl"}, args...)...)
	return must(t, out, err)
}

func apply(t testing.TB, manifest string) {
	t.Helper()
	out, err := cluster(t, manifest, "kubectl", "apply", "-f", "-")
	must(t, out, err)
}

// weft runs weft in the agent of a node.
func weft(t testing.TB, node string, args ...string) (string, error) {
	t.Helper()
	return cluster(t, "", append([]string{"in", node, weftProgram}, args...)...)
}

// report has the fields of an agent's report that tests use.
type report struct {
	Ready    bool
	NotReady string
	Warnings []string
	Router   struct {
		ID    string
		Peers []struct{ ID, Nickname, State string }
	}
	IPAM struct {
		Ring          string
		Range, Range6 string
		Owners        []struct {
			Peer, Nickname string
			Slots          uint64
		}
	}
	CNI       struct{ Plugins []string }
	Endpoints []struct{ Name, Namespace string }
}

// has reports whether the pod is attached on the node.
func (r report) has(pod string) bool {
	for _, e := range r.Endpoints {
		if e.Name == pod {
			return true
		}
	}
	return false
}

// owns returns the number of addresses that the node owns.
func (r report) owns() (slots uint64) {
	for _, o := range r.IPAM.Owners {
		if o.Peer == r.Router.ID {
			slots += o.Slots
		}
	}
	return slots
}

func reportOf(t testing.TB, node string) (r report, err error) {
	t.Helper()
	out, err := weft(t, node, "report")
	if err == nil {
		err = json.Unmarshal([]byte(out), &r)
	}
	return r, err
}

// eventually waits until check succeeds, and otherwise fails with its last error.
func eventually(t testing.TB, within time.Duration, what string, check func() error) time.Duration {
	t.Helper()
	start := time.Now()
	for {
		err := check()
		if err == nil {
			return time.Since(start)
		}
		if time.Since(start) > within {
			t.Fatalf("not so within %[2]v, want: %[1]s: %[3]v", what, within, err)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// pod has the fields of a pod that tests use.
type pod struct {
	Metadata struct{ Name, Namespace, UID string }
	Spec     struct{ NodeName string }
	Status   struct {
		Phase             string
		PodIPs            []struct{ IP string }
		ContainerStatuses []struct {
			ContainerID string
			Ready       bool
		}
	}
}

func getPod(t testing.TB, name string) (p pod) {
	t.Helper()
	if err := json.Unmarshal([]byte(kubectl(t, "get", "pod", name, "-o", "json")), &p); err != nil {
		t.Fatal(err)
	}
	return p
}

// ip returns the pod's address of a family.
func (p pod) ip(t testing.TB, six bool) string {
	t.Helper()
	for _, a := range p.Status.PodIPs {
		if strings.Contains(a.IP, ":") == six {
			return a.IP
		}
	}
	t.Fatalf("%s has no address of the wanted family (IPv6: %v), only %v", p.Metadata.Name, six, p.Status.PodIPs)
	return ""
}

// url returns the HTTP URL of a path at an address and port.
func url(addr string, port int, path string) string {
	if strings.Contains(addr, ":") {
		addr = "[" + addr + "]"
	}
	return fmt.Sprintf("http://%s:%d%s", addr, port, path)
}

// get fetches a page from within a pod.
func get(t testing.TB, from, address string) (string, error) {
	t.Helper()
	return cluster(t, "", "kubectl", "exec", from, "--", "curl", "-sgf", "--max-time", "3", address)
}

// pid returns the pid of a process of the pod on its node. So commands can run in the pod without the
// API server.
func (p pod) pid(t testing.TB) string {
	t.Helper()
	if len(p.Status.ContainerStatuses) == 0 {
		t.Fatalf("the status of %s has no container, want one", p.Metadata.Name)
	}
	id := strings.TrimPrefix(p.Status.ContainerStatuses[0].ContainerID, "containerd://")
	out, err := cluster(t, "", "in", p.Spec.NodeName, "ctr", "-n", "k8s.io", "task", "ls")
	for line := range strings.Lines(must(t, out, err)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == id {
			return f[1]
		}
	}
	t.Fatalf("containerd on the node has no task for %s: want one on %s", p.Metadata.Name, p.Spec.NodeName)
	return ""
}

// flow is an exchange of numbered messages until it is stopped.
type flow struct {
	what string
	cmd  *exec.Cmd
	end  func() error
	out  bytes.Buffer
}

// startFlow sends 50 messages per second from a pod to `weft probe listen` in another pod. It waits 5 s for each answer:
// all nodes share this machine's processors, and what is late or overtaken is not lost.
func startFlow(t testing.TB, proto string, from pod, to string) *flow {
	t.Helper()
	f := &flow{what: fmt.Sprintf("%s from %s to %s", proto, from.Metadata.Name, to)}
	f.cmd = exec.CommandContext(t.Context(), "./cluster.sh", "in", from.Spec.NodeName, "nsenter", "-t", from.pid(t), "--net",
		weftProgram, "probe", proto, "--json", "--count", "100000", "--interval", "20ms", "--timeout", "5s", "--any-order", "--until-eof", to)
	f.cmd.Stdout, f.cmd.Stderr = &f.out, os.Stderr
	in, err := f.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	f.end = in.Close
	if err := f.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return f
}

// stop ends a flow, and fails the test if it lost a message.
func (f *flow) stop(t testing.TB) {
	t.Helper()
	if err := f.end(); err != nil {
		t.Error(err)
	}
	err := f.cmd.Wait()
	var results []struct {
		Sent, Received, Lost int
		MaxMs                float64
		LostAtMs             []float64
		Error, Unsent        string
	}
	if e := json.Unmarshal(f.out.Bytes(), &results); e != nil || len(results) != 1 {
		t.Fatalf("%s: error %v, and the result is unreadable (%v), want JSON with one result: %s", f.what, err, e, &f.out)
	}
	r := results[0]
	if err != nil || r.Lost > 0 || r.Received != r.Sent || r.Sent < 10 || r.Error != "" {
		t.Errorf("%s: error %v, want no lost messages: %+v", f.what, err, r)
	}
	t.Logf("%s: %d of %d messages received, the slowest after %.0f ms", f.what, r.Received, r.Sent, r.MaxMs)
}

var errNot = errors.New("not yet")
