package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"weft/mesh/meshtest/eventually"
	"weft/prog/api"
	"weft/prog/lab"
	"weft/prog/lab/labtest"
)

// check runs weft check on a host.
func check(t *testing.T, l *lab.Lab, host string, flags ...string) (r api.CheckReply) {
	t.Helper()
	out := run(t, l, host, append([]string{"sh", "-c", `weft check --json "$@" || [ $? = 1 ]`, "-"}, flags...)...)
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatalf("%s: weft check printed %q: %v", host, out, err)
	}
	return r
}

// finds reports whether a check has a result other than PASS in an area, whose text has all the words.
func finds(list []api.Check, area string, words ...string) bool {
	return slices.ContainsFunc(list, func(c api.Check) bool {
		text := c.What + " " + c.Effect + " " + c.Fix
		return c.Area == area && c.Result != api.CheckPass && !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(text, w) })
	})
}

// wrong is a situation that weft check on h1 names.
type wrong struct {
	name       string
	begin, end func(*testing.T, *lab.Lab)
	area       string
	says       []string
	mended     bool // the agent mends it soon, so it is made again before each check
}

// firewallOnH1 is a foreign firewall with one chain.
func firewallOnH1(name, chain, area string, says ...string) wrong {
	return wrong{
		name: name, area: area, says: says,
		begin: func(t *testing.T, l *lab.Lab) { load(t, l, "h1", "table inet firewall {\n"+chain+"\n}\n") },
		end:   func(t *testing.T, l *lab.Lab) { load(t, l, "h1", "delete table inet firewall\n") },
	}
}

// wrongs are the situations, in the order in which the test makes them. The last ones end other agents.
func wrongs() (list []wrong) {
	for _, b := range []blockade{blockades[0], blockades[4]} { // more would be reported as a tunnel that fails again and again
		list = append(list, wrong{
			name: "the tunnel's port is closed " + b.name, area: api.AreaTunnels, says: []string{"UDP 6784"},
			begin: func(t *testing.T, l *lab.Lab) { b.apply(t, l, true) }, end: func(t *testing.T, l *lab.Lab) { b.apply(t, l, false) },
		})
	}
	command := func(args ...string) func(*testing.T, *lab.Lab) {
		return func(t *testing.T, l *lab.Lab) { run(t, l, "h1", args...) }
	}
	return append(list,
		firewallOnH1("another program drops forwarded packets", "chain forward { type filter hook forward priority 0; policy drop; }", api.AreaFirewall, "drops", "firewall"),
		wrong{
			name: "a CNI configuration comes first", area: api.AreaCNI, says: []string{"01-other.conf"},
			begin: command("sh", "-c", `echo '{"name":"other","type":"bridge"}' > /etc/cni/net.d/01-other.conf`), end: command("rm", "/etc/cni/net.d/01-other.conf"),
		},
		wrong{
			name: "a container's link is down", area: api.AreaEndpoints, says: []string{"weft-"}, mended: true,
			begin: command("sh", "-c", "ip link set $(ls /sys/class/net | grep ^weft-) down"), end: command("sh", "-c", "ip link set $(ls /sys/class/net | grep ^weft-) up"),
		},
		wrong{
			name: "packets of a container are not forwarded", area: api.AreaSysctls, says: []string{"net.ipv4.conf.weft-"},
			begin: command("sh", "-c", "echo 0 > /proc/sys/net/ipv4/conf/$(ls /sys/class/net | grep ^weft-)/forwarding"), end: command("sh", "-c", "echo 1 > /proc/sys/net/ipv4/conf/$(ls /sys/class/net | grep ^weft-)/forwarding"),
		},
		wrong{
			name: "another host ignores echo requests", area: api.AreaIPv4, says: []string{"(h2)", "though the tunnel works"},
			begin: func(t *testing.T, l *lab.Lab) {
				run(t, l, "h2", "sh", "-c", "echo 1 > /proc/sys/net/ipv4/icmp_echo_ignore_all")
			},
			end: func(t *testing.T, l *lab.Lab) {
				run(t, l, "h2", "sh", "-c", "echo 0 > /proc/sys/net/ipv4/icmp_echo_ignore_all")
			},
		},
		wrong{
			name: "the network's MTU is too small", area: api.AreaMTU, says: []string{"1300"},
			begin: command("ip", "link", "set", "eth0", "mtu", "1300"), end: command("ip", "link", "set", "eth0", "mtu", "1500"),
		},
		wrong{
			name: "the agent of another host was killed", area: api.AreaGossip, says: []string{"(h2)"},
			begin: func(t *testing.T, l *lab.Lab) {
				if err := l.Kill(t.Context(), "h2", "agent"); err != nil {
					t.Fatal(err)
				}
			},
			end: func(t *testing.T, l *lab.Lab) {
				if err := l.Start(t.Context(), "h2"); err != nil {
					t.Fatal(err)
				}
			},
		},
		wrong{
			name: "the agent of another host was stopped", area: api.AreaTunnels, says: []string{"(h2) was stopped"},
			begin: func(t *testing.T, l *lab.Lab) { run(t, l, "h2", "weft", "stop") },
			end: func(t *testing.T, l *lab.Lab) {
				if err := l.Start(t.Context(), "h2"); err != nil {
					t.Fatal(err)
				}
			},
		},
	)
}

// Whatever is wrong, weft check names it, and passes again when it is mended.
func TestCheckNamesWhatIsWrong(t *testing.T) {
	labtest.Waits(t)
	labtest.Need(t, "nft", "nftables")
	l := labtest.New(t, lab.Options{Hosts: 2, Containers: 1})
	passes := func(why string) {
		t.Helper()
		eventually.True(t, 40*time.Second, why, func() bool { return check(t, l, "h1").Result == api.CheckPass })
	}
	passes("h1 passes all checks at first")
	measured(t, l)
	for _, w := range wrongs() {
		w.begin(t, l)
		var last api.CheckReply
		if !within(40*time.Second, func() bool {
			if w.mended {
				w.begin(t, l)
			}
			last = check(t, l, "h1")
			return finds(last.Hosts[0].Checks, w.area, w.says...)
		}) {
			t.Errorf("%s: weft check says %+v, want a result in %s that has %q", w.name, last.Hosts, w.area, w.says)
		}
		w.end(t, l)
		passes("h1 passes all checks after: " + w.name)
	}
}

// All hosts check themselves. One that does not answer is named, and the exit code says that a check failed.
func TestCheckOfAllHosts(t *testing.T) {
	labtest.Waits(t)
	l := labtest.New(t, lab.Options{Hosts: 3})
	eventually.True(t, 20*time.Second, "all hosts pass", func() bool {
		r := check(t, l, "h2", "--all-hosts")
		return r.Result == api.CheckPass && len(r.Hosts) == 3
	})
	if err := l.Kill(t.Context(), "h3", "agent"); err != nil {
		t.Fatal(err)
	}
	r := check(t, l, "h2", "--all-hosts")
	if !finds(r.Between, api.AreaHosts, "(h3)") {
		t.Errorf("between hosts: %+v, want that h3 does not answer", r.Between)
	}
	said := fails(t, l, "h2", "", "weft", "check", "--all-hosts")
	says(t, said, "exit code 1")
	says(t, fails(t, l, "h3", "", "weft", "check"), "exit code 3", "the Weft agent is not running")
}

// The reference of checks in the documentation has every area.
func TestDocumentationHasEveryArea(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "..", "site", "docs", "check.md"))
	if err != nil {
		t.Fatal(err)
	}
	l := labtest.New(t, lab.Options{Hosts: 1})
	for _, c := range check(t, l, "h1").Hosts[0].Checks {
		if !strings.Contains(string(text), "| `"+c.Area+"` |") {
			t.Errorf("site/docs/check.md has no row for %s", c.Area)
		}
	}
}

// An archive of all hosts has each host's files, and no key, secret or token.
func TestBundleHasAllHostsAndNoSecret(t *testing.T) {
	labtest.Waits(t)
	l := labtest.New(t, lab.Options{Hosts: 2, Containers: 1})
	run(t, l, "h1", "weft", "token", "create", "--name", "rack7")
	out := run(t, l, "h1", "weft", "bundle", "-o", "/run/b.tar.gz")
	says(t, out, "describes 2 hosts")
	list := run(t, l, "h1", "tar", "tzf", "/run/b.tar.gz")
	for _, file := range []string{"report.json", "agent.log", "rules.nft", "routes.txt", "links.txt", "goroutines.txt"} {
		if n := strings.Count(list, "/"+file); n != 2 {
			t.Errorf("the archive has %d files %s, want one of each host:\n%s", n, file, list)
		}
	}
	says(t, run(t, l, "h1", "tar", "xzOf", "/run/b.tar.gz", "--wildcards", "*/h2-*/agent.log"), "msg=ready")
	// The secret is a token weft1-…; its last part is what must not leak. Private keys are in the store alone.
	secret := strings.TrimSpace(run(t, l, "h1", "cat", "/var/lib/weft/secret"))
	text := run(t, l, "h1", "sh", "-c", "tar xzOf /run/b.tar.gz")
	if part := secret[len(secret)-20:]; strings.Contains(text, part) || strings.Contains(text, "weft1-") || strings.Contains(text, "weft2-") {
		t.Error("the archive has the secret or a token, want neither")
	}
	if strings.Contains(strings.ToLower(text), "private") {
		t.Error("the archive has the word private, want no key")
	}
	says(t, run(t, l, "h1", "weft", "logs", "-n", "1000"), "msg=ready")
}

// Test containers of all hosts talk to each other, and leave nothing. If one host drops what containers forward, the
// pairs with it are named. An agent that is killed meanwhile removes its test container at its next start.
func TestCheckOfContainers(t *testing.T) {
	labtest.Waits(t)
	labtest.Need(t, "nft", "nftables")
	l := labtest.New(t, lab.Options{Hosts: 3, Containers: 1})
	clean := func() {
		t.Helper()
		for _, h := range l.Hosts() {
			eventually.True(t, 5*time.Second, h+" has only its own container", func() bool {
				links := strings.Count(run(t, l, h, "ls", "/sys/class/net"), "weft-")
				return len(report(t, l, h).Endpoints) == 1 && links == 1
			})
		}
	}
	eventually.True(t, 20*time.Second, "all hosts pass", func() bool { return check(t, l, "h2", "--all-hosts").Result == api.CheckPass })
	r := check(t, l, "h2", "--containers")
	if r.Result != api.CheckPass {
		t.Fatalf("weft check --containers says %+v, want PASS", r)
	}
	if i := slices.IndexFunc(r.Between, func(c api.Check) bool { return c.Area == api.AreaContainers }); i < 0 || !strings.Contains(r.Between[i].What, "3 hosts") {
		t.Errorf("between hosts: %+v, want that containers of 3 hosts reach each other", r.Between)
	}
	clean()
	load(t, l, "h3", "table inet firewall {\nchain forward { type filter hook forward priority 0; meta l4proto { icmp, ipv6-icmp } drop; }\n}\n")
	r = check(t, l, "h2", "--containers")
	if !finds(r.Between, api.AreaContainers, "(h1) to ", "(h3)", "(h2) to ") {
		t.Errorf("between hosts: %+v, want the pairs with h3", r.Between)
	}
	clean()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = l.Exec(t.Context(), "h2", nil, "weft", "check", "--containers") // its agent is killed
	}()
	eventually.True(t, 10*time.Second, "h2 has a test container", func() bool { return len(report(t, l, "h2").Endpoints) == 2 })
	run(t, l, "h2", "pkill", "-9", "-f", "weft agent")
	<-done
	run(t, l, "h2", "weft", "launch")
	eventually.True(t, time.Minute, "the test containers of the others end", func() bool {
		return len(report(t, l, "h1").Endpoints) == 1 && len(report(t, l, "h3").Endpoints) == 1
	})
	clean()
}
