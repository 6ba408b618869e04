package e2e

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"weft/mesh/meshtest/eventually"
	"weft/prog/lab"
	"weft/prog/lab/labtest"
)

// shop is a container on h2 with all properties that an endpoint can have.
const shop = "h2/c9"

// threeNamed returns a lab of three hosts with a container each, and the additional container shop.
func threeNamed(t *testing.T) *lab.Lab {
	t.Helper()
	l := labtest.New(t, lab.Options{Hosts: 3, Containers: 1})
	established(t, l)
	attachNamed(t, l, shop, "--name", "web", "--namespace", "shop", "--port", "http=8080", "--port", "dns=53/udp", "--label", "app=web")
	eventually.True(t, 10*time.Second, "h3 knows the shop", func() bool {
		return strings.Contains(run(t, l, "h3", "weft", "status", "dns"), "web.shop.weft.internal")
	})
	return l
}

// attachNamed makes a container and attaches it with weft attach.
func attachNamed(t *testing.T, l *lab.Lab, container string, flags ...string) {
	t.Helper()
	if err := l.AddContainer(t.Context(), container); err != nil {
		t.Fatal(err)
	}
	netns, err := l.NetNS(t.Context(), container)
	if err != nil {
		t.Fatal(err)
	}
	host, _, _ := strings.Cut(container, "/")
	run(t, l, host, append(append([]string{"weft", "attach", "--interface", "eth0"}, flags...), netns)...)
}

// digs sends many queries at once, and returns the sorted lines of each answer.
func digs(t *testing.T, l *lab.Lab, target, options string, questions ...string) []string {
	t.Helper()
	labtest.Need(t, "dig", "bind9-dnsutils")
	var script strings.Builder
	for _, q := range questions {
		fmt.Fprintf(&script, "dig +time=2 +tries=1 %s %s || echo FAILED; echo ====\n", options, q)
	}
	var answers []string
	for a := range strings.SplitSeq(strings.TrimSuffix(run(t, l, target, "sh", "-c", script.String()), "====\n"), "====\n") {
		lines := strings.Split(strings.TrimSpace(a), "\n")
		slices.Sort(lines)
		answers = append(answers, strings.Join(lines, "\n"))
	}
	return answers
}

// sorted sorts and joins lines, for comparison with an answer of digs.
func sorted(lines ...string) string {
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// everyRecord returns the expected records of threeNamed, by query.
func everyRecord(t *testing.T, l *lab.Lab) map[string]string {
	t.Helper()
	web, c1, c2, c3 := addrs(t, l, shop), addrs(t, l, "h1/c1"), addrs(t, l, "h2/c1"), addrs(t, l, "h3/c1")
	h2 := report(t, l, "h2")
	target := strings.ReplaceAll(web[0], ".", "-") + ".web.weft.internal."
	id := ""
	for _, e := range h2.Endpoints {
		if e.Name == "web" {
			id = e.ContainerID + "/" + e.Interface
		}
	}
	return map[string]string{
		"web.weft.internal A":                 web[0],
		"web.shop.weft.internal A":            web[0],
		"web.shop.weft.internal AAAA":         web[1],
		"c1.weft.internal A":                  sorted(c1[0], c2[0], c3[0]),
		"c1.weft.internal AAAA":               sorted(c1[1], c2[1], c3[1]),
		"c1.h3.weft.internal A":               c3[0],
		"-x " + web[0]:                        sorted("web.shop.weft.internal.", "web.weft.internal."),
		"-x " + web[1]:                        sorted("web.shop.weft.internal.", "web.weft.internal."),
		"_http._tcp.web.weft.internal SRV":    "0 100 8080 " + target,
		"_dns._udp.web.weft.internal SRV":     "0 100 53 " + target,
		target + " A":                         web[0],
		"web.shop.weft.internal TXT":          fmt.Sprintf("%q %q", "peer="+h2.Router.ID+"(h2)", "id="+id),
		"weft.internal NS":                    "ns.dns.weft.internal.",
		"web.shop.weft.internal MX":           "",
		"shop.weft.internal A":                "",
		"nobody.weft.internal A":              "",
		"-x " + h2.Router.Node[0].String():    "",
		"_nothing._tcp.web.weft.internal SRV": "",
	}
}

// Every record type works over UDP and TCP, at every address of the name server, in both families, on
// every host.
func TestEveryRecordTypeIsAnsweredOnEveryHost(t *testing.T) {
	l := threeNamed(t)
	want := everyRecord(t, l)
	questions := slices.Sorted(maps.Keys(want))
	for _, from := range []string{"h1/c1", "h2/c1", "h3/c1"} {
		host, _, _ := strings.Cut(from, "/")
		node := report(t, l, host).Router.Node
		for _, server := range []string{"169.254.1.1", "fe80::1%eth0", node[0].String(), node[1].String()} {
			for _, transport := range []string{"+notcp", "+tcp"} {
				for i, got := range digs(t, l, from, "+short "+transport+" @"+server, questions...) {
					if got != want[questions[i]] {
						t.Errorf("%s asks %s %s for %s:\n%s\nwant\n%s", from, server, transport, questions[i], got, want[questions[i]])
					}
				}
			}
		}
	}
	t.Run("NODATA and NXDOMAIN", func(t *testing.T) {
		for q, status := range map[string]string{
			"web.shop.weft.internal MX": "NOERROR", "shop.weft.internal A": "NOERROR", "-x " + report(t, l, "h2").Router.Node[0].String(): "NXDOMAIN",
			"nobody.weft.internal A": "NXDOMAIN", "weft.internal AXFR +notcp": "REFUSED", "web.weft.internal ANY +notcp": "REFUSED",
		} {
			got := digs(t, l, "h3/c1", "+noall +comments +authority", q)[0]
			says(t, got, "status: "+status)
			if status != "REFUSED" {
				says(t, got, "SOA")
			}
		}
	})
	t.Run("Go's resolver", func(t *testing.T) {
		for _, from := range []string{"h1/c1", "h2/c1", "h3/c1"} {
			web := addrs(t, l, shop)
			got := run(t, l, from, toolArgs(t, "resolve", "web.shop", web[0], "_http._tcp.web.weft.internal")...)
			says(t, got, web[0], web[1], "web.shop.weft.internal.", strings.ReplaceAll(web[0], ".", "-")+".web.weft.internal. 8080")
		}
	})
}

// soon is the time within which all hosts must know a change.
const soon = time.Second

// A name that is added or removed on one host appears or vanishes on all hosts within a second.
func TestNamesAppearAndVanishWithinASecond(t *testing.T) {
	l := labtest.New(t, lab.Options{Hosts: 3, Containers: 1})
	established(t, l)
	if err := l.AddContainer(t.Context(), "h2/c9"); err != nil {
		t.Fatal(err)
	}
	netns, err := l.NetNS(t.Context(), "h2/c9")
	if err != nil {
		t.Fatal(err)
	}
	var slowest [2]time.Duration
	for range 5 {
		for i, change := range [][]string{{"weft", "attach", "--name", "late", netns}, {"weft", "detach", netns}} {
			var watchers []*lab.Process
			for _, from := range []string{"h1/c1", "h2/c1", "h3/c1"} {
				p, err := l.Background(t.Context(), from, "watching", toolArgs(t, "await", "late.weft.internal.", strconv.Itoa(i))...)
				if err != nil {
					t.Fatal(err)
				}
				watchers = append(watchers, p)
			}
			run(t, l, "h2", change...)
			done := time.Now()
			for _, p := range watchers {
				out, err := p.Wait()
				if err != nil {
					t.Fatalf("a container did not see the change, want it within the time limit: %v: %s", err, out)
				}
				fields := strings.Fields(out)
				at, err := strconv.ParseInt(fields[len(fields)-1], 10, 64)
				if err != nil {
					t.Fatal(err)
				}
				slowest[i] = max(slowest[i], time.Unix(0, at).Sub(done))
			}
		}
	}
	t.Logf("after the command returned, the name appeared within %v, and vanished within %v", max(0, slowest[0]), max(0, slowest[1]))
	if slowest[0] > soon || slowest[1] > soon {
		t.Errorf("the name appeared after %v and vanished after %v, want at most %v", slowest[0], slowest[1], soon)
	}
}

// dns-add, dns-remove, dns-lookup, status dns and expose -h work as in Weave.
func TestDNSCommandsWorkAsInWeave(t *testing.T) {
	l := threeNamed(t)
	web := addrs(t, l, shop)
	weft := func(host string, args ...string) string {
		t.Helper()
		return strings.TrimSpace(run(t, l, host, append([]string{"weft"}, args...)...))
	}
	lookup := func(name string, want ...string) {
		t.Helper()
		eventually.True(t, soon, name+" is known on h3", func() bool {
			got := digs(t, l, "h3/c1", "+short", name+".weft.internal A")[0]
			return got == sorted(want...)
		})
	}
	weft("h2", "dns-add", "web", "-h", "shop-front.weft.internal")
	weft("h2", "dns-add", web[0], "-h", "Front")
	weft("h1", "dns-add", "192.0.2.17", "192.0.2.18", "-h", "printer")
	weft("h1", "expose", "-h", "gateway.weft.internal")
	lookup("shop-front", web[0])
	lookup("front", web[0])
	lookup("printer", "192.0.2.17", "192.0.2.18")
	lookup("gateway", report(t, l, "h1").Router.Node[0].String())
	if got := weft("h3", "dns-lookup", "shop-front"); got != strings.Join(web, "\n") {
		t.Errorf("dns-lookup returned %s, want %v", got, web)
	}
	says(t, weft("h3", "dns-lookup", web[0]), "web.shop.weft.internal", "front.weft.internal")
	says(t, weft("h3", "--json", "dns-lookup", "printer"), `"192.0.2.17"`, `"nickname": "h1"`)
	says(t, weft("h3", "status", "dns"), "printer.weft.internal", "192.0.2.18", "outside", "gateway.weft.internal")
	says(t, fails(t, l, "h1", "", "weft", "dns-add", web[0], "-h", "mine"), "nothing on this host has", "(h2)")
	says(t, fails(t, l, "h1", "", "weft", "dns-add", "192.0.2.17", "-h", "printer.example.com."), "outside the domain")
	says(t, fails(t, l, "h1", "", "weft", "dns-add", "192.0.2.17"), "-h NAME")
	says(t, fails(t, l, "h1", "", "weft", "dns-lookup", "nobody"), "no name in weft.internal")
	says(t, fails(t, l, "h1", "", "weft", "dns-remove", "192.0.2.99", "-h", "printer"), "no such name")

	weft("h1", "dns-remove", "192.0.2.17", "-h", "printer")
	lookup("printer", "192.0.2.18")
	weft("h2", "dns-remove", "web", "-h", "front")
	lookup("front")
	run(t, l, "h1", "weft", "hide")
	lookup("gateway")

	weft("h2", "dns-remove", "web")
	lookup("web.shop")
	weft("h2", "stop")
	weft("h2", "launch")
	says(t, weft("h2", "ps", "web"), "shop/web (withdrawn)")
	lookup("web.shop")
	weft("h2", "dns-add", "web", "-h", "web")
	lookup("web.shop", web[0])
	weft("h2", "dns-add", "web", "-h", "shop-front")
	netns, err := l.NetNS(t.Context(), shop)
	if err != nil {
		t.Fatal(err)
	}
	weft("h2", "detach", "--interface", "eth0", netns)
	lookup("shop-front")
	says(t, weft("h1", "status", "dns"), "printer.weft.internal")
}

// A restarted agent serves its stored names at once. Names on unreachable peers have no data, and
// names of removed peers do not exist.
func TestNamesOfUnreachableOrRemovedPeersHaveNoAddresses(t *testing.T) {
	labtest.Waits(t)
	l := threeNamed(t)
	ask := func(from, name string) string { return digs(t, l, from, "+short", name+".weft.internal A")[0] }
	web, c1, c3 := addrs(t, l, shop)[0], addrs(t, l, "h1/c1")[0], addrs(t, l, "h3/c1")[0]
	t.Run("restart, while all others are away", func(t *testing.T) {
		time.Sleep(1500 * time.Millisecond) // agents store the names that they receive within a second
		if err := l.Kill(t.Context(), "h1", "agent"); err != nil {
			t.Fatal(err)
		}
		for _, other := range []string{"h2", "h3"} {
			if err := l.Link(t.Context(), "h1", other, false); err != nil {
				t.Fatal(err)
			}
		}
		if err := l.Start(t.Context(), "h1"); err != nil {
			t.Fatal(err)
		}
		if got := ask("h1/c1", "web.shop"); got != web {
			t.Errorf("web resolves to %q after a restart, want %s", got, web)
		}
	})
	t.Run("partition", func(t *testing.T) {
		eventually.True(t, 90*time.Second, "h1 only answers with its own endpoints", func() bool { return ask("h1/c1", "web.shop") == "" && ask("h1/c1", "c1") == c1 })
		says(t, run(t, l, "h1", "weft", "status", "dns"), "unreachable!")
		says(t, digs(t, l, "h1/c1", "+noall +comments", "web.shop.weft.internal A")[0], "NOERROR")
		if got := ask("h3/c1", "web.shop"); got != web {
			t.Errorf("web resolves to %q on the larger side of the partition, want %s", got, web)
		}
		for _, other := range []string{"h2", "h3"} {
			if err := l.Link(t.Context(), "h1", other, true); err != nil {
				t.Fatal(err)
			}
		}
		eventually.True(t, 60*time.Second, "h1 and h3 answer for each other's containers again", func() bool { return ask("h1/c1", "web.shop") == web && ask("h3/c1", "c1.h1") == c1 })
	})
	t.Run("removal", func(t *testing.T) {
		if err := l.PowerOff(t.Context(), "h2"); err != nil {
			t.Fatal(err)
		}
		eventually.True(t, 90*time.Second, "h1 removes h2", func() bool {
			_, err := l.Exec(t.Context(), "h1", nil, "weft", "rmpeer", "h2")
			return err == nil
		})
		for _, from := range []string{"h1", "h3"} {
			eventually.True(t, 5*time.Second, from+" has forgotten the names", func() bool {
				return !strings.Contains(run(t, l, from, "weft", "status", "dns"), "web.shop") &&
					strings.Contains(digs(t, l, from+"/c1", "+noall +comments", "web.shop.weft.internal A")[0], "NXDOMAIN")
			})
		}
		if got := ask("h1/c1", "c1"); got != sorted(c1, c3) {
			t.Errorf("c1 resolves to %s after the removal of h2, want the addresses of h1 and h3", got)
		}
		if resting := report(t, l, "h1").IPAM.Resting; resting != 2 {
			t.Errorf("%d addresses are in quarantine, want the 2 that h2 was known to use", resting)
		}
	})
}

// A released address is not allocated again while a reachable peer may still map it to its old
// name. This holds even if no other address is free.
func TestFreedAddressIsNotReusedBeforeItsNameIsGone(t *testing.T) {
	l := labtest.New(t, lab.Options{Hosts: 2, Launch: []string{"--ipalloc-range", "10.44.0.0/28", "--ipalloc-rest", "1s"}})
	all, err := addresses(t, l, "h1", "full", 12) // the range has 14 addresses, and two are node addresses
	if err != nil {
		t.Fatal(err)
	}
	distinct(t, all)
	agent := func(signal string) { signalAgent(t, l, 1, signal) }
	if free := report(t, l, "h1").IPAM.Free; free != 0 {
		t.Fatalf("%d addresses are free, want none", free)
	}
	// Agents begin to confirm deletions some time after their start. They have begun once a released
	// address is allocated again.
	if err := tool(t, l, "h1", "release", "full-5"); err != nil {
		t.Fatal(err)
	}
	eventually.True(t, 30*time.Second, "the released address is allocated again", func() bool {
		_, err := addresses(t, l, "h1", "first", 1)
		return err == nil
	})
	agent("STOP")
	if err := tool(t, l, "h1", "release", "full-3"); err != nil {
		t.Fatal(err)
	}
	got := make(chan string, 1)
	go func() {
		list, err := addresses(t, l, "h1", "next", 1)
		got <- fmt.Sprint(list, err)
	}()
	select {
	case early := <-got:
		t.Errorf("while h2 could not learn of the release, allocation returned %s, want it to wait", early)
	case <-time.After(2500 * time.Millisecond): // now the quarantine has ended, and h2 does not count as unreachable yet
	}
	agent("CONT")
	if late := <-got; !strings.HasPrefix(late, "[10.44.0.") {
		t.Errorf("after h2 learned of the release, allocation returned %s, want an address", late)
	}
}
