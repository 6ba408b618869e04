package lab_test

import (
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"weft/prog/lab"
)

func command(t *testing.T, args ...string) *exec.Cmd {
	return exec.CommandContext(t.Context(), filepath.Join(bin, "weft"), append([]string{"lab"}, args...)...)
}

// Hosts know each other by name. A container only knows names from its network.
func TestHostsKnowEachOtherByName(t *testing.T) {
	l := bare(t, 2, 1)
	for name, want := range map[string]string{"h1": "192.0.2.1", "h2": "192.0.2.2"} {
		if got := run(t, l, "h1", "getent", "ahostsv4", name); !strings.HasPrefix(got, want+" ") {
			t.Errorf("h1 resolves %s to %q, want %s", name, got, want)
		}
	}
	if got := run(t, l, "h2", "getent", "ahostsv6", "h1"); !strings.HasPrefix(got, "2001:db8::1 ") {
		t.Errorf("h2 resolves h1 to %q, want 2001:db8::1", got)
	}
	if got := run(t, l, "h1/c1", "cat", "/etc/hosts"); strings.Contains(got, "h2") || !strings.Contains(got, "localhost") {
		t.Errorf("a container's /etc/hosts is %q, want localhost without hosts", got)
	}
}

// A host's network can be changed like a real host's. A reboot undoes the changes.
func TestHostNetworksCanBeChanged(t *testing.T) {
	l := bare(t, 3, 0)
	ping := func(size, from, to string) (int, error) {
		out, err := l.Exec(t.Context(), from, nil, "weft", "probe", "icmp", "--json", "-c", "3", "-i", "10ms", "--timeout", "300ms", "--size", size, to)
		return result(t, out).Received, err
	}
	// Large frames pass between hosts that both support them, and to no others.
	for _, h := range []string{"h1", "h2"} {
		if err := l.SetMTU(t.Context(), h, 9000); err != nil {
			t.Fatal(err)
		}
	}
	if got := run(t, l, "h1", "cat", "/sys/class/net/eth0/mtu"); got != "9000" {
		t.Errorf("the MTU is %s, want 9000", got)
	}
	if n, err := ping("8000", "h1", "192.0.2.2"); n != 3 {
		t.Errorf("of 3 packets of 8,000 bytes between hosts with MTU 9000, %d came back, want 3: %v", n, err)
	}
	if n, _ := ping("8000", "h1", "192.0.2.3"); n != 0 {
		t.Errorf("to a host with MTU 1500, %d of 3 packets of 8,000 bytes came back, want none", n)
	}
	// A route's MTU causes fragments, which arrive. IPv6 needs at least 1,280 bytes.
	for to, file := range map[string]string{"192.0.2.0/24": "/proc/net/route", "2001:db8::/64": "/proc/net/ipv6_route"} {
		before := strings.Count(run(t, l, "h3", "cat", file), "\n")
		if err := l.SetRouteMTU(t.Context(), "h3", netip.MustParsePrefix(to), 1280); err != nil {
			t.Fatal(err)
		}
		if after := strings.Count(run(t, l, "h3", "cat", file), "\n"); after != before {
			t.Errorf("%s: %d routes became %d, want the same number: the route was not replaced", to, before, after)
		}
	}
	fragments := func() string {
		return run(t, l, "h3", "sh", "-c", `awk '/^Ip:/ {n=$20} /^Ip6FragCreates/ {m=$2} END {print n, m}' /proc/net/snmp /proc/net/snmp6`)
	}
	for _, to := range []string{"192.0.2.1", "2001:db8::1"} {
		before := fragments()
		if n, err := ping("1400", "h3", to); n != 3 || fragments() == before {
			t.Errorf("%s: %d of 3 packets came back through a route with MTU 1280, fragments %s before and %s now, want 3 packets and more fragments: %v", to, n, before, fragments(), err)
		}
	}
	// The second link's default route is better, and a capture sees both networks.
	if err := l.AddLink(t.Context(), "h1", 50); err != nil {
		t.Fatal(err)
	}
	if err := l.AddLink(t.Context(), "h2", 0); err != nil {
		t.Fatal(err)
	}
	c, err := l.Capture(t.Context(), "second-link")
	if err != nil {
		t.Fatal(err)
	}
	run(t, l, "h1", "weft", "probe", "icmp", "-c", "3", "-i", "10ms", "--marker", "second-link", "198.51.100.2", "2001:db8:1::2")
	if sum, err := c.Stop(); err != nil || sum.Marked != 12 {
		t.Errorf("%d marked packets on the second network, want 12: %v", sum.Marked, err)
	}
	if got := run(t, l, "h1", "grep", "-c", "eth1", "/proc/net/route"); got != "2" {
		t.Errorf("h1 has %s routes through eth1, want that of the network and a default route", got)
	}
	if err := l.Reboot(t.Context(), "h1"); err != nil {
		t.Fatal(err)
	}
	if got := run(t, l, "h1", "ls", "/sys/class/net"); strings.Contains(got, "eth1") {
		t.Errorf("after a reboot h1 has the links %s, want no eth1", got)
	}
	if err := l.AddLink(t.Context(), "h1", 0); err != nil {
		t.Errorf("adding a second link again after a reboot returned %v, want success", err)
	}
}

// Firewall rules of another program are loaded from a file, in the format of nft or of iptables-save.
func TestForeignFirewallRulesAreLoaded(t *testing.T) {
	for program, pkg := range map[string]string{"nft": "nftables", "ip6tables-restore": "iptables"} {
		if err := lab.Install(program, pkg); err != nil {
			t.Skip(err)
		}
	}
	l := bare(t, 2, 0)
	rules := filepath.Join(t.TempDir(), "rules")
	const nft = "# a comment\ntable inet foreign {\n chain in { type filter hook input priority 0; icmp type echo-request drop; }\n}\n"
	if err := os.WriteFile(rules, []byte(nft), 0o600); err != nil {
		t.Fatal(err)
	}
	reaches := func(to string) bool {
		_, err := l.Exec(t.Context(), "h1", nil, "weft", "probe", "icmp", "-c", "2", "-i", "10ms", "--timeout", "200ms", to)
		return err == nil
	}
	if out, err := command(t, "network", "--name", labName(t), "h2", "--firewall", rules).CombinedOutput(); err != nil {
		t.Fatalf("weft lab network --firewall returned %v, want success: %s", err, out)
	}
	if reaches("192.0.2.2") || !reaches("2001:db8::2") {
		t.Error("with rules in the format of nft, IPv4 passes or IPv6 does not, want only IPv4 dropped")
	}
	const saved = "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -p ipv6-icmp -m icmp6 --icmpv6-type echo-request -j DROP\nCOMMIT\n"
	if err := l.LoadRules(t.Context(), "h2", "rules.v6", []byte(saved)); err != nil {
		t.Fatal(err)
	}
	if reaches("2001:db8::2") {
		t.Error("with rules in the format of iptables-save, IPv6 passes, want it dropped")
	}
	if err := l.LoadRules(t.Context(), "h2", "rules", []byte("nonsense")); err == nil || !strings.Contains(err.Error(), "rules on h2") {
		t.Errorf("loading invalid rules returned %v, want an error about the rules on h2", err)
	}
}

// On a terminal, exec gives the command its own terminal: it has a size, and ctrl-C only ends the
// foreground job.
func TestExecGivesTheCommandATerminal(t *testing.T) {
	bare(t, 1, 0)
	ours, theirs, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	if err := pty.Setsize(ours, &pty.Winsize{Rows: 33, Cols: 77}); err != nil {
		t.Fatal(err)
	}
	cmd := command(t, "exec", "--name", labName(t), "h1", "--", "sh")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = theirs, theirs, theirs
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = theirs.Close()
	lines := make(chan string)
	go func() { // the goroutine ends with the terminal
		defer close(lines)
		buf := make([]byte, 4096)
		for {
			n, err := ours.Read(buf)
			if err != nil {
				return
			}
			lines <- string(buf[:n])
		}
	}()
	var seen strings.Builder
	expect := func(want string) {
		t.Helper()
		for deadline := time.After(10 * time.Second); !strings.Contains(seen.String(), want); {
			select {
			case s, more := <-lines:
				if !more {
					t.Fatalf("the command ended without showing %q: %q", want, seen.String())
				}
				seen.WriteString(s)
			case <-deadline:
				t.Fatalf("%q was not shown: %q", want, seen.String())
			}
		}
	}
	typed := func(s string) {
		t.Helper()
		if _, err := io.WriteString(ours, s); err != nil {
			t.Fatal(err)
		}
	}
	typed("stty size; echo on $(hostname)\n")
	expect("33 77")
	expect("on h1")
	if err := pty.Setsize(ours, &pty.Winsize{Rows: 44, Cols: 88}); err != nil {
		t.Fatal(err)
	}
	typed("until stty size | grep -q 44; do sleep 0.05; done; stty size\n")
	expect("44 88")
	typed("sh -c \"echo wait''ing; exec sleep 1000\"\n")
	expect("waiting")
	typed("\x03")
	typed("echo the shell ''lives; exit 6\n")
	expect("the shell lives")
	for range lines { // read until the terminal is closed
	}
	if err := cmd.Wait(); exitCode(err) != 6 {
		t.Errorf("exec of a shell that exits with 6 returned %v, want exit code 6", err)
	}
}

// Invalid commands are refused, and a failed command leaves nothing.
func TestInvalidRequestsAreRefused(t *testing.T) {
	for args, want := range map[string]string{
		"up --hosts 0":                        "0 hosts",
		"up --hosts -1":                       "-1 hosts",
		"up --hosts 201":                      "201 hosts",
		"nat h1":                              "either --kind or --behind",
		"nat h1 --behind h2 --kind none":      "either --kind or --behind",
		"nat h1 --behind h2 --udp-timeout 9s": "--udp-timeout is for a new NAT",
		"network h1":                          "nothing to change",
		"network h1 --metric 5":               "--second-link",
		"network h1 --mtu 9000":               "no lab",
		"exec h1 -- true":                     "no lab",
	} {
		out, err := command(t, strings.Fields(strings.Replace(args, " ", " --name "+labName(t)+" ", 1))...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), want) {
			t.Errorf("weft lab %s: error %v, want a refusal with %q: %s", args, err, want, out)
		}
		nothingLeft(t)
	}
}

// If weft does not start, up says why and removes the lab, unless --keep is given.
func TestFailedUpReportsWhyAndRemovesTheLab(t *testing.T) {
	up := func(args ...string) string {
		args = append([]string{"up", "--name", labName(t), "--hosts", "1"}, args...)
		out, err := command(t, append(args, "--", "--nonsense")...).CombinedOutput()
		if strings.Contains(string(out), "/dev/net/tun") {
			t.Skipf("this machine gives an ordinary user no tunnel device: %s", out)
		}
		if err == nil || !strings.Contains(string(out), "unknown flag") || !strings.Contains(string(out), "the agent ended") {
			t.Errorf("up %v: error %v, want the unknown flag and the agent's log: %s", args, err, out)
		}
		return string(out)
	}
	up()
	nothingLeft(t)
	if out := up("--keep"); !strings.Contains(out, "still up") {
		t.Errorf("up --keep printed %q, want a message that the lab is still up", out)
	}
	if out, err := command(t, "down", "--name", labName(t)).CombinedOutput(); err != nil {
		t.Errorf("down after up --keep: error %v, want success: %s", err, out)
	}
	nothingLeft(t)
}
