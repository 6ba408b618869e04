package cli

import (
	"path/filepath"
	"strings"
	"testing"
)

// A wrong command or flag fails at any position, with a message that names the right one.
func TestWrongWordsFailAndSayWhatServes(t *testing.T) {
	for _, tt := range []struct{ args, says string }{
		{"nosuch", `unknown command "nosuch" for "weft"`},
		{"help nosuch", `unknown command "nosuch" for "weft"`},
		{"help status nosuch", `unknown command "nosuch" for "weft status"`},
		{"nosuch --help", `unknown command "nosuch"`},
		{"nosuch --frob", `unknown command "nosuch"`},
		{"--socket /x nosuch", `unknown command "nosuch"`},
		{"staus", "did you mean status?"},
		{"help staus", "did you mean status?"},
		{"status conections", "did you mean connections?"},
		{"policy aply", "did you mean apply?"},
		{"lab exce", "did you mean exec?"},
		{"lunch", "did you mean launch?"},
		{"launch --tokne x", "unknown flag --tokne: did you mean --token?"},
		{"launch --ipalloc x", "did you mean --ipalloc-exclude or --ipalloc-init or --ipalloc-range or --ipalloc-rest?"},
		{"launch -nickname x", "did you mean --nickname?"},
		{"ps --jsno", "did you mean --json?"},
		{"status -x", "unknown shorthand flag"},

		{"setup", "`weft launch`"},
		{"env", "`weft attach CONTAINER`"},
		{"run -d nginx", "`docker run -d IMAGE`, then `weft attach CONTAINER`"},
		{"run --with-dns 10.2.1.1/24 nginx", "`docker run -d IMAGE`"},
		{"help run", "`docker run -d IMAGE`"},
		{"start web", "`docker start CONTAINER`"},
		{"restart web", "`docker restart CONTAINER`"},
		{"launch-proxy", "without a proxy"},
		{"launch-router", "`weft launch`"},
		{"dns-args", "--dns 169.254.1.1"},
		{"launch --password x", "WEFT_PASSWORD"},
		{"launch -password x", "WEFT_PASSWORD"},
		{"launch --no-discovery", "`weft forget`"},
		{"--no-discovery launch", "unknown flag"},
		{"--verbose launch", "unknown flag"},
		{"status --foo connections", "unknown flag"},
		{"status -x connections", "unknown shorthand flag"},
		{"policy --json", "prints no JSON"},
		{"--json", "prints no JSON"},
		{"probe icmp 300.1.2.3", "no IP address"},
		{"probe tcp --bulk --json 127.0.0.1 127.0.0.2", "measures one address"},
		{"lab up --hosts 0", "0 hosts"},
		{"prime --wait 0s", "more than 0s"},
		{"launch --log-level=debug", "--verbose"},
		{"launch --trusted-subnets 10.0.0.0/8", "encrypted"},
		{"launch --ipalloc-default-subnet 10.2.0.0/16", "--ipalloc-range"},
		{"attach --without-dns web", "--no-dns"},
		{"attach --iface eth1 web", "unknown flag --iface: use --interface"},
		{"attach --rewrite-hosts web", "`weft attach --name`"},
		{"attach net:10.2.1.0/24 web", "leave it out"},
		{"attach net:default web", "`weft policy`"},
		{"attach ip:10.2.1.3/24 web", "give the address alone: 10.2.1.3\n"},
		{"dns-add --name foo web", "-h NAME"},
		{"expose --name foo", "-h NAME"},
		{"probe tcp --host X", "unknown flag --host: give the host without a flag"},
		{"launch -H unix:///weave.sock", "unknown flag -H: Docker works"},
		{"agent -Hunix:///weave.sock", "unknown flag -H: Docker works"},
		{"launch --tlsverify", "without a proxy"},
		{"launch --awsvpc", "in a VPC too"},
		{"expose 10.2.1.132/24", "node address"},
		{"detach 10.2.1.1/24 web", "removes all addresses"},
	} {
		code, out, errOut := weft(t, "", strings.Fields(tt.args)...)
		if code != ExitUsage || out != "" || !strings.Contains(errOut, tt.says) {
			t.Errorf("weft %s: exit code %d, %s%s", tt.args, code, out, errOut)
		}
	}
	if code, _, errOut := weft(t, "", "help", ""); code != ExitUsage || strings.Contains(errOut, "did you mean") {
		t.Errorf("weft help '': exit code %d, %s", code, errOut)
	}
	for _, args := range []string{"", "--help", "help", "help status", "help lab exec", "status --help", "lab --help", "--socket /x --help", "__complete sta"} {
		if code, out, errOut := weft(t, "", strings.Fields(args)...); code != ExitOK || out == "" {
			t.Errorf("weft %s: exit code %d, %s", args, code, errOut)
		}
	}
}

// The hints for Weave's commands and flags are only for those that Weft does not have.
func TestWhatWeaveHadIsNotWhatWeftHas(t *testing.T) {
	root := (&app{}).root()
	for name := range weaveCommands {
		if cmd, _, _ := root.Find([]string{name}); cmd != root {
			t.Errorf("weft has a command %s", name)
		}
	}
	for words, flags := range weaveFlags {
		cmd, rest, err := root.Find(strings.Fields(words))
		if err != nil || cmd == root || len(rest) > 0 {
			t.Errorf("weft has no command %s", words)
			continue
		}
		for name := range flags {
			if cmd.Flag(name) != nil {
				t.Errorf("weft %s has a flag --%s", words, name)
			}
		}
	}
	for name := range weaveArguments {
		if cmd, _, _ := root.Find([]string{name}); cmd == root {
			t.Errorf("weft has no command %s", name)
		}
	}
}

func TestVersionIsAFlagToo(t *testing.T) {
	_, want, _ := weft(t, "", "version")
	if code, out, errOut := weft(t, "", "--version"); code != ExitOK || out != want || !strings.HasPrefix(out, "weft ") {
		t.Errorf("exit code %d, %s%s", code, out, errOut)
	}
}

// status prints its output and fails while the host is not ready, so that scripts can wait for it.
func TestStatusFailsWhileNotReady(t *testing.T) {
	socket := serveReport(t)
	code, out, errOut := weft(t, "", "status", "--socket", socket)
	if code != ExitNotReady || !strings.Contains(out, "Not ready: waiting for a node address") || errOut != "" {
		t.Errorf("exit code %d, %s%s", code, out, errOut)
	}
	if code, _, errOut := weft(t, "", "status", "peers", "--socket", socket); code != ExitOK {
		t.Errorf("a part of it: exit code %d, %s", code, errOut)
	}
	if code, _, _ := weft(t, "", "status", "--socket", filepath.Join(t.TempDir(), "nobody")); code != ExitNotRunning {
		t.Errorf("no agent: exit code %d", code)
	}
}
