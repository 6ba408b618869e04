package cli

import (
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"weft/prog/lab/probe"
)

// internals matches text from inside Go, which users must not see: names of functions, types and
// packages, and printed values.
var internals = regexp.MustCompile(`strconv\.|netip\.|ParseAddr|ParsePrefix|ParseInt|ParseUint|ParseBool|Atoi|pflag|json:|template: |reflect|interface \{\}|unmarshal|goroutine|panic|%!|&\{|map\[|<nil>|0xc0|invalid syntax|numerical result|route ip|time: invalid|no value|dial (tcp|udp|unix)|listen ip|looking for beginning`)

// refuses asserts that a command fails with a message for users.
func refuses(t *testing.T, stdin string, args ...string) {
	t.Helper()
	code, out, errOut := weft(t, stdin, args...)
	if code == ExitOK || out != "" || !strings.HasPrefix(errOut, "weft: ") || strings.Contains(errOut, "already (pid") || internals.MatchString(errOut) {
		t.Errorf("weft %s: want a failure with a message for users, got exit code %d, %s%s", strings.Join(args, " "), code, out, errOut)
	}
}

// For every flag that is not text, an invalid value is refused with a description of valid ones.
func TestErrorsAboutFlagValuesDoNotShowGoInternals(t *testing.T) {
	looked := 0
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		path := strings.Fields(c.CommandPath())[1:]
		c.Flags().VisitAll(func(f *pflag.Flag) {
			if strings.HasPrefix(f.Value.Type(), "string") {
				return
			}
			looked++
			for _, value := range []string{"nonsense", "99999999999999999999", "-1x", ""} {
				refuses(t, "", append(path, "--"+f.Name+"="+value)...)
			}
			if wanted[f.Value.Type()] == "" {
				t.Errorf("weft %s --%s: the message does not describe a valid %s, want a description", strings.Join(path, " "), f.Name, f.Value.Type())
			}
		})
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk((&app{}).root())
	if looked < 40 {
		t.Errorf("only %d flags were checked, want at least 40", looked)
	}
}

// For every command with an argument that is an address, number, name or file, invalid text is
// refused.
func TestErrorsAboutArgumentsDoNotShowGoInternals(t *testing.T) {
	socket := serveAll(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	self := "/proc/self/ns/net"
	for _, args := range []string{
		"launch 300.1.2.3", "launch h1:99999", "launch 2001:db8::zz", "launch h1:x",
		"launch --advertise nonsense", "launch --advertise 192.0.2.1/24", "launch --advertise fe80::1%eth0",
		"launch --ipalloc-range nonsense", "launch --ipalloc-range 10.32.0.0", "launch --ipalloc-range 10.32.0.0/33",
		"launch --ipalloc-range 10.32.0.0/12,nonsense", "launch --ipalloc-range 10.32.0.1/12", "launch --ipalloc-range 10.32.0.0/12,10.48.0.0/12",
		"launch --ipalloc-exclude nonsense", "launch --ipalloc-exclude 10.32.0.1",
		"launch --ipalloc-init consensus=nonsense", "launch --ipalloc-init consensus=", "launch --ipalloc-init seed=nonsense", "launch --ipalloc-init x",
		"launch --dns-domain a..b", "launch --dns-forward corp=300.1.2.3", "launch --dns-forward corp=192.0.2.1:x", "launch --dns-forward corp",
		"launch --policy-exempt x", "launch --cni-chain x", "launch --status-addr nonsense", "launch --status-addr 127.0.0.1:x", "launch --status-addr ::1:80",
		"launch --status-addr 300.1.2.3:80", "launch --status-addr foo:80", "launch --status-addr 127.0.0.1:6783", "launch --wireguard-port 6783",
		"launch --advertise 127.0.0.1", "launch --advertise 0.0.0.0", "launch --advertise ff02::1", "launch --nickname " + strings.Repeat("n", 65), "launch --nickname a\x01b",
		"launch --dns-forward corp=::1%lo", "launch --dns-forward corp=[192.0.2.53", "launch --dns-forward corp=[::1%lo]:53", "launch --mtu 1", "launch --port 0",
		"launch --token " + dir, "launch --token " + file, "launch --token -",
		"attach 10.32.0.5/24 " + self, "attach 300.1.2.3 " + self, "attach nonsense " + self, "attach /no/such/netns", "attach 4194305", "attach " + file,
		"attach --label x " + self, "attach --port http=x " + self, "attach --port http=99999 " + self,
		"attach --interface a-name-that-is-too-long " + self,
		"detach nosuch", "dns-add 10.32.0.5/24", "dns-add a b", "dns-remove",
		"policy apply -f /no/such/file", "policy apply -f " + dir, "policy apply", "policy delete a/b/c", "policy get a/b/c", "policy list -o x",
		"policy explain a", "policy explain a b x", "policy explain a b 99999", "policy explain a b 80/x", "policy apply -f - --timeout 0s",
		"probe icmp 300.1.2.3", "probe icmp 2001:db8::zz", "probe icmp 192.0.2.1 --count 0", "probe udp 192.0.2.1 --size 1", "probe capture nosuch",
		"probe tcp 127.0.0.1 --port 1", "probe tcp 127.0.0.1 --port 1 --bulk",
		"report -f {{", "report -f {{nosuch}}", "report -f {{.Router}}", "report -f {{.router.nosuch}}", "report -f {{.cni.config}}", "report -f {{.ready.x}}", "report -f {{.router.peers.id}}", "report -f {{index.router.peers}}",
		"lab up --hosts 0", "lab exec", "lab network h1 --route-mtu x=1280", "lab kill h1 --name ../x", "lab nat h1", "lab link a b c",
	} {
		words := append([]string{"--socket", socket}, strings.Fields(args)...)
		if strings.HasPrefix(args, "launch --token") {
			words = append(words, "--run-dir", dir, "--state-dir", dir)
		} else if strings.HasPrefix(args, "launch") { // launch starts no agent, since one answers on the socket
			words = append(words, "--run-dir", filepath.Dir(socket))
		}
		refuses(t, "nonsense", words...)
	}
}

// Without CAP_NET_RAW, which this thread drops, probe reports that it needs root.
func TestProbeICMPSaysThatItNeedsRoot(t *testing.T) {
	runtime.LockOSThread() // the thread is never unlocked, so it ends with the test
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	none := make([]unix.CapUserData, 2) // version 3 of capset reads two elements
	if err := unix.Capset(&head, &none[0]); err != nil {
		t.Fatal(err)
	}
	_, err := probe.ICMP(t.Context(), netip.MustParseAddr("127.0.0.1"), probe.Config{})
	if err == nil || !strings.Contains(err.Error(), "needs root") || internals.MatchString(err.Error()) {
		t.Errorf("got error %v, want one that says that ICMP needs root", err)
	}
}

// A range without prefix length is refused, and the range that the error suggests is valid.
func TestTheRangeThatAnErrorSuggestsIsValid(t *testing.T) {
	for _, without := range []string{"10.32.0.0", "10.1.2.3", "192.168.7.0"} {
		_, err := parseRanges(without)
		if err == nil {
			t.Fatalf("the range %s was accepted, want an error: it has no prefix length", without)
		}
		_, advice, _ := strings.Cut(err.Error(), "such as ")
		if _, err := parseRanges(strings.Fields(advice)[0]); err != nil {
			t.Errorf("the range %s: the advised range in %q is refused, want it accepted: %v", without, advice, err)
		}
	}
}

// attach refuses an address with a prefix length: in Weave it isolates containers, in Weft it would not.
// The prefix length of a single address, /32 or /128, is allowed.
func TestAttachRefusesPrefixLengths(t *testing.T) {
	_, err := askedAddresses([]string{"10.32.0.5/24"})
	if err == nil || !strings.Contains(err.Error(), "give 10.32.0.5;") {
		t.Errorf("10.32.0.5/24: got error %v, want one that says: give 10.32.0.5", err)
	}
	got, err := askedAddresses([]string{"10.32.0.5/32", "fd00::5/128", "::ffff:10.32.0.6"})
	if err != nil || len(got) != 3 || got[0].String() != "10.32.0.5" || got[1].String() != "fd00::5" || got[2].String() != "10.32.0.6" {
		t.Errorf("got %v, error %v, want 10.32.0.5, fd00::5 and 10.32.0.6", got, err)
	}
}
