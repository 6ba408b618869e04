package e2e

import (
	"strings"
	"testing"
	"time"

	"weft/mesh/meshtest/eventually"
	"weft/prog/lab"
	"weft/prog/lab/labtest"
)

// resolvConf sets a host's name servers.
func resolvConf(t *testing.T, l *lab.Lab, host string, servers ...string) {
	t.Helper()
	var text strings.Builder
	for _, s := range servers {
		text.WriteString("nameserver " + s + "\n")
	}
	if _, err := l.Exec(t.Context(), host, strings.NewReader(text.String()), "sh", "-c", "cat >/etc/resolv.conf"); err != nil {
		t.Fatal(err)
	}
	eventually.True(t, 3*time.Second, "the name server of "+host+" has read resolv.conf", func() bool {
		var have []string
		for _, u := range report(t, l, host).DNS.Upstreams {
			if u.Domain == "" {
				have = append(have, strings.Trim(strings.TrimSuffix(u.Server, ":53"), "[]"))
			}
		}
		return strings.Join(have, " ") == strings.Join(servers, " ")
	})
}

// serveNames runs the tool upstream on a host.
func serveNames(t *testing.T, l *lab.Lab, host, addr, text, mode string) {
	t.Helper()
	if _, err := l.Background(t.Context(), host, "serving", toolArgs(t, "upstream", addr, text, mode)...); err != nil {
		t.Fatal(err)
	}
}

// Queries for other names go to the servers in the host's current resolv.conf.
func TestNamesOutsideTheNetworkAreForwarded(t *testing.T) {
	l := labtest.New(t, lab.Options{Hosts: 3, Containers: 1, Launch: []string{"--dns-forward", "corp=192.0.2.3", "--dns-fallback"}})
	established(t, l)
	serveNames(t, l, "h2", "192.0.2.2", "second", "good")
	serveNames(t, l, "h3", "192.0.2.3", "third", "good")
	serveNames(t, l, "h3", "2001:db8::3", "lying", "lying")
	txt := func(name string) string { return digs(t, l, "h1/c1", "+short +time=8", name+" TXT")[0] }
	resolvConf(t, l, "h1", "192.0.2.2")
	if got := txt("one.example"); got != `"second" "1"` {
		t.Errorf("a forwarded query got %s, want the first answer of the server in resolv.conf", got)
	}
	if got := txt("ONE.example"); got != `"second" "1"` {
		t.Errorf("a repeated query got %s, want the cached answer", got)
	}
	says(t, digs(t, l, "h1/c1", "+noall +comments +authority", "missing.example TXT")[0], "NXDOMAIN", "SOA")
	if got := txt("host.corp"); got != `"third" "1"` {
		t.Errorf("a query below corp got %s, want the answer of the server in --dns-forward", got)
	}
	resolvConf(t, l, "h1", "192.0.2.99", "2001:db8::3", "192.0.2.2") // these servers are dead, lying and good
	if got := txt("two.example"); !strings.HasPrefix(got, `"second"`) {
		t.Errorf("with a dead and a lying server first, the answer is %s, want that of the third server", got)
	}
	says(t, run(t, l, "h1", "weft", "status"), "192.0.2.99:53 (", "corp=192.0.2.3:53")
	node := report(t, l, "h1").Router.Node
	resolvConf(t, l, "h1", "169.254.1.1", node[0].String(), node[1].String())
	start := time.Now()
	says(t, digs(t, l, "h1/c1", "+noall +comments", "three.example TXT")[0], "SERVFAIL")
	if took := time.Since(start); took > time.Second {
		t.Errorf("with only Weft's own server in resolv.conf, the failure took %v, want at most a second", took)
	}
	says(t, run(t, l, "h1", "weft", "status"), "not used")

	resolvConf(t, l, "h1", "192.0.2.3")
	if err := l.AddContainer(t.Context(), "h1/c9"); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Plug(t.Context(), "h1/c9"); err != nil {
		t.Fatal(err)
	}
	want := "nameserver 169.254.1.1\nnameserver 192.0.2.3\nsearch h1.weft.internal weft.internal\noptions ndots:2\n"
	if got := run(t, l, "h1/c9", "cat", "/etc/resolv.conf"); got != want {
		t.Errorf("with --dns-fallback, the container's resolv.conf is %s, want %s", got, want)
	}
}

// Sources on the underlay get no answer, neither from the domain nor for other names. This holds
// for UDP and TCP, in both families, and even while the host is exposed.
func TestTheNameServerIsNoOpenResolver(t *testing.T) {
	labtest.Waits(t)
	l := twoAndAPlainOne(t)
	serveNames(t, l, "h3", "192.0.2.3", "third", "good")
	resolvConf(t, l, "h1", "192.0.2.3")
	routeByGateway(t, l, "h1")
	node := report(t, l, "h1").Router.Node
	questions := []string{"c1.weft.internal A", "one.example TXT"}
	for _, got := range digs(t, l, "h2", "+short @"+node[0].String(), questions...) {
		if got == "" || strings.Contains(got, "FAILED") {
			t.Errorf("h2, a peer, got the answer %q, want a valid answer", got)
		}
	}
	for _, exposed := range []bool{false, true} {
		if exposed {
			run(t, l, "h1", "weft", "expose")
			time.Sleep(time.Second)
			run(t, l, "h3", "weft", "probe", "icmp", "--count", "1", node[0].String()) // the name server's address is reachable now
		}
		for _, server := range node {
			for _, transport := range []string{"+notcp", "+tcp"} {
				for i, got := range digs(t, l, "h3", "+short +time=1 "+transport+" @"+server.String(), questions...) {
					if !strings.Contains(got, "FAILED") || strings.Contains(got, "refused") {
						t.Errorf("exposed %v: a host on the underlay asked %v over %s for %s, want no answer: %s", exposed, server, transport, questions[i], got)
					}
				}
			}
		}
	}
	if n := report(t, l, "h1").DNS.Counts.Dropped; n != 0 {
		t.Logf("%d queries reached the server", n)
	}
}
