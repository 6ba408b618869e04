package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"weft/mesh/meshtest/eventually"
	"weft/prog/api"
	"weft/prog/lab"
	"weft/prog/lab/labtest"
)

func bare(t *testing.T, hosts int) *lab.Lab {
	t.Helper()
	return labtest.New(t, lab.Options{Hosts: hosts, Containers: 1, Bare: true})
}

// says asserts that a message contains all given words.
func says(t *testing.T, message string, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(message, w) {
			t.Errorf("the message lacks %q, want it:\n%s", w, message)
		}
	}
	t.Log(message)
}

func launchFounder(t *testing.T, l *lab.Lab, args ...string) {
	t.Helper()
	run(t, l, "h1", append([]string{"weft", "launch"}, args...)...)
}

func token(t *testing.T, l *lab.Lab) string {
	t.Helper()
	tok, err := l.Token()
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

// Invariant 7: no host joins without the secret, and both sides report which host tried.
func TestInvariant7WrongTokensAreRefused(t *testing.T) {
	l := bare(t, 2)
	launched := run(t, l, "h1", "weft", "launch", "--json")
	says(t, launched, `"ready": true`, `"founded": true`, `"nickname": "h1"`)
	good := token(t, l)
	if strings.Contains(launched, good) {
		t.Error("the output of launch --json contains the token, want it hidden")
	}
	mistyped := good[:20] + good[21:22] + good[20:21] + "x" + good[22:]
	says(t, fails(t, l, "h2", mistyped, "weft", "launch", "--token", "-", "192.0.2.1"), "mistyped", "exit code 2")
	says(t, fails(t, l, "h2", "hunter2", "weft", "launch", "--token", "-", "192.0.2.1"), "not a Weft token", "exit code 2")
	says(t, fails(t, l, "h2", "", "weft", "launch", "192.0.2.1"), "needs a token", "--token - HOST")
	// An argument shows in the process list, so launch refuses a token there and does not repeat it.
	said := fails(t, l, "h2", "", "weft", "launch", "--token", good, "192.0.2.1")
	says(t, said, "do not give the token itself as an argument")
	if strings.Contains(strings.SplitAfterN(said, "exit code", 2)[1], good) {
		t.Error("the error repeats the token, want it hidden")
	}
	other := strings.TrimSpace(run(t, l, "h2", "weft", "token"))
	says(t, fails(t, l, "h2", other, "weft", "launch", "--wait", "4s", "--token", "-", "192.0.2.1"), "192.0.2.1", "wrong secret", "exit code 4")
	eventually.True(t, 5*time.Second, "the other side names the host that tried", func() bool {
		s := run(t, l, "h1", "weft", "status")
		return strings.Contains(s, "Turned away: 192.0.2.2") && strings.Contains(s, "wrong secret")
	})
	if peers := report(t, l, "h1").Router.Peers; len(peers) != 1 {
		t.Errorf("h1 has the peers %+v, want only itself: h2 has another secret", peers)
	}
	says(t, fails(t, l, "h2", good, "weft", "launch", "--token", "-", "192.0.2.1"), "already runs on this host")
	run(t, l, "h2", "weft", "stop")
	says(t, fails(t, l, "h2", good, "weft", "launch", "--token", "-", "192.0.2.1"), "another cluster", "weft reset")
	run(t, l, "h2", "weft", "reset")
	if _, err := l.Exec(t.Context(), "h2", strings.NewReader(good), "weft", "launch", "--token", "-", "192.0.2.1"); err != nil {
		t.Error(err)
	}
}

// launch prints a token for the next host only on a terminal, and the secret nowhere.
func TestTokenIsPrintedToATerminalOnly(t *testing.T) {
	l := bare(t, 2)
	for host, command := range map[string][]string{
		"h1": {"script", "-qec", "weft launch", "/dev/null"}, // script runs launch on a terminal
		"h2": {"weft", "launch"},
	} {
		out := run(t, l, host, command...)
		if secret := strings.TrimSpace(run(t, l, host, "cat", "/var/lib/weft/secret")); strings.Contains(out, secret) {
			t.Errorf("%s printed the network's secret, want it nowhere", host)
		}
		if shown := strings.Contains(out, "weft2-") && strings.Contains(out, "weft launch --token - 192.0.2.1"); shown != (host == "h1") {
			t.Errorf("%s printed the following; want the token on a terminal only (h1):\n%s", host, out)
		}
	}
}

// With a password on all hosts, no token is needed.
func TestHostsWithOnePasswordNeedNoToken(t *testing.T) {
	l := bare(t, 2)
	env := []string{"env", "WEFT_PASSWORD=correct horse battery"}
	run(t, l, "h1", append(env, "weft", "launch")...)
	run(t, l, "h2", append(env, "weft", "launch", "192.0.2.1")...)
	established(t, l)
	for _, h := range l.Hosts() {
		for pid := range strings.FieldsSeq(run(t, l, h, "sh", "-c", "cd /proc; echo [0-9]*")) {
			out, err := l.Exec(t.Context(), h, nil, "sh", "-c", "cat /proc/"+pid+"/cmdline /proc/"+pid+"/environ 2>/dev/null")
			if err == nil && strings.Contains(out, "correct horse") {
				t.Errorf("%s: the command line or environment of process %s contains the password, want it in none", h, pid)
			}
		}
	}
	says(t, fails(t, l, "h1", "", "sh", "-c", "weft reset && WEFT_PASSWORD=short weft launch"), "at least 8", "exit code 2")
}

func TestUniverseMismatchIsRefused(t *testing.T) {
	l := bare(t, 2)
	launchFounder(t, l, "--ipalloc-range", "10.50.0.0/16")
	says(t, fails(t, l, "h2", token(t, l), "weft", "launch", "--wait", "4s", "--token", "-", "--ipalloc-range", "10.60.0.0/16", "192.0.2.1"),
		"10.50.0.0/16", "10.60.0.0/16", "--ipalloc-range")
	run(t, l, "h2", "weft", "reset")
	if _, err := l.Exec(t.Context(), "h2", strings.NewReader(token(t, l)), "weft", "launch", "--token", "-", "192.0.2.1"); err != nil {
		t.Error(err)
	}
	if r := report(t, l, "h2").IPAM.Range; r != "10.50.0.0/16" {
		t.Errorf("h2 joined with the universe %s, want 10.50.0.0/16 of the mesh", r)
	}
	for _, bad := range []string{"10.50.0.1/16", "10.50.0.0/30", "fd00::/96", "10.50.0.0/16,10.60.0.0/16", "x"} {
		says(t, fails(t, l, "h2", "", "weft", "launch", "--ipalloc-range", bad), "--ipalloc-range "+bad, "exit code 2")
	}
}

func TestUniverseThatOverlapsARouteIsRefused(t *testing.T) {
	l := bare(t, 2)
	if err := tool(t, l, "h1", "route", "10.40.0.0/16"); err != nil {
		t.Fatal(err)
	}
	says(t, fails(t, l, "h1", "", "weft", "launch"), "10.40.0.0/16", "eth0", "--ipalloc-range")
	launchFounder(t, l, "--ipalloc-range", "10.200.0.0/16")
	// A joining host learns the address range of the mesh only when it joins. It refuses then if a
	// route overlaps the range.
	if err := tool(t, l, "h2", "route", "10.200.7.0/24"); err != nil {
		t.Fatal(err)
	}
	says(t, fails(t, l, "h2", token(t, l), "weft", "launch", "--token", "-", "192.0.2.1"), "10.200.7.0/24", "eth0")
}

func TestOccupiedPortIsReported(t *testing.T) {
	l := bare(t, 1)
	for _, listen := range [][]string{{"--tcp", "6783", "--udp", "0"}, {"--tcp", "0", "--udp", "6784"}} {
		p, err := l.Background(t.Context(), "h1", "listening", append([]string{"weft", "probe", "listen"}, listen...)...)
		if err != nil {
			t.Fatal(err)
		}
		port := "6783"
		if listen[3] != "0" {
			port = listen[3]
		}
		says(t, fails(t, l, "h1", "", "weft", "launch", "--wait", "4s"), port)
		p.Signal(syscall.SIGTERM)
		_, _ = p.Wait()
		_, _ = l.Exec(t.Context(), "h1", nil, "weft", "stop")
		run(t, l, "h1", "weft", "reset")
	}
	launchFounder(t, l)
}

func TestMissingPrivilegeIsReported(t *testing.T) {
	cmd := exec.Command(filepath.Join(labtest.Bin(t), "weft"), "agent", "--state-dir", t.TempDir(), "--run-dir", t.TempDir())
	if os.Getuid() == 0 {
		dir, err := os.MkdirTemp("/tmp", "weft-nobody-")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		copyOf := filepath.Join(dir, "weft")
		data, err := os.ReadFile(cmd.Path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(copyOf, data, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(dir, 0o777); err != nil { // the user nobody must be able to enter the folder
			t.Fatal(err)
		}
		cmd = exec.Command(copyOf, "agent", "--state-dir", filepath.Join(dir, "state"), "--run-dir", filepath.Join(dir, "run"))
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
	out, err := cmd.CombinedOutput()
	if err == nil {
		t.Fatal("an agent without privileges started, want a refusal")
	}
	says(t, string(out), "NET_ADMIN", "root")
}

func TestAttachConnectsAContainerAndDetachLeavesNothing(t *testing.T) {
	l := bare(t, 1)
	launchFounder(t, l)
	netns, err := l.NetNS(t.Context(), "h1/c1")
	if err != nil {
		t.Fatal(err)
	}
	out := strings.Fields(run(t, l, "h1", "weft", "attach", netns))
	if len(out) != 2 || !strings.HasPrefix(out[0], "10.32.0.") {
		t.Fatalf("attach printed %v, want an address of each family", out)
	}
	run(t, l, "h1/c1", "weft", "probe", "icmp", "--count", "1", report(t, l, "h1").Router.Node[0].String())
	pid := strings.Split(netns, "/")[2]
	says(t, fails(t, l, "h1", "", "weft", "attach", pid), "attached already, as "+out[0], "detach")
	says(t, fails(t, l, "h1", "", "weft", "attach", "999999"), "no process has the PID 999999")
	says(t, fails(t, l, "h1", "", "weft", "attach", "/etc/passwd"), "/etc/passwd")
	says(t, fails(t, l, "h1", "", "weft", "attach", "/proc/1/ns/net"), "host's own")
	says(t, fails(t, l, "h1", "", "weft", "attach", "no-such-container"), "Docker")
	if s := run(t, l, "h1", "weft", "ps"); !strings.Contains(s, out[0]) {
		t.Errorf("ps lacks the container's address %s, want it:\n%s", out[0], s)
	}
	run(t, l, "h1", "weft", "detach", pid)
	says(t, fails(t, l, "h1", "", "weft", "detach", pid), "not attached")
	nothingLeft(t, l, "h1")
	// The address of a process that ends without detach is released automatically.
	run(t, l, "h1", "weft", "attach", netns)
	if err := l.RemoveContainer(t.Context(), "h1/c1"); err != nil {
		t.Fatal(err)
	}
	eventually.True(t, 15*time.Second, "the address is free again", func() bool { return len(report(t, l, "h1").Endpoints) == 0 })
	nothingLeft(t, l, "h1")
}

// Random bytes on every port, and invalid requests to the control socket, crash no agent.
func TestGarbageOnEveryPortCrashesNothing(t *testing.T) {
	l := labtest.New(t, lab.Options{Hosts: 2, Containers: 1})
	established(t, l)
	pid := report(t, l, "h1").Router.PID
	for _, port := range []string{"192.0.2.1:6783", "192.0.2.1:6784", "[2001:db8::1]:6783"} {
		if err := tool(t, l, "h2", "garbage", port); err != nil {
			t.Error(err)
		}
	}
	if err := tool(t, l, "h1", "garbage", "127.0.0.1:6784"); err != nil {
		t.Error(err)
	}
	for _, body := range []string{"", "{", "[]", `{"containerID":7}`, "{}", "a page of x"} {
		if err := tool(t, l, "h1", "control", body); err != nil {
			t.Errorf("the control socket got %q, want a clear refusal: %v", body, err)
		}
	}
	run(t, l, "h1/c1", append([]string{"weft", "probe", "icmp"}, addrs(t, l, "h2/c1")...)...)
	// Random bytes may or may not look like gossip that another key encrypts. Their sender is reported
	// in both cases.
	if r := report(t, l, "h1"); r.Router.PID != pid || !r.Ready || !slices.ContainsFunc(r.Rejections, func(x api.Rejection) bool { return x.Addr == "192.0.2.2" }) {
		t.Errorf("ready %v, pid %d (before %d), rejections %+v; want a ready agent that was not restarted, and a rejection of 192.0.2.2", r.Ready, r.Router.PID, pid, r.Rejections)
	}
}

// A rebooted host, without any of its namespaces, keeps its identity.
func TestRebootKeepsTheIdentity(t *testing.T) {
	l := labtest.New(t, lab.Options{Hosts: 2, Containers: 2})
	established(t, l)
	before := report(t, l, "h2")
	if err := l.Reboot(t.Context(), "h2"); err != nil {
		t.Fatal(err)
	}
	after := report(t, l, "h2")
	if after.Router.ID != before.Router.ID || after.Router.PublicKey != before.Router.PublicKey || after.Router.Node[0] != before.Router.Node[0] {
		t.Errorf("the identity was %s %s %v before the reboot, and is %s %s %v, want no change", before.Router.ID, before.Router.PublicKey, before.Router.Node, after.Router.ID, after.Router.PublicKey, after.Router.Node)
	}
	if after.IPAM.Active != 3 || len(after.Endpoints) != 2 {
		t.Errorf("%d slots are active, %d endpoints; want 3 and 2", after.IPAM.Active, len(after.Endpoints))
	}
	established(t, l)
	run(t, l, "h1/c1", append([]string{"weft", "probe", "icmp"}, addrs(t, l, "h2/c1")...)...)
}

// weft stop leaves tunnels and containers in place, weft reset leaves nothing. The status of other
// peers shows which of the two was run.
func TestStopKeepsTunnelsAndResetLeavesNothing(t *testing.T) {
	l := labtest.New(t, lab.Options{Hosts: 2, Containers: 1})
	established(t, l)
	if err := l.Stop(t.Context(), "h2"); err != nil {
		t.Fatal(err)
	}
	peer := func(state string) func() bool {
		return func() bool {
			return strings.Contains(run(t, l, "h1", "weft", "status", "peers"), "(h2)  "+state)
		}
	}
	eventually.True(t, 5*time.Second, "h1 knows that h2's agent was stopped", peer("stopped"))
	run(t, l, "h1/c1", append([]string{"weft", "probe", "icmp", "--count", "3"}, addrs(t, l, "h2/c1")...)...)
	says(t, fails(t, l, "h2", "", "weft", "status"), "not running", "weft launch", "exit code 3")
	if err := l.Start(t.Context(), "h2"); err != nil {
		t.Fatal(err)
	}
	if err := l.Kill(t.Context(), "h2", "agent"); err != nil {
		t.Fatal(err)
	}
	eventually.True(t, 30*time.Second, "h1 sees that h2's agent vanished", peer("unreachable"))
	if err := l.Start(t.Context(), "h2"); err != nil {
		t.Fatal(err)
	}
	says(t, fails(t, l, "h2", "", "weft", "reset"), "1 container is attached", "--force")
	run(t, l, "h2", "weft", "reset", "--force")
	eventually.True(t, 5*time.Second, "h1 knows that h2 left", peer("left"))
	if c := report(t, l, "h1").Router.Connections; len(c) != 0 {
		t.Errorf("h1 has the tunnels %+v after h2 left, want none", c)
	}
	for _, file := range []string{"/proc/net/dev", "/proc/net/route", "/proc/net/ipv6_route"} {
		if out := run(t, l, "h2", "cat", file); strings.Contains(out, "weft") {
			t.Errorf("after reset, %s has entries of Weft, want none:\n%s", file, out)
		}
	}
	if left, _ := os.ReadDir(l.StateDir("h2")); len(left) > 0 {
		t.Errorf("after reset, the state folder has %v, want no files", left)
	}
	if out, err := l.Exec(t.Context(), "h2", nil, "sh", "-c", "ls /etc/cni/net.d /opt/cni/bin"); err != nil || strings.Contains(out, "weft") {
		t.Errorf("after reset, the CNI folders have %s (%v), want no file of Weft", out, err)
	}
}

// Targets, the hosts that an agent contacts to join, can be changed at run time and persist. A
// partition heals by itself.
func TestTargetsPersistAndPartitionsHeal(t *testing.T) {
	labtest.Waits(t)
	l := labtest.New(t, lab.Options{Hosts: 3, Containers: 1})
	established(t, l)
	run(t, l, "h3", "weft", "connect", "--replace", "192.0.2.2")
	says(t, fails(t, l, "h3", "", "weft", "connect", "not a host"), "want HOST or HOST:PORT", "exit code 2")
	if err := l.Stop(t.Context(), "h3"); err != nil {
		t.Fatal(err)
	}
	if err := l.Start(t.Context(), "h3"); err != nil {
		t.Fatal(err)
	}
	eventually.True(t, 10*time.Second, "h3 joined its new target", func() bool {
		r := report(t, l, "h3").Router.Targets
		return len(r) == 1 && r[0].Host == "192.0.2.2" && r[0].State == "connected"
	})
	run(t, l, "h3", "weft", "forget", "192.0.2.2")
	if s := run(t, l, "h3", "weft", "status", "targets"); strings.TrimSpace(s) != "" {
		t.Errorf("after forget, the targets are %s, want none", s)
	}
	for _, other := range []string{"h1", "h2"} {
		if err := l.Link(t.Context(), "h3", other, false); err != nil {
			t.Fatal(err)
		}
	}
	eventually.True(t, 30*time.Second, "h1 sees that h3 is unreachable", func() bool {
		return strings.Contains(run(t, l, "h1", "weft", "status", "peers"), "(h3)  unreachable")
	})
	for _, other := range []string{"h1", "h2"} {
		if err := l.Link(t.Context(), "h3", other, true); err != nil {
			t.Fatal(err)
		}
	}
	eventually.True(t, 60*time.Second, "h1 sees three running peers", func() bool {
		return strings.Count(run(t, l, "h1", "weft", "status", "peers"), "running") == 3
	})
	run(t, l, "h1/c1", append([]string{"weft", "probe", "icmp"}, addrs(t, l, "h3/c1")...)...)
}

// Invariant 8: files are only readable by root.
func TestFilesAreForRootOnly(t *testing.T) {
	l := bare(t, 1)
	launchFounder(t, l)
	for _, path := range []string{"/var/lib/weft/state.db", "/var/lib/weft/secret", "/var/lib/weft/agent.log", "/var/lib/weft/datapath.log", "/run/weft/weft.sock"} {
		mode, err := strconv.ParseUint(strings.TrimSpace(run(t, l, "h1", "stat", "-c", "%a", path)), 8, 32)
		if err != nil || mode != 0o600 {
			t.Errorf("%s has mode %o, error %v, want 600", path, mode, err)
		}
	}
	secret := token(t, l)
	for _, path := range []string{"/var/lib/weft/agent.log", "/var/lib/weft/datapath.log"} {
		if strings.Contains(run(t, l, "h1", "cat", path), secret) {
			t.Errorf("%s contains the secret, want it in no log", path)
		}
	}
	out := run(t, l, "h1", "weft", "report")
	if strings.Contains(out, secret) || strings.Contains(out, fmt.Sprintf("%x", secret)) {
		t.Error("the report contains the secret, want it hidden")
	}
}
