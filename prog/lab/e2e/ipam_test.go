package e2e

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"weft/mesh/meshtest/eventually"
	"weft/prog/api"
	"weft/prog/lab"
	"weft/prog/lab/labtest"
	"weft/router/endpoint"
)

// allocate requests addresses for containers without a link, and prints them: PREFIX COUNT. It ends
// at the first error.
func allocate(args []string) error {
	count, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	client := api.NewClient(api.DefaultSocket)
	for i := range count {
		id := fmt.Sprintf("%s-%d", args[0], i)
		host := endpoint.HostLink(id, "eth0")
		reply, err := client.StartAttach(context.Background(), api.AttachRequest{
			ContainerID: id, Interface: "eth0", Source: "cni", HostLink: host, MAC: endpoint.PairOf(host).ContainerMAC.String(),
		})()
		if err != nil {
			return err
		}
		fmt.Println(reply.Addresses[0])
	}
	return nil
}

// release releases an address that allocate got: ID.
func release(args []string) error {
	return api.NewClient(api.DefaultSocket).Detach(context.Background(), api.EndpointRef{ContainerID: args[0], Interface: "eth0"})
}

// addresses runs allocate on a host, and returns its output and its error.
func addresses(t *testing.T, l *lab.Lab, host, prefix string, count int) ([]string, error) {
	t.Helper()
	out, err := l.Exec(t.Context(), host, nil, toolArgs(t, "allocate", prefix, strconv.Itoa(count))...)
	return strings.Fields(out), err
}

// distinct asserts that no address is in the list twice.
func distinct(t *testing.T, list []string) {
	t.Helper()
	slices.Sort(list)
	for i := 1; i < len(list); i++ {
		if list[i] == list[i-1] {
			t.Errorf("%s was allocated twice, want distinct addresses", list[i])
		}
	}
}

// oneRing waits until all hosts have the same ring.
func oneRing(t *testing.T, l *lab.Lab, owners int) {
	t.Helper()
	var seen map[string][]string
	eventually.True(t, 20*time.Second, "all hosts have the same ring", func() bool {
		seen = map[string][]string{}
		for _, h := range l.Hosts() {
			r := report(t, l, h).IPAM
			view := r.Ring
			for _, o := range r.Owners {
				view += fmt.Sprintf(" %s %v", o.Nickname, o.Ranges)
			}
			if len(r.Owners) != owners {
				return false
			}
			seen[view] = append(seen[view], h)
		}
		return len(seen) == 1
	})
}

// split sets all links between two groups of hosts up or down.
func split(t *testing.T, l *lab.Lab, a, b []string, up bool) {
	t.Helper()
	for _, x := range a {
		for _, y := range b {
			if err := l.Link(t.Context(), x, y, up); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// Five hosts that are launched at once, with each other as targets, agree on one ring. Then both
// sides of a partition allocate, and no address is allocated twice.
func TestNoAddressIsAllocatedTwiceInAPartition(t *testing.T) {
	labtest.Waits(t)
	l := labtest.New(t, lab.Options{Hosts: 5, Containers: 1, Together: true, Launch: []string{"--ipalloc-range", "10.44.0.0/24"}})
	established(t, l)
	oneRing(t, l, 5)
	run(t, l, "h1/c1", append([]string{"weft", "probe", "icmp", "--count", "1"}, addrs(t, l, "h5/c1")...)...)
	minority, majority := []string{"h1", "h2"}, []string{"h3", "h4", "h5"}
	split(t, l, minority, majority, false)
	eventually.True(t, time.Minute, "h1 sees the unreachable peers", func() bool {
		return strings.Count(run(t, l, "h1", "weft", "status", "ipam"), "unreachable!") == len(majority)
	})
	eventually.True(t, time.Minute, "rmpeer on h1 counts h5 as lost, and refuses for lack of a majority", func() bool {
		out := fails(t, l, "h1", "", "weft", "rmpeer", "h5")
		return strings.Contains(out, "only 2 of 5 peers") && strings.Contains(out, "add --force")
	})
	var mu sync.Mutex
	var all []string
	var hosts sync.WaitGroup
	for _, h := range l.Hosts() {
		hosts.Go(func() {
			got, err := addresses(t, l, h, "split", 25)
			if err != nil {
				t.Errorf("%s could not allocate, want success: %v", h, err)
			}
			mu.Lock()
			defer mu.Unlock()
			all = append(all, got...)
		})
	}
	hosts.Wait()
	for _, h := range l.Hosts() {
		all = append(all, addrs(t, l, h+"/c1")[0], report(t, l, h).Router.Node[0].String())
	}
	distinct(t, all)
	split(t, l, minority, majority, true)
	for _, h := range l.Hosts() {
		eventually.True(t, time.Minute, h+" reaches all others again", func() bool { // the longest pause between two attempts is 45 s
			return !slices.ContainsFunc(report(t, l, h).Router.Peers, func(p api.Peer) bool { return p.State != "running" })
		})
	}
	established(t, l)
	oneRing(t, l, 5)
	run(t, l, "h5/c1", append([]string{"weft", "probe", "icmp", "--count", "1"}, addrs(t, l, "h1/c1")...)...)
}

// fullFounder launches h1 with an address range of which h1 uses every address, one of them for its
// container. It returns the container's network namespace and address.
func fullFounder(t *testing.T, l *lab.Lab) (netns, addr string) {
	t.Helper()
	launchFounder(t, l, "--ipalloc-range", "10.44.0.0/28")
	if _, err := addresses(t, l, "h1", "full", 12); err != nil { // with the node address and the container, these are all addresses
		t.Fatal(err)
	}
	netns, err := l.NetNS(t.Context(), "h1/c1")
	if err != nil {
		t.Fatal(err)
	}
	return netns, strings.Fields(run(t, l, "h1", "weft", "attach", netns))[0]
}

// A founder that dies before it granted any space is replaced: all its addresses are taken over. When
// it returns, it learns that at once, cuts off containers with lost addresses, and starts anew.
func TestARemovedPeerReturnsWithNewAddresses(t *testing.T) {
	labtest.Waits(t)
	l := labtest.New(t, lab.Options{Hosts: 3, Containers: 1, Bare: true})
	netns, lost := fullFounder(t, l)
	good := token(t, l)
	for _, h := range []string{"h2", "h3"} {
		if _, err := l.Exec(t.Context(), h, strings.NewReader(good), "weft", "launch", "--wait", "0", "--token", "-", "192.0.2.1", "192.0.2.2"); err != nil {
			t.Fatal(err)
		}
	}
	for _, h := range []string{"h2", "h3"} {
		eventually.True(t, 20*time.Second, h+" has joined the address ring and waits for an address", func() bool {
			out, err := l.Exec(t.Context(), h, nil, "weft", "status", "ipam")
			return err == nil && strings.Contains(out, "waiting for IPs")
		})
	}
	says(t, fails(t, l, "h2", "", "weft", "rmpeer", "h1"), "alive", "weft reset")
	if err := l.Kill(t.Context(), "h1", "agent"); err != nil {
		t.Fatal(err)
	}
	split(t, l, []string{"h1"}, []string{"h2", "h3"}, false)
	eventually.True(t, 90*time.Second, "h1 counts as dead", func() bool { // a packet from h1's tunnel shows for 40 s that h1 is alive
		_, err := l.Exec(t.Context(), "h2", nil, "weft", "rmpeer", "h1")
		return err == nil
	})
	for _, h := range []string{"h2", "h3"} {
		run(t, l, h, "weft", "prime")
	}
	// Another container gets the address of h1's container.
	if err := l.AddContainer(t.Context(), "h2/x"); err != nil {
		t.Fatal(err)
	}
	heir, err := l.NetNS(t.Context(), "h2/x")
	if err != nil {
		t.Fatal(err)
	}
	run(t, l, "h2", "weft", "attach", lost, heir)
	split(t, l, []string{"h1"}, []string{"h2", "h3"}, true)
	if err := l.Start(t.Context(), "h1"); err != nil {
		t.Fatal(err)
	}
	eventually.True(t, time.Minute, "h1 reports its lost addresses", func() bool {
		return strings.Contains(run(t, l, "h1", "weft", "status", "ipam"), "had "+lost+", which")
	})
	run(t, l, "h1", "weft", "prime")
	node := report(t, l, "h1").Router.Node[0].String()
	eventually.True(t, 10*time.Second, "h3 reaches h1 at its new address", func() bool {
		_, err := l.Exec(t.Context(), "h3", nil, "weft", "probe", "icmp", "--count", "1", node)
		return err == nil
	})
	established(t, l) // h1's tunnel to h2 may come later than that to h3
	// The address now belongs to h2's container, also as seen from h1. h1's container is cut off.
	run(t, l, "h3", "weft", "probe", "icmp", "--count", "1", lost)
	run(t, l, "h1", "weft", "probe", "icmp", "--count", "1", lost)
	if _, err := l.Exec(t.Context(), "h1/c1", nil, "weft", "probe", "icmp", "--count", "1", node); err == nil {
		t.Error("the container with the lost address reached its host, want it cut off")
	}
	run(t, l, "h1", "weft", "detach", strings.Split(netns, "/")[2])
}

// Many hosts use all addresses of a /24. The next allocation fails, and says why no address is free.
func TestManyHostsUseTheLastAddress(t *testing.T) {
	n := labtest.Crowd(t, 20, 16, 12)
	l := labtest.New(t, lab.Options{Hosts: n, Launch: []string{"--ipalloc-range", "10.44.0.0/24"}})
	established(t, l) // while many hosts start, a small machine has no time for anything else
	all := make([][]string, n+1)
	var hosts sync.WaitGroup
	each := 240/n - 1 // with a node address for each host, 14 addresses are left
	for i, h := range l.Hosts() {
		hosts.Go(func() {
			var err error
			if all[i], err = addresses(t, l, h, "drain", each); err != nil {
				t.Errorf("%s could not allocate, want success: %v", h, err)
			}
			all[i] = append(all[i], report(t, l, h).Router.Node[0].String())
		})
	}
	hosts.Wait()
	var err error
	last := l.Hosts()[n-1]
	if all[n], err = addresses(t, l, last, "rest", 14); err != nil {
		t.Errorf("%s could not allocate the last 14 addresses, want success: %v", last, err)
	}
	given := slices.Concat(all...)
	distinct(t, given)
	if len(given) != 254 {
		t.Errorf("%d addresses were allocated, want 254", len(given))
	}
	start := time.Now()
	_, err = addresses(t, l, "h7", "more", 1)
	if err == nil || !strings.Contains(err.Error(), "no reachable peer has a free address") || !strings.Contains(err.Error(), "has no free address") {
		t.Errorf("allocating one more than all addresses: got %v, want the reason", err)
	}
	if took := time.Since(start); took > 13*time.Second {
		t.Errorf("the error took %v, want at most 13 s", took)
	}
}

// A container gets the address that it requests, if it is free on any host.
func TestRequestedAddressesAreAllocated(t *testing.T) {
	labtest.Waits(t)
	l := labtest.New(t, lab.Options{Hosts: 2, Launch: []string{"--ipalloc-exclude", "10.32.0.8/29,10.40.0.0/29"}})
	netns := container(t, l, "h1/x")
	run(t, l, "h1", "weft", "attach", "--interface", "eth0", "10.40.0.3/32", netns) // h2 owns the address, and it is excluded from automatic allocation
	if got := addrs(t, l, "h1/x")[0]; got != "10.40.0.3" {
		t.Errorf("requested 10.40.0.3, got %s, want the requested address", got)
	}
	run(t, l, "h2", "weft", "probe", "icmp", "--count", "1", "10.40.0.3")
	other := container(t, l, "h2/y")
	says(t, fails(t, l, "h2", "", "weft", "attach", "10.40.0.3", other), "10.40.0.3 cannot be allocated", "h1", "holds it")
	says(t, fails(t, l, "h2", "", "weft", "attach", "192.0.2.7", other), "outside")
	says(t, fails(t, l, "h2", "", "weft", "attach", "10.32.0.0", other), "first or the last")
	says(t, fails(t, l, "h2", "", "weft", "attach", "10.40.0.4", "10.40.0.5", other), "cannot be allocated together")
	free, err := addresses(t, l, "h1", "any", 12)
	if err != nil || slices.Contains(free, "10.32.0.9") || !slices.Contains(free, "10.32.0.16") {
		t.Errorf("want allocations outside of the excluded ranges, got %v, error %v", free, err)
	}
	// Exclusions persist over restarts until they are removed.
	for _, c := range []struct {
		flag string
		want int
	}{{"--verbose", 2}, {"--ipalloc-exclude=", 0}} {
		run(t, l, "h2", "sh", "-c", "weft stop && weft launch "+c.flag)
		if got := report(t, l, "h2").IPAM.Excluded; len(got) != c.want {
			t.Errorf("after launch with %s the excluded ranges are %v, want %d", c.flag, got, c.want)
		}
	}
	start := time.Now()
	established(t, l) // while h2's agent restarted, nobody answered h1's probes
	t.Logf("the tunnels were direct after %v", time.Since(start).Round(time.Millisecond))
	metrics := run(t, l, "h1", toolArgs(t, "get", "http://127.0.0.1:6784/metrics")...)
	for _, line := range []string{"weft_ready 1", "weft_ipam_active_slots 14", "weft_ipam_rings 1", "weft_dns_listening 1", `weft_connections{state="direct"} 1`} {
		if !strings.Contains(metrics, line+"\n") {
			t.Errorf("the metrics lack the line %q, want it:\n%s", line, metrics)
		}
	}
	// Request addresses with CNI_ARGS, and with the capability "ips".
	for i, how := range []struct{ args, conf string }{
		{"IgnoreUnknown=1;IP=10.32.9.9", ""},
		{"", `,"runtimeConfig":{"ips":["10.32.9.10/24"]}`},
	} {
		name := fmt.Sprintf("h1/cni%d", i)
		out, err := l.Exec(t.Context(), "h1", strings.NewReader(fmt.Sprintf(conf, "1.1.0", how.conf)), "env", "CNI_COMMAND=ADD",
			"CNI_CONTAINERID="+fmt.Sprint(i), "CNI_NETNS="+container(t, l, name), "CNI_IFNAME=eth0", "CNI_PATH=/opt/cni/bin", "CNI_ARGS="+how.args, "/opt/cni/bin/weft-cni")
		if want := []string{"10.32.9.9", "10.32.9.10"}[i]; err != nil || addrs(t, l, name)[0] != want {
			t.Errorf("requested %s through CNI, want that address: %v\n%s", want, err, out)
		}
	}
	if err := l.Kill(t.Context(), "h2", "agent"); err != nil {
		t.Fatal(err)
	}
	late := container(t, l, "h1/z")
	eventually.True(t, time.Minute, "h1 names the owner that cannot be reached", func() bool {
		return strings.Contains(fails(t, l, "h1", "", "weft", "attach", "10.40.0.4", late), "h2) cannot be reached")
	})
}

// A host that leaves hands its addresses to another host.
func TestResetHandsAddressesToAnotherHost(t *testing.T) {
	l := labtest.New(t, lab.Options{Hosts: 3})
	oneRing(t, l, 3)
	out := run(t, l, "h3", "weft", "reset")
	t.Log(out)
	eventually.True(t, 5*time.Second, "two hosts own everything", func() bool {
		r := report(t, l, "h1").IPAM
		sum := uint64(0)
		for _, o := range r.Owners {
			sum += o.Slots
		}
		return len(r.Owners) == 2 && sum == r.Size && r.Generation == 1
	})
	// Without another reachable host, reset refuses.
	if err := l.Kill(t.Context(), "h2", "agent"); err != nil {
		t.Fatal(err)
	}
	eventually.True(t, time.Minute, "h1 sees that h2 is unreachable", func() bool {
		return strings.Contains(run(t, l, "h1", "weft", "status", "peers"), "(h2)  unreachable")
	})
	says(t, fails(t, l, "h1", "", "weft", "reset"), "--force", "rmpeer")
	says(t, fails(t, l, "h2", "", "weft", "reset"), "no agent runs", "--force")
	run(t, l, "h1", "weft", "reset", "--force")
}

// Two hosts that both founded a network, by mistake, form one mesh with two rings. The status of every
// host names both rings, and how to unite them.
func TestTwoRingsAreReported(t *testing.T) {
	l := labtest.New(t, lab.Options{Hosts: 3, Containers: 1, Bare: true})
	launchFounder(t, l)
	good := token(t, l)
	for _, args := range [][]string{{"h2"}, {"h3", "192.0.2.1"}} {
		if _, err := l.Exec(t.Context(), args[0], strings.NewReader(good), append([]string{"weft", "launch", "--token", "-"}, args[1:]...)...); err != nil {
			t.Fatal(err)
		}
	}
	run(t, l, "h2", "weft", "connect", "192.0.2.1")
	for _, h := range l.Hosts() {
		eventually.True(t, 20*time.Second, h+" names both rings and the remedy", func() bool {
			c := report(t, l, h).IPAM.Conflict
			return strings.Contains(c, "(h1)") && strings.Contains(c, "(h2)") && strings.Contains(c, "(h3)") && strings.HasSuffix(c, "(h2)") && strings.Contains(c, "weft reset")
		})
	}
	run(t, l, "h1", "weft", "probe", "icmp", "--count", "1", report(t, l, "h3").Router.Node[0].String())
	for _, p := range report(t, l, "h1").Router.Peers {
		if p.State != "running" {
			t.Errorf("h1 sees the peer %+v, want it running", p)
		}
	}
	run(t, l, "h2", "weft", "reset", "--force")
	if _, err := l.Exec(t.Context(), "h2", strings.NewReader(good), "weft", "launch", "--token", "-", "192.0.2.1"); err != nil {
		t.Fatal(err)
	}
	eventually.True(t, 20*time.Second, "h1 sees one network with three owners", func() bool {
		return report(t, l, "h1").IPAM.Conflict == "" && len(report(t, l, "h1").IPAM.Owners) == 3
	})
	run(t, l, "h2", "weft", "probe", "icmp", "--count", "1", report(t, l, "h1").Router.Node[0].String())
}
