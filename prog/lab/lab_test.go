package lab_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft/mesh/meshtest/eventually"
	"weft/prog/lab"
	"weft/prog/lab/labtest"
	"weft/prog/lab/probe"
)

// bare makes hosts without weft, in a lab named after the test.
func bare(t *testing.T, hosts, containers int) *lab.Lab {
	t.Helper()
	return labtest.New(t, lab.Options{Name: labName(t), Hosts: hosts, Containers: containers, Bare: true, Bin: bin})
}

func labName(t *testing.T) string {
	name := strings.ToLower(strings.Map(func(r rune) rune {
		if r == '/' || r == '_' {
			return '-'
		}
		return r
	}, strings.TrimPrefix(t.Name(), "Test")))
	return fmt.Sprintf("%.20s-%d", name, os.Getpid())
}

func labDir(t *testing.T) string {
	return fmt.Sprintf("/tmp/weft-lab-%d/%s", os.Geteuid(), labName(t))
}

func run(t *testing.T, l *lab.Lab, target string, args ...string) string {
	t.Helper()
	return strings.TrimSpace(labtest.Run(t, l, target, args...))
}

// h1 ── underlay ── h2
// │                 │
// c1 c2             c1 c2
func TestHostsAreSeparate(t *testing.T) {
	l := bare(t, 2, 2)
	for _, h := range l.Hosts() {
		if got := run(t, l, h, "hostname"); got != h {
			t.Errorf("the hostname of %s is %q, want its name", h, got)
		}
		for _, dir := range []string{"/run", "/etc/cni", "/opt/cni", "/var/lib/weft", "/etc", "/var/lib"} {
			mark := filepath.Join(dir, "mark-"+labName(t))
			if got := run(t, l, h, "sh", "-c", "cat "+mark+" 2>/dev/null; echo "+h+" >"+mark); got != "" {
				t.Errorf("%s sees the file that %q wrote to %s, want a separate folder on each host", h, got, dir)
			}
			if _, err := os.Lstat(mark); err == nil {
				t.Errorf("%s of %s is the machine's own, want a separate one", dir, h)
			}
		}
		if got := run(t, l, h, "sh", "-c", "ls -d /proc/[0-9]* | wc -l"); got > "9" {
			t.Errorf("%s sees %s processes, want only its own", h, got)
		}
	}
	if got := run(t, l, "h1/c2", "hostname"); got != "c2" {
		t.Errorf("the hostname of h1/c2 is %q, want c2", got)
	}
	// The kernel itself may add fallback tunnel devices.
	if got := run(t, l, "h1/c2", "cat", "/proc/net/dev"); strings.Contains(got, "eth0") || !strings.Contains(got, "lo:") {
		t.Errorf("h1/c2 has the interfaces %q, want lo without eth0", got)
	}
	run(t, l, "h1", "weft", "probe", "icmp", "-c", "3", "-i", "10ms", "192.0.2.2", "2001:db8::2")
	s, err := l.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Hosts) != 2 || !s.Hosts[1].Up || len(s.Hosts[1].Containers) != 2 || s.Hosts[1].Underlay[1] != "2001:db8::2" {
		t.Errorf("got the status %+v, want two running hosts with two containers each", s)
	}
}

func TestExecReturnsOutputAndExitCode(t *testing.T) {
	l := bare(t, 1, 1)
	for _, target := range []string{"h1", "h1/c1", "underlay"} {
		_, err := l.Exec(t.Context(), target, nil, "sh", "-c", "echo no >&2; exit 7")
		if exit, ok := errors.AsType[*lab.CommandError](err); !ok || exit.Code != 7 || exit.Stderr != "no" {
			t.Errorf("%s: a command with exit code 7 returned %v, want that code and its stderr", target, err)
		}
		out, err := l.Exec(t.Context(), target, strings.NewReader("a\nb\n"), "wc", "-l")
		if err != nil || strings.TrimSpace(out) != "2" {
			t.Errorf("%s: wc counted %q lines of stdin, error %v; want 2", target, out, err)
		}
	}
	_, err := l.Exec(t.Context(), "h1", nil, "no-such-command")
	if exit, ok := errors.AsType[*lab.CommandError](err); !ok || exit.Code != 127 {
		t.Errorf("an unknown command returned %v, want exit code 127", err)
	}
	_, err = l.Exec(t.Context(), "h1", nil, "sh", "-c", "kill -USR1 $$")
	if exit, ok := errors.AsType[*lab.CommandError](err); !ok || exit.Signal != unix.SIGUSR1 || exit.Code != 128+int(unix.SIGUSR1) {
		t.Errorf("a command that was killed by SIGUSR1 returned %v, want that signal, and code 128 plus its number", err)
	}
	if _, err := l.Exec(t.Context(), "h9", nil, "true"); err == nil || !strings.Contains(err.Error(), "lab status") {
		t.Errorf("Exec on an unknown host returned %v, want a hint at lab status", err)
	}
	// A daemon that keeps stdout open does not block the caller.
	start := time.Now()
	if out := run(t, l, "h1", "sh", "-c", "sleep 300 & echo started"); out != "started" || time.Since(start) > 10*time.Second {
		t.Errorf("a command that starts a daemon returned %q after %v, want it at once", out, time.Since(start))
	}
}

func TestExecEndsWithItsCaller(t *testing.T) {
	l := bare(t, 1, 0)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := l.Exec(ctx, "h1", nil, "sh", "-c", "sleep 1234; true")
		ended <- err
	}()
	eventually.True(t, wait, "the command runs", func() bool { return sleeping(t, l, "1234") })
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("after cancellation Exec returned %v, want %v", err, context.Canceled)
	}
	eventually.True(t, wait, "the command ends", func() bool { return !sleeping(t, l, "1234") })
}

func sleeping(t *testing.T, l *lab.Lab, arg string) bool {
	out, _ := l.Exec(t.Context(), "h1", nil, "sh", "-c", `cat /proc/[0-9]*/cmdline | tr '\0' ' '`)
	return strings.Contains(out, "sleep "+arg)
}

// wait is how long a lab may take until a change is visible.
const wait = 10 * time.Second

// The command line's exec passes exit codes, stdin, flags and ctrl-C.
func TestExecCommandPassesSignalsAndExitCodes(t *testing.T) {
	l := bare(t, 1, 0)
	weft := func(args ...string) *exec.Cmd {
		return exec.CommandContext(t.Context(), filepath.Join(bin, "weft"),
			append([]string{"lab", "exec", "--name", labName(t), "h1"}, args...)...)
	}
	if err := weft("--", "sh", "-c", "exit 9").Run(); exitCode(err) != 9 {
		t.Errorf("exec of a command with exit code 9 returned %v, want that code", err)
	}
	cmd := weft("--", "cat", "-A")
	cmd.Stdin = strings.NewReader("in\n")
	if out, err := cmd.Output(); err != nil || string(out) != "in$\n" {
		t.Errorf("exec with stdin returned %q, error %v; want in$", out, err)
	}
	// ctrl-C sends SIGINT to the foreground process group, to which the command does not belong.
	cmd = weft("--", "sh", "-c", "trap 'exit 5' INT; echo ready; while :; do sleep 0.1; done")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, len("ready\n"))); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); exitCode(err) != 5 {
		t.Errorf("exec that was interrupted returned %v, want exit code 5", err)
	}
	// kill -9 of the command line also ends the command.
	cmd = weft("--", "sleep", "4321")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually.True(t, wait, "the command runs", func() bool { return sleeping(t, l, "4321") })
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	eventually.True(t, wait, "the command ends", func() bool { return !sleeping(t, l, "4321") })
}

func exitCode(err error) int {
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit.ExitCode()
	}
	return -1
}

// Rules that somebody else loads into the switch are no cut links, and the lab works on.
func TestRulesOfOthersAreNoCuts(t *testing.T) {
	labtest.Need(t, "nft", "nftables")
	l := bare(t, 2, 0)
	run(t, l, lab.UnderlayName, "nft", "add", "table", "bridge", "another")
	for _, up := range []bool{true, false} {
		if err := l.Link(t.Context(), "h1", "h2", up); err != nil {
			t.Fatal(err)
		}
		if s, err := l.Status(t.Context()); err != nil || (len(s.Cut) == 0) != up {
			t.Errorf("with the link up (%v) and another table, the status has the cut links %v, error %v", up, s.Cut, err)
		}
	}
}

// An established flow is cut at once, other pairs are not, and the flow continues when the link is
// restored.
func TestCutLinkStopsEstablishedFlows(t *testing.T) {
	l := bare(t, 3, 0)
	labtest.Listen(t, l, "h2")
	flow := make(chan probe.Result, 1)
	go func() {
		out, _ := l.Exec(t.Context(), "h1", nil, "weft", "probe", "udp", "--json", "-c", "200", "-i", "20ms", "192.0.2.2")
		flow <- result(t, out)
	}()
	time.Sleep(300 * time.Millisecond) // let the flow send some messages before the cut
	link := func(up bool) {
		t.Helper()
		if err := l.Link(t.Context(), "h2", "h1", up); err != nil {
			t.Fatal(err)
		}
	}
	link(false)
	link(false) // a second cut of the same link changes nothing
	for _, dst := range []string{"192.0.2.1", "2001:db8::1"} {
		out, err := l.Exec(t.Context(), "h2", nil, "weft", "probe", "icmp", "--json", "-c", "3", "-i", "20ms", "--timeout", "200ms", dst)
		if r := result(t, out); err == nil || r.Received != 0 {
			t.Errorf("over the cut link, the probe of %s returned %+v, error %v, want no answer and an error", dst, r, err)
		}
	}
	run(t, l, "h3", "weft", "probe", "icmp", "-c", "3", "-i", "10ms", "192.0.2.1", "192.0.2.2", "2001:db8::2")
	if s, err := l.Status(t.Context()); err != nil || len(s.Cut) != 1 || s.Cut[0] != [2]string{"h1", "h2"} {
		t.Errorf("with the link of h1 and h2 cut, the status has the cut links %v, error %v, want that link", s.Cut, err)
	}
	link(true)
	link(true)
	run(t, l, "h2", "weft", "probe", "icmp", "-c", "3", "-i", "10ms", "192.0.2.1", "2001:db8::1")
	if r := <-flow; r.Lost < 10 || r.Received < 20 {
		t.Errorf("a flow over a link that was cut and restored got %+v, want some lost and some received packets", r)
	}
	if s, err := l.Status(t.Context()); err != nil || len(s.Cut) != 0 {
		t.Errorf("after the link is restored, the status has the cut links %v, error %v, want none", s.Cut, err)
	}
}

func result(t *testing.T, out string) probe.Result {
	t.Helper()
	var r []probe.Result
	if err := json.Unmarshal([]byte(out), &r); err != nil || len(r) != 1 {
		t.Errorf("probe printed %q, want JSON with one result: %v", out, err)
		return probe.Result{}
	}
	return r[0]
}

func TestRebootKeepsOnlyPersistentFiles(t *testing.T) {
	l := bare(t, 2, 1)
	run(t, l, "h1", "sh", "-c", "echo kept >/var/lib/weft/id; echo lost >/run/id; sleep 999 & mkdir -p /etc/cni/net.d")
	for range 3 { // reboot in quick succession: remains of the previous boot must do no harm
		if err := l.Reboot(t.Context(), "h1"); err != nil {
			t.Fatal(err)
		}
	}
	if got := run(t, l, "h1", "sh", "-c", "cat /var/lib/weft/id; ls /run /etc/cni"); got != "kept\n/etc/cni:\n\n/run:" {
		t.Errorf("after a reboot the files are %q, want only those in /var/lib/weft", got)
	}
	if sleeping(t, l, "999") {
		t.Error("after a reboot, a process from before still runs, want none")
	}
	run(t, l, "h1/c1", "true")
	run(t, l, "h2", "weft", "probe", "icmp", "-c", "3", "-i", "10ms", "192.0.2.1", "2001:db8::1")
}

// A capture counts packets in the clear, each once, including large segments. So the check for
// plaintext can fail.
func TestCaptureCountsEachPacketOnce(t *testing.T) {
	l := bare(t, 2, 0)
	labtest.Listen(t, l, "h2")
	const marker = "PLAINTEXT-MARKER"
	c, err := l.Capture(t.Context(), marker)
	if err != nil {
		t.Fatal(err)
	}
	run(t, l, "h1", "weft", "probe", "icmp", "-c", "4", "-i", "10ms", "--size", "1000", "--marker", marker, "2001:db8::2")
	run(t, l, "h1", "weft", "probe", "udp", "-c", "6", "-i", "10ms", "--size", "100", "192.0.2.2")
	run(t, l, "h1", "weft", "probe", "tcp", "-c", "1", "--size", "60000", "--marker", marker, "192.0.2.2")
	// A host sends a packet that leaks towards the internet, although the gateway does not exist.
	_, _ = l.Exec(t.Context(), "h1", nil, "weft", "probe", "udp", "-p", "9", "-c", "2", "-i", "1ms", "--timeout", "1ms", "--marker", marker, "10.32.0.1")
	sum, err := c.Stop()
	if err != nil {
		t.Fatal(err)
	}
	rows := make(map[string]probe.Row)
	for _, r := range sum.Flows {
		rows[r.Name()] = r
	}
	if r := rows["icmpv6"]; r.Packets != 8 || r.Marked != 8 {
		t.Errorf("the capture counted %+v of icmpv6, want 8 packets, all with the marker", r)
	}
	if r := rows["udp 7007"]; r.Packets != 12 || r.Marked != 0 {
		t.Errorf("the capture counted %+v of udp 7007, want 12 packets without the marker", r)
	}
	if r := rows["udp 9"]; r.Packets != 2 || r.Marked != 2 {
		t.Errorf("the capture counted %+v of udp 9, want 2 packets with the marker", r)
	}
	if r := rows["tcp 7007"]; r.Marked < 2 || r.Bytes < 120_000 {
		t.Errorf("the capture counted %+v of tcp 7007, want at least 2 packets with the marker and 120,000 bytes", r)
	}
	if sum.Dropped != 0 {
		t.Errorf("the capture missed %d packets, want 0", sum.Dropped)
	}
}

func TestBulkMeasuresThroughput(t *testing.T) {
	l := bare(t, 2, 0)
	labtest.Listen(t, l, "h2")
	out := run(t, l, "h1", "weft", "probe", "tcp", "--bulk", "--duration", "200ms", "--json", "2001:db8::2")
	var r probe.BulkResult
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatal(err)
	}
	if r.Bytes == 0 || r.Gbits <= 0 {
		t.Errorf("probe tcp --bulk returned %+v, want some bytes", r)
	}
}

// Down removes everything of a lab, whether the lab is healthy, its root was killed, or a host's node was.
func TestDownLeavesNothing(t *testing.T) {
	for name, crash := range map[string]func(*testing.T, *lab.Lab){
		"healthy":   func(*testing.T, *lab.Lab) {},
		"root node": func(t *testing.T, _ *lab.Lab) { killNode(t, "underlay") },
		"host node": func(t *testing.T, _ *lab.Lab) { killNode(t, "h1") },
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			l := bare(t, 2, 2)
			run(t, l, "h1/c1", "sh", "-c", "sleep 777 & sleep 777 &")
			if err := os.MkdirAll(filepath.Join(l.StateDir("h1"), "queue"), 0o700); err != nil {
				t.Fatal(err)
			}
			crash(t, l)
			if name == "root node" {
				eventually.True(t, wait, "the lab is down", func() bool {
					_, err := lab.Open(labName(t))
					return err != nil && strings.Contains(err.Error(), "lab down")
				})
			}
			stale, err := lab.Down(t.Context(), labName(t))
			if err != nil || stale != (name == "root node") {
				t.Errorf("Down: got stale %v, error %v, want stale %v", stale, err, name == "root node")
			}
			nothingLeft(t)
		})
	}
}

// The status shows a host whose node was killed as down, and Reboot starts it again.
func TestDeadHostCanBeRebooted(t *testing.T) {
	l := bare(t, 2, 1)
	killNode(t, "h1")
	eventually.True(t, wait, "h1 is shown as dead", func() bool {
		s, err := l.Status(t.Context())
		return err == nil && !s.Hosts[0].Up && s.Hosts[1].Up
	})
	if err := l.Reboot(t.Context(), "h1"); err != nil {
		t.Fatal(err)
	}
	run(t, l, "h2", "weft", "probe", "icmp", "-c", "2", "-i", "10ms", "192.0.2.1")
}

// If the command line is killed at any moment of up, both down and another up clean up.
func TestKilledUpIsCleanedUp(t *testing.T) {
	args := []string{"lab", "up", "--bare", "--hosts", "4", "--name", labName(t)}
	for _, after := range []time.Duration{time.Millisecond, 20 * time.Millisecond, 80 * time.Millisecond, 200 * time.Millisecond} {
		cmd := exec.Command(filepath.Join(bin, "weft"), args...)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(after)
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if _, err := lab.Down(t.Context(), labName(t)); err != nil {
			t.Errorf("up was killed after %v: Down returned %v, want success", after, err)
		}
		// Down finds processes of a lab by their locks. A lab's first process that was started, but
		// has not taken its lock yet, notices that its folder is gone, and ends.
		eventually.True(t, wait, "all nodes have ended", func() bool { return len(nodePids(t, "")) == 0 })
		nothingLeft(t)
	}
}

func TestUpRefusesRunningLabAndReplacesCrashedOne(t *testing.T) {
	l := bare(t, 1, 0)
	o := lab.Options{Name: labName(t), Hosts: 1, Bare: true, Bin: bin}
	if _, err := lab.Up(t.Context(), o); err == nil || !strings.Contains(err.Error(), "already up") {
		t.Errorf("Up of a lab that is up returned %v, want a refusal", err)
	}
	run(t, l, "h1", "true") // the running lab is unharmed
	killNode(t, "underlay")
	eventually.True(t, wait, "the lab is down", func() bool { _, err := lab.Open(labName(t)); return err != nil })
	var said []string
	o.Progress = func(line string) { said = append(said, line) }
	if _, err := lab.Up(t.Context(), o); err != nil || !strings.Contains(strings.Join(said, "\n"), "crashed") {
		t.Errorf("Up over a crashed lab: error %v, progress %q, want success and a message that the old lab crashed", err, said)
	}
}

func TestLabWithTwentyHostsStarts(t *testing.T) {
	start := time.Now()
	l := bare(t, 20, 2)
	t.Logf("20 hosts with 40 containers in %v", time.Since(start).Round(time.Millisecond))
	run(t, l, "h20", "weft", "probe", "icmp", "-c", "2", "-i", "10ms", "192.0.2.1", "2001:db8::13")
}

// nodePids finds the processes of this test's lab: no other process has inherited a descriptor of its
// log.
func nodePids(t *testing.T, name string) []int {
	t.Helper()
	var found []int
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range dirs {
		log, _ := os.Readlink(dir + "/fd/2")
		argv, _ := os.ReadFile(dir + "/cmdline")
		if !strings.HasPrefix(log, labDir(t)+"/") || (name != "" && string(argv) != "weft\x00lab\x00node\x00"+name+"\x00") {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, pid)
	}
	return found
}

func killNode(t *testing.T, name string) {
	t.Helper()
	pids := nodePids(t, name)
	if len(pids) != 1 {
		t.Fatalf("found %d nodes with the name %s, want 1", len(pids), name)
	}
	if err := unix.Kill(pids[0], unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

// nothingLeft checks for remaining processes, mounts and directories of the lab. Its links end with
// the namespaces.
func nothingLeft(t *testing.T) {
	t.Helper()
	if pids := nodePids(t, ""); len(pids) > 0 {
		t.Errorf("processes %v of the lab are left, want none", pids)
	}
	if _, err := os.Lstat(labDir(t)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the lab's directory %s is left (%v), want it removed", labDir(t), err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), labDir(t)) {
		t.Error("mounts of the lab are left, want none")
	}
	links, err := os.ReadDir("/sys/class/net")
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		if link.Name() == "underlay" || link.Name() == "h1" {
			t.Errorf("the machine has the lab's link %s, want none", link.Name())
		}
	}
}
