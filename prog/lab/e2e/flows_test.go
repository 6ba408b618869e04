package e2e

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"weft/mesh/meshtest/eventually"
	"weft/prog/api"
	"weft/prog/lab"
	"weft/prog/lab/labtest"
)

// listed returns the flows that a host lists.
func (p *policyLab) listed(host string, args ...string) (r api.FlowsReply) {
	p.t.Helper()
	out, err := p.weft(host, "", append([]string{"flows", "--json"}, args...)...)
	if err == nil {
		err = json.Unmarshal([]byte(out), &r)
	}
	if err != nil {
		p.t.Fatal(err)
	}
	return r
}

// flow returns the newest flow for which fits returns true.
func (p *policyLab) flow(host string, fits func(api.Flow) bool, args ...string) (found api.Flow) {
	for _, f := range p.listed(host, args...).Flows {
		if fits(f) {
			found = f
		}
	}
	return found
}

// seen waits until a host lists a flow, and returns it.
func (p *policyLab) seen(host, what string, fits func(api.Flow) bool, args ...string) (found api.Flow) {
	p.t.Helper()
	eventually.True(p.t, 15*time.Second, host+" lists "+what, func() bool {
		found = p.flow(host, fits, args...)
		return found.ID != 0
	})
	return found
}

// flowsLab has clients and a server on two hosts, with names and labels.
func flowsLab(t *testing.T) *policyLab {
	t.Helper()
	p := newPolicyLab(t, lab.Options{Hosts: 2})
	p.add("h1/web", lab.Identity{Namespace: "shop", Name: "web", Labels: map[string]string{"app": "web"}})
	p.add("h1/near", lab.Identity{Namespace: "shop", Name: "near", Labels: map[string]string{"app": "near"}}, 80)
	p.add("h2/db", lab.Identity{Namespace: "shop", Name: "db", Labels: map[string]string{"app": "db"}}, 80, 81)
	p.settled("h1")
	return p
}

// A connection that goes on shows more bytes within 5 s, on the hosts of both ends, in both families and
// with TCP and UDP. It has the names, labels and hosts of both ends, and it ends.
func TestFlowsShowConnections(t *testing.T) {
	labtest.Waits(t)
	p := flowsLab(t)
	for _, server := range []string{"h2/db", "h1/near"} {
		for _, f := range p.flows2("h1/web", server) {
			local := ask[Count](p, "h1/web", "Count", f.Name).Local
			is := func(one api.Flow) bool {
				return one.Destination == f.To && strings.EqualFold(one.Protocol, f.Network) && one.Source.Port() == local
			}
			name := strings.TrimPrefix(server, server[:3])
			for _, host := range []string{"h1", server[:2]} {
				first := p.seen(host, f.Name, is)
				begin := time.Now()
				var later api.Flow
				eventually.True(t, 15*time.Second, f.Name+" shows more bytes on "+host, func() bool {
					later = p.flow(host, is)
					return later.SentBytes > first.SentBytes && later.ReceivedBytes > first.ReceivedBytes
				})
				if took := time.Since(begin); took > 6*time.Second { // 5 s, and the time of the commands
					t.Errorf("%s showed more bytes on %s after %v, want within 5 s", f.Name, host, took)
				}
				if later.ID != first.ID || later.Verdict != api.FlowAllowed || later.Ended || later.Nickname != host ||
					later.From.Namespace != "shop" || later.From.Name != "web" || later.From.Labels["app"] != "web" || !strings.HasSuffix(later.From.Peer, "(h1)") ||
					later.To.Name != name || !strings.HasSuffix(later.To.Peer, "("+server[:2]+")") {
					t.Errorf("%s lists the flow %+v, want shop/web on h1 to shop/%s on %s, allowed", host, later, name, server[:2])
				}
			}
			ask[Count](p, "h1/web", "Stop", f.Name)
			if f.Network == "tcp" {
				p.seen("h1", "the end of "+f.Name, func(one api.Flow) bool { return is(one) && one.Ended })
			}
		}
	}
	addr := p.addrs["h2/db"]
	for _, a := range addr {
		run(t, p.Lab, "h1/web", "weft", "probe", "icmp", "--count", "1", a.String())
		p.seen("h1", "the ping of "+a.String(), func(f api.Flow) bool {
			return strings.HasPrefix(f.Protocol, "ICMP") && f.Destination.Addr() == a && f.To.Name == "db"
		}, "--protocol", "icmp")
	}
	flowsOfAllHosts(p)
	flowsAreFiltered(p)
	flowsAfterARestart(p)
	flowsTurnedOff(p)
}

// With --all-hosts, both hosts report a connection between them, each as itself.
func flowsOfAllHosts(p *policyLab) {
	p.t.Helper()
	p.reaches("h1/web", "h2/db", true, 80)
	eventually.True(p.t, 15*time.Second, "both hosts report the connections", func() bool {
		r := p.listed("h2", "--all-hosts", "--to", "shop/db", "--protocol", "tcp")
		hosts := map[string]int{}
		for _, f := range r.Flows {
			hosts[f.Nickname]++
		}
		return len(r.Hosts) == 2 && hosts["h1"] > 0 && hosts["h2"] > 0
	})
	run(p.t, p.Lab, "h2", "weft", "stop")
	r := p.listed("h1", "--all-hosts")
	if len(r.Hosts) != 2 || r.Hosts[1].Nickname != "h2" || r.Hosts[1].Error == "" {
		p.t.Errorf("with h2 stopped the hosts are %+v, want h2 with an error", r.Hosts)
	}
	run(p.t, p.Lab, "h2", "weft", "launch")
}

func flowsAreFiltered(p *policyLab) {
	p.t.Helper()
	p.reaches("h1/web", "h1/near", true, 80)
	p.seen("h1", "a connection to shop/near", func(f api.Flow) bool { return f.To.Name == "near" })
	near := p.addrs["h1/near"][0]
	for _, args := range []string{"--to shop/near", "--to near", "--to " + near.String(), "--to " + netip.PrefixFrom(near, 30).Masked().String() + " --port 80"} {
		list := p.listed("h1", strings.Fields(args)...).Flows
		if len(list) == 0 {
			p.t.Errorf("%s selects no flow, want those to shop/near", args)
		}
		for _, f := range list {
			if f.To.Name != "near" && !strings.Contains(args, "/30") {
				p.t.Errorf("%s selects %+v, want only flows to shop/near", args, f)
			}
		}
	}
	for _, args := range []string{"--to other/near", "--from shop/near", "--port 4444", "--verdict denied --to shop/near", "--to shop/near --since 1ms"} {
		if list := p.listed("h1", strings.Fields(args)...).Flows; len(list) != 0 {
			p.t.Errorf("%s selects %+v, want none", args, list)
		}
	}
	says(p.t, fails(p.t, p.Lab, "h1", "", "weft", "flows", "--verdict", "maybe"), "maybe", "exit code 2")
}

// After a restart of the agent, a connection that goes on is listed again.
func flowsAfterARestart(p *policyLab) {
	p.t.Helper()
	f := p.flows2("h1/web", "h2/db")[0]
	p.flowing("h1/web", []oneFlow{f})
	run(p.t, p.Lab, "h1", "weft", "stop")
	run(p.t, p.Lab, "h1", "weft", "launch")
	p.seen("h1", "the connection from before the restart", func(one api.Flow) bool {
		return one.Destination == f.To && one.SentBytes > 0 && !one.Ended && one.Source.Port() == ask[Count](p, "h1/web", "Count", f.Name).Local
	})
}

const countSysctl = "/proc/sys/net/netfilter/nf_conntrack_acct"

// With --no-flows nothing is remembered, and other hosts are told so. A reset restores the sysctl by
// which bytes are counted.
func flowsTurnedOff(p *policyLab) {
	p.t.Helper()
	run(p.t, p.Lab, "h2", "weft", "stop")
	run(p.t, p.Lab, "h2", "weft", "launch", "--no-flows")
	p.reaches("h1/web", "h2/db", true, 80)
	says(p.t, fails(p.t, p.Lab, "h2", "", "weft", "flows"), "remembers no flows", "exit code 1")
	var h api.FlowsHost
	eventually.True(p.t, 15*time.Second, "h2 answers that it remembers no flows", func() bool {
		hosts := p.listed("h1", "--all-hosts").Hosts
		h = hosts[len(hosts)-1]
		return h.Error == ""
	})
	if h.Nickname != "h2" || !h.Off {
		p.t.Errorf("h1 says of h2: %+v, want that it remembers no flows", h)
	}
	if on := strings.TrimSpace(run(p.t, p.Lab, "h1", "cat", countSysctl)); on != "1" {
		p.t.Errorf("%s is %s on h1, want 1", countSysctl, on)
	}
	run(p.t, p.Lab, "h1", "weft", "reset", "--force")
	if on := strings.TrimSpace(run(p.t, p.Lab, "h1", "cat", countSysctl)); on != "0" {
		p.t.Errorf("after a reset %s is %s, want 0 as before Weft", countSysctl, on)
	}
}

// Packets that a policy drops are a denied flow, with the policy, the rule and the sentence of explain.
// The host of the other end knows it, too. What was sent is never in an answer.
func TestFlowsShowDeniedPackets(t *testing.T) {
	p := flowsLab(t)
	p.apply("h1", manifest(`shop: {podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: near}}}], ports: [{port: 80}]}]}`))
	p.reaches("h1/web", "h2/db", false, 80, 81)
	p.reaches("h1/near", "h2/db", true)
	for _, to := range p.addrs["h2/db"] {
		for _, protocol := range []string{"TCP", "UDP"} {
			dst := netip.AddrPortFrom(to, 80)
			is := func(f api.Flow) bool { return f.Destination == dst && f.Protocol == protocol && f.From.Name == "web" }
			f := p.seen("h2", fmt.Sprintf("denied %s packets to %v", protocol, dst), is, "--verdict", "denied")
			if f.Direction != "ingress" || f.Policy != "shop/p0" || f.Rule != "spec.ingress[0]" || f.To.Name != "db" || f.SentPackets == 0 || !strings.HasPrefix(f.Why, "shop/p0 spec.ingress[0]: ") {
				t.Errorf("h2 lists %+v, want packets that the first rule of shop/p0 does not allow", f)
			}
			says(t, run(t, p.Lab, "h2", "weft", "flows", "--verdict", "denied"), "shop/web", "shop/db", f.Why)
		}
	}
	// At the source nothing is dropped: there the policies tell that the other host denies the connection.
	f := p.seen("h1", "the attempt", func(f api.Flow) bool { return f.To.Name == "db" && f.Destination.Port() == 81 }, "--verdict", "denied")
	if f.Why == "" || f.Direction != "ingress" {
		t.Errorf("h1 lists %+v, want the reason at the ingress of the other host", f)
	}
	const secret = "payload-that-nobody-may-see"
	run(t, p.Lab, "h1/web", "bash", "-c", fmt.Sprintf("echo %s > /dev/udp/%v/82", secret, p.addrs["h2/db"][0]))
	p.seen("h2", "the datagram", func(f api.Flow) bool { return f.Destination.Port() == 82 })
	if out := run(t, p.Lab, "h2", "weft", "flows", "--all-hosts", "--json"); strings.Contains(out, secret) {
		t.Error("the flows contain what was sent, want no payload")
	}
	flowsInAudit(p)
	flowsThroughAService(p)
}

// With a policy in audit mode, a connection passes with the verdict audit.
func flowsInAudit(p *policyLab) {
	p.t.Helper()
	p.remove("h1", "shop/p0")
	policy := manifest(`shop: {podSelector: {matchLabels: {app: db}}, ingress: []}`)
	p.apply("h1", strings.Replace(policy, "namespace: \"shop\"", `namespace: shop, annotations: {weft.internal/audit: "true"}`, 1))
	p.reaches("h1/web", "h2/db", true, 80)
	f := p.seen("h2", "a connection in audit mode", func(f api.Flow) bool { return f.Protocol == "TCP" && f.To.Name == "db" && f.SentBytes > 0 }, "--verdict", "audit")
	if f.Policy != "shop/p0" || !strings.Contains(f.Why, "allows no ingress") {
		p.t.Errorf("h2 lists %+v, want the policy that would deny it, and why", f)
	}
}

// A connection to a translated address shows both the address and the endpoint.
func flowsThroughAService(p *policyLab) {
	p.t.Helper()
	service := netip.MustParseAddrPort("198.51.100.7:8000")
	rules := fmt.Sprintf("table ip service { chain pre { type nat hook prerouting priority dstnat; ip daddr %v tcp dport %d dnat to %v:80; }; }", service.Addr(), service.Port(), p.addrs["h2/db"][0])
	run(p.t, p.Lab, "h1", "sh", "-c", "echo '"+rules+"' | nft -f -")
	if got := ask[[]bool](p, "h1/web", "Reach", []Try{{"tcp", service, patient}}); !got[0] {
		p.t.Fatal("the service is not reached, want an answer")
	}
	f := p.seen("h1", "the connection to the service", func(f api.Flow) bool { return f.Service == service })
	if f.Destination != netip.AddrPortFrom(p.addrs["h2/db"][0], 80) || f.To.Name != "db" || f.From.Name != "web" {
		p.t.Errorf("h1 lists %+v, want shop/web to shop/db through the service", f)
	}
}
