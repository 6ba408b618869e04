package e2e

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"

	"weft/mesh/meshtest/eventually"
	"weft/prog/api"
	"weft/prog/lab"
)

// shopLab returns a lab with two servers and two clients in namespace shop, and one client in team.
//
//	h1   shop/one (web=80)   shop/buyer
//	h2   shop/two (web=81)   team/visitor
func shopLab(t *testing.T) *policyLab {
	t.Helper()
	p := newPolicyLab(t, lab.Options{Hosts: 2})
	server := func(name string, web uint16) lab.Identity {
		return lab.Identity{Namespace: "shop", Name: name, Labels: map[string]string{"app": "server"}, Ports: []lab.Port{{Name: "web", Protocol: "tcp", Number: web}, {Name: "web", Protocol: "udp", Number: web}}}
	}
	p.add("h1/one", server("one", 80), 80, 81)
	p.add("h2/two", server("two", 81), 80, 81)
	p.add("h1/buyer", buyer("buyer"), 80, 81)
	p.add("h2/visitor", lab.Identity{Namespace: "team", Name: "visitor", Labels: map[string]string{"app": "buyer"}}, 80, 81)
	p.settled("h1")
	return p
}

func buyer(app string) lab.Identity {
	return lab.Identity{Namespace: "shop", Name: "buyer", Labels: map[string]string{"app": app}}
}

// The enforced rules follow changes of policies and of the objects that they refer to.
func TestPolicyFollowsChanges(t *testing.T) {
	p := shopLab(t)
	for name, check := range map[string]func(*policyLab){
		"named ports differ per container": namedPorts, "a namespace has other labels": namespaceRelabelled,
		"a container has other labels": containerRelabelled, "from ingress to egress": ingressToEgress,
		"selectors and lists that are empty": emptySelectors,
	} {
		t.Log(name)
		check(p)
		if t.Failed() {
			t.Fatalf("%s: the enforced rules are wrong, want them to follow the change", name)
		}
	}
}

// A named port is looked up at the destination: for ingress, at the endpoints that the policy
// isolates; for egress, at each destination.
func namedPorts(p *policyLab) {
	for _, policy := range []string{
		`shop: {podSelector: {matchLabels: {app: server}}, ingress: [{ports: [{port: web}, {port: web, protocol: UDP}]}]}`,
		`shop: {podSelector: {matchLabels: {app: buyer}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: server}}}], ports: [{port: web}, {port: web, protocol: UDP}]}]}`,
	} {
		p.apply("h2", manifest(policy))
		p.reaches("h1/buyer", "h1/one", true, 80)
		p.reaches("h1/buyer", "h2/two", true, 81)
		p.reaches("h1/buyer", "h1/one", false, 81)
		p.reaches("h1/buyer", "h2/two", false, 80)
	}
	p.remove("h1", "shop/p0")
	p.reaches("h1/buyer", "h2/two", true, 80)
}

func namespaceRelabelled(p *policyLab) {
	p.apply("h1", manifest(`shop: {podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {tier: gold}}}]}]}`))
	p.reaches("h2/visitor", "h1/one", false, 80)
	p.apply("h2", space("team", "tier", "gold"))
	p.reaches("h2/visitor", "h1/one", true, 80)
	p.reaches("h2/visitor", "h2/two", true, 80)
	p.apply("h1", space("team", "tier", "lead"))
	p.reaches("h2/visitor", "h1/one", false, 80)
	p.reaches("h2/visitor", "h2/two", false, 80)
	p.apply("h1", space("team", "tier", "gold"))
	p.reaches("h2/visitor", "h1/one", true, 80)
	p.remove("h2", "namespace/team")
	p.reaches("h2/visitor", "h1/one", false, 80)
	p.remove("h2", "shop/p0")
}

// A container's labels are set when it is attached.
func containerRelabelled(p *policyLab) {
	p.apply("h1", manifest(`shop: {podSelector: {matchLabels: {app: server}}, ingress: [{from: [{podSelector: {matchLabels: {app: buyer}}}]}]}`))
	for range 2 {
		p.reaches("h1/buyer", "h2/two", true, 80)
		p.reaches("h1/buyer", "h1/one", true, 80)
		p.replug("h1/buyer", buyer("thief"))
		p.reaches("h1/buyer", "h2/two", false, 80)
		p.reaches("h1/buyer", "h1/one", false, 80)
		p.replug("h1/buyer", buyer("buyer"))
	}
	// With its new labels, the container is isolated once a policy selects it.
	p.reaches("h2/visitor", "h1/buyer", true, 80)
	p.replug("h1/buyer", buyer("server"))
	p.reaches("h2/visitor", "h1/buyer", false, 80)
	p.replug("h1/buyer", buyer("buyer"))
	p.reaches("h2/visitor", "h1/buyer", true, 80)
	p.remove("h2", "shop/p0")
}

// A policy for ingress is changed to egress. Weave kept enforcing the previous rules then.
func ingressToEgress(p *policyLab) {
	p.apply("h1", manifest(`shop: {podSelector: {matchLabels: {app: server}}, policyTypes: [Ingress]}`))
	p.reaches("h1/buyer", "h2/two", false, 80)
	p.reaches("h2/two", "h1/buyer", true, 80)
	p.apply("h2", manifest(`shop: {podSelector: {matchLabels: {app: server}}, policyTypes: [Egress]}`))
	p.reaches("h1/buyer", "h2/two", true, 80)
	p.reaches("h2/two", "h1/buyer", false, 80)
	p.apply("h2", manifest(`shop: {podSelector: {matchLabels: {app: server}}, policyTypes: [Ingress, Egress]}`))
	p.reaches("h1/buyer", "h2/two", false, 80)
	p.reaches("h2/two", "h1/buyer", false, 80)
	p.apply("h1", manifest(`shop: {podSelector: {matchLabels: {app: server}}, policyTypes: [Ingress]}`))
	p.reaches("h1/buyer", "h1/one", false, 80)
	p.reaches("h1/one", "h1/buyer", true, 80)
	p.remove("h2", "shop/p0")
	p.reaches("h1/buyer", "h2/two", true, 80)
}

// An empty selector selects all, an empty list of rules allows nothing, and empty lists in a rule
// allow everything.
func emptySelectors(p *policyLab) {
	for policy, want := range map[string][2]bool{ // want: may the buyer, in the same namespace, connect; may the visitor, in another namespace
		`shop: {podSelector: {}, ingress: []}`:                                                   {false, false},
		`shop: {podSelector: {}, ingress: [{from: [], ports: []}]}`:                              {true, true},
		`shop: {podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}`:                        {true, false},
		`shop: {podSelector: {}, ingress: [{from: [{namespaceSelector: {}}]}]}`:                  {true, true},
		`shop: {podSelector: {matchExpressions: []}, policyTypes: [Ingress], egress: []}`:        {false, false},
		`team: {podSelector: {}, ingress: []}`:                                                   {true, true},
		`shop: {podSelector: {matchLabels: {app: nobody}}, policyTypes: [Ingress, Egress]}`:      {true, true},
		`shop: {podSelector: {}, ingress: [{from: [{namespaceSelector: {}, podSelector: {}}]}]}`: {true, true},
	} {
		p.apply("h1", manifest(policy))
		p.reaches("h1/buyer", "h2/two", want[0], 80)
		p.reaches("h2/visitor", "h1/one", want[1], 80)
		p.remove("h1", policy[:4]+"/p0")
	}
}

// A policy in audit mode lets all packets pass, and reports the packets that it would deny. A dry run
// reports the same packets beforehand, and changes nothing. Once the policy is enforced, dropped packets
// are counted, and reported with the names of both ends.
func TestAuditAndDryRunReportWhatAPolicyWouldDrop(t *testing.T) {
	p := shopLab(t)
	flows := p.flows2("h1/buyer", "h2/two")
	p.flowing("h1/buyer", flows)
	policy := manifest(`shop: {podSelector: {matchLabels: {app: server}}, ingress: [{from: [{namespaceSelector: {}, podSelector: {matchLabels: {app: visitor}}}]}]}`)
	dryRun(p, policy, flows)
	audit := strings.Replace(policy, "namespace: \"shop\"", `namespace: shop, annotations: {weft.internal/audit: "true"}`, 1)
	p.apply("h1", audit)
	p.flowing("h1/buyer", flows)
	p.reaches("h2/visitor", "h2/two", true, 80)
	dropsReported(p, true, "UDP shop/buyer", "TCP shop/buyer")
	p.apply("h2", policy)
	p.silent("h1/buyer", flows)
	p.reaches("h2/visitor", "h2/two", false, 80)
	dropsReported(p, false, "UDP shop/buyer")
	// The buyer's flow uses up the kernel's rate limit for reports. End it, by attaching the buyer anew.
	p.replug("h1/buyer", buyer("buyer"))
	dropsReported(p, false, "TCP team/visitor", "UDP team/visitor")
	counted(p)
	badManifests(p, policy)
	p.reaches("h2/visitor", "h2/two", false, 80)
}

// flows2 starts TCP and UDP flows to one server. Unlike the function flows, it starts no flow with
// a single request.
func (p *policyLab) flows2(client, server string) (out []oneFlow) {
	p.t.Helper()
	for _, addr := range p.addrs[server] {
		for _, network := range []string{"tcp", "udp"} {
			f := Flow{Name: network + addr.String(), Network: network, To: netip.AddrPortFrom(addr, 80)}
			ask[Nothing](p, client, "Start", f)
			out = append(out, oneFlow{f, server})
		}
	}
	return out
}

func dryRun(p *policyLab, policy string, flows []oneFlow) {
	p.t.Helper()
	for _, host := range p.Hosts() {
		out, err := p.weft(host, policy, "policy", "apply", "--dry-run", "--json", "-f", "-")
		var r api.ApplyReply
		if err == nil {
			err = json.Unmarshal([]byte(out), &r)
		}
		if err != nil || r.Effects == nil {
			p.t.Fatalf("the dry run returned %v, want effects: %s", err, out)
		}
		for _, f := range flows {
			local, found := ask[Count](p, "h1/buyer", "Count", f.Name).Local, 0
			for _, c := range r.Effects.Flows {
				if c.Source.Port() == local && c.Destination == f.To && strings.EqualFold(c.Protocol, f.Network) && c.From == "shop/buyer" && c.To == "shop/two" && !c.Allowed && c.Why != "" {
					found++
				}
			}
			if found != 1 {
				p.t.Errorf("%s: the dry run names the flow %s %d times, want once: %+v", host, f.Name, found, r.Effects.Flows)
			}
		}
		pairs := map[string]string{}
		for _, c := range r.Effects.Pairs {
			pairs[c.From+" "+c.To] = c.Before + " " + c.After
		}
		for _, pair := range []string{"shop/buyer shop/one", "shop/buyer shop/two", "team/visitor shop/one", "team/visitor shop/two", "shop/one shop/two", "shop/two shop/one"} {
			if pairs[pair] != "all none" {
				p.t.Errorf("%s: the dry run reports %q (ports before and after) for the pair %s, want 'all none'", host, pairs[pair], pair)
			}
		}
		if len(pairs) != 6 || len(r.Effects.Silent) > 0 {
			p.t.Errorf("%s: the dry run reports %+v, want effects on six pairs, and an answer of each peer", host, r.Effects)
		}
	}
	p.flowing("h1/buyer", flows)
	if list, err := p.weft("h1", "", "policy", "list"); err != nil || !strings.Contains(list, "no policies") {
		p.t.Errorf("after the dry run policy list prints %[2]s (%[1]v), want no policies", err, list)
	}
}

// dropsReported waits until h2 reports the given packets as dropped, or with audit as packets that it
// would drop.
func dropsReported(p *policyLab, audit bool, wanted ...string) {
	p.t.Helper()
	for _, want := range wanted {
		var drops []api.Drop
		show := true
		defer func() {
			if show {
				p.t.Logf("%+v", drops)
			}
		}()
		eventually.True(p.t, 20*time.Second, "h2 reports "+want, func() bool {
			if audit {
				p.reaches("h2/visitor", "h2/two", true, 80)
			} else {
				p.reaches("h2/visitor", "h2/two", false, 80)
			}
			out, err := p.weft("h2", "", "policy", "explain", "--last-drops", "--json")
			if err == nil {
				err = json.Unmarshal([]byte(out), &drops)
			}
			if err != nil {
				p.t.Fatal(err)
			}
			for _, d := range drops {
				if d.Audit == audit && d.Protocol+" "+d.From == want && d.To == "shop/two" && d.Direction == "ingress" && d.Dest.Port() == 80 {
					reasons := d.Decision
					if audit && d.Decision.Audit != nil {
						reasons = *d.Decision.Audit
					}
					return len(reasons.Misses) == 1 && reasons.Misses[0].Policy == "shop/p0" && !reasons.Allowed && d.Decision.Allowed == audit
				}
			}
			return false
		})
		show = false
	}
}

// counted asserts that the kernel's named counters count every packet.
func counted(p *policyLab) {
	p.t.Helper()
	dropped := func() (n uint64) {
		asked := []api.ExplainRequest{{Source: "team/visitor", Destination: "shop/two", Port: 80, Protocol: "UDP"}}
		for _, v := range ask[[]api.Explanation](p, "h1", "Explain", asked)[0].Verdicts {
			n += v.Ingress.Kernel.Dropped
		}
		return n
	}
	before := dropped()
	sent := 0
	for range 10 {
		p.reaches("h2/visitor", "h2/two", false, 80)
		sent += 4 // at least one packet for each protocol and family
	}
	if now := dropped(); now < before+uint64(sent) {
		p.t.Errorf("the kernel counted %d dropped packets, want at least %d", now-before, sent)
	}
	for _, one := range p.status("h1").Peers {
		if one.Nickname == "h2" && (one.Dropped < uint64(sent) || one.Isolated != 1) {
			p.t.Errorf("weft status policy shows for h2 %+v, want at least %d drops and one isolated endpoint", one, sent)
		}
	}
}

// badManifests asserts that weft refuses invalid manifests, explains them, and changes nothing.
func badManifests(p *policyLab, policy string) {
	p.t.Helper()
	before, err := p.weft("h1", "", "policy", "get", "shop/p0")
	if err != nil {
		p.t.Fatal(err)
	}
	generation := p.status("h1").Generation
	for says, bad := range map[string]string{
		"line 8":             "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: [}\n",
		"spec.podselector":   strings.Replace(policy, "podSelector", "podselector", 1),
		"endPort":            manifest(`shop: {podSelector: {}, ingress: [{ports: [{port: 80, endPort: 70}]}]}`),
		"ipBlock":            manifest(`shop: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/16]}}]}]}`),
		"Deployment":         policy + "---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\n",
		"policyTypes":        manifest(`shop: {podSelector: {}, policyTypes: [Sideways]}`),
		"standard input":     "\x00",
		"spec.ingress[0].fr": manifest(`shop: {podSelector: {}, ingress: [{from: [{}]}]}`),
	} {
		if !strings.HasPrefix(bad, "\x00") { // put a valid policy before the invalid document: it must not be applied either
			bad = manifest(`team: {podSelector: {}, ingress: []}`) + bad
		}
		if said := fails(p.t, p.Lab, "h2", bad, "weft", "policy", "apply", "-f", "-"); !strings.Contains(said, says) || !strings.Contains(said, "exit code 2") {
			p.t.Errorf("the refusal is %[2]s, want %[1]q in it and exit code 2", says, said)
		}
	}
	fails(p.t, p.Lab, "h1", "", "weft", "policy", "delete", "shop/p0", "shop/nothing")
	if now, err := p.weft("h1", "", "policy", "get", "shop/p0"); err != nil || now != before || p.status("h1").Generation != generation {
		p.t.Errorf("after refused commands, the policy is (error %v)\n%s\nwant it unchanged:\n%s", err, now, before)
	}
}
