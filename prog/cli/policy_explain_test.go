package cli

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"

	"weft/prog/api"
)

// sampleExplanation is denied by ingress in both families.
func sampleExplanation() api.Explanation {
	e := api.Explanation{
		Source:      api.Party{Asked: "shop/web", Endpoint: "shop/web", Labels: map[string]string{"app": "web", "tier": "front"}, Peer: "9bad1c5cd23bfaef(h1)"},
		Destination: api.Party{Asked: "10.40.0.2", Endpoint: "shop/db", Labels: map[string]string{"app": "db"}, Peer: "3cced98783461972(h2)"},
		Port:        "5432/TCP",
	}
	for i, pair := range [][2]string{{"10.32.0.4", "10.40.0.2"}, {"fd00::4", "fd00::8:2"}} {
		src, dst := netip.MustParseAddr(pair[0]), netip.MustParseAddr(pair[1])
		e.Verdicts = append(e.Verdicts, api.Verdict{
			Source: src, Destination: dst,
			Egress: api.Decision{Endpoint: "shop/web", Allowed: true, Peer: "9bad1c5cd23bfaef(h1)", Kernel: &api.Kernel{Allowed: true}},
			Ingress: api.Decision{
				Endpoint: "shop/db", Peer: "3cced98783461972(h2)", Policies: []string{"shop/db-access", "shop/deny"},
				Misses: []api.Reason{
					{Policy: "shop/db-access", Rule: "spec.ingress[0]", Text: "shop/web: the label is app=web, want app=api"},
					{Policy: "shop/db-access", Rule: "spec.ingress[1]", Text: src.String() + " is not in 192.0.2.0/24"},
					{Policy: "shop/deny", Text: "the policy allows no ingress at all"},
				},
				Kernel: &api.Kernel{Chain: "in-shop-db", Dropped: uint64(12 + i)},
			},
		})
	}
	return e
}

// explanations are variants of the sample that are printed differently.
func explanations() map[string]api.Explanation {
	out := map[string]api.Explanation{"denied": sampleExplanation()}
	out["families"] = changed(func(e *api.Explanation) { // IPv4 and IPv6 differ, and the kernel's verdict differs from the agent's
		in := &e.Verdicts[1].Ingress
		in.Allowed, in.Misses, in.By = true, nil, &api.Reason{Policy: "shop/db-access", Rule: "spec.ingress[1]", Text: "fd00::4 is in fd00::/64 on 5432/TCP"}
		e.Verdicts[1].Allowed, in.Kernel.Differs = true, true
	})
	out["audit"] = changed(func(e *api.Explanation) {
		e.Verdicts = e.Verdicts[:1]
		v := &e.Verdicts[0]
		v.Allowed, v.Ingress.Allowed, v.Ingress.Kernel, v.Ingress.Unasked = true, true, nil, "3cced98783461972(h2) does not answer"
		v.Ingress.By = &api.Reason{Policy: "shop/db-access", Rule: "spec.ingress[0]", Text: "shop/web is selected on 5432/TCP"}
		v.Ingress.Misses = nil
		v.Egress.Audit = &api.Decision{Endpoint: "shop/web", Policies: []string{"shop/try"}, Misses: []api.Reason{{Policy: "shop/try", Text: "the policy allows no egress at all"}}}
	})
	out["open"] = changed(func(e *api.Explanation) { e.Port, e.Open = "any", "80/TCP, 8000-9000/UDP" })
	out["icmp"] = changed(func(e *api.Explanation) {
		e.Port, e.Verdicts = "ICMP", e.Verdicts[:1]
		e.Verdicts[0].Ingress.Misses = []api.Reason{{Policy: "shop/db-access", Rule: "spec.ingress[0]", Text: "ICMP is none of the ports 5432/TCP"}}
	})
	out["outside"] = changed(func(e *api.Explanation) {
		e.Source = api.Party{Asked: "192.0.2.7"}
		e.Verdicts = e.Verdicts[:1]
		e.Verdicts[0].Source, e.Verdicts[0].Egress = netip.MustParseAddr("192.0.2.7"), api.Decision{Allowed: true}
	})
	out["exempt"] = changed(func(e *api.Explanation) {
		e.Source = api.Party{Asked: "h2", Node: true, Peer: "3cced98783461972(h2)"}
		for i := range e.Verdicts {
			v := &e.Verdicts[i]
			v.Allowed, v.Exempt, v.Egress, v.Ingress = true, "a host can always reach its own endpoints", api.Decision{Allowed: true}, api.Decision{Allowed: true}
		}
	})
	out["no-family"] = changed(func(e *api.Explanation) { e.Verdicts = nil })
	return out
}

func changed(by func(*api.Explanation)) api.Explanation {
	e := sampleExplanation()
	by(&e)
	return e
}

func sampleDrops() []api.Drop {
	port := netip.MustParseAddrPort
	at := time.Date(2026, 11, 21, 21, 18, 3, 0, time.UTC)
	denied := sampleExplanation().Verdicts[0].Ingress
	tried := denied
	return []api.Drop{
		{Last: at, Count: 12, Direction: "ingress", Protocol: "TCP", Source: port("10.32.0.4:51234"), Dest: port("10.40.0.2:5432"), From: "shop/web", To: "shop/db", Decision: denied},
		{Last: at.Add(-time.Minute), Count: 1, Direction: "ingress", Audit: true, Protocol: "UDP", Source: port("[2001:db8::7]:40000"), Dest: port("[fd00::8:2]:53"), To: "shop/db", Decision: api.Decision{Endpoint: "shop/db", Allowed: true, Audit: &tried}},
		{Last: at.Add(-time.Hour), Count: 3, Direction: "egress", Protocol: "ICMP", Source: port("10.32.0.4:0"), Dest: port("10.40.0.3:0"), From: "shop/web", Decision: api.Decision{Endpoint: "shop/web", Allowed: true}},
	}
}

func TestPolicyExplanationsArePrintedAsText(t *testing.T) {
	for name, e := range explanations() {
		var out bytes.Buffer
		printExplanation(&out, e)
		golden(t, "policy-explain-"+name, out.String())
	}
}

func TestDroppedPacketsArePrintedAsText(t *testing.T) {
	for name, full := range map[string]bool{"drops": false, "drops-verbose": true} {
		var out bytes.Buffer
		printDrops(&out, sampleDrops(), full, time.UTC)
		golden(t, "policy-"+name, out.String())
	}
	var out bytes.Buffer
	if printDrops(&out, nil, true, time.UTC); !strings.Contains(out.String(), "no known packet") {
		t.Errorf("without drops: got %q, want a text that says that no known packet was dropped", out.String())
	}
}

// policy explain prints the agent's answer as text and as JSON.
func TestPolicyExplainPrintsTextAndJSON(t *testing.T) {
	socket := servePolicies(t, &policyAgent{explanation: sampleExplanation(), drops: sampleDrops()})
	for want, args := range map[string][]string{
		"DENIED, by ingress at the destination\n": {"shop/web", "shop/db", "5432"},
		"audit, it passed: ":                      {"--last-drops"},
		"the kernel agrees":                       {"--last-drops", "-v"},
	} {
		args = append([]string{"policy", "explain", "--socket", socket}, args...)
		if code, out, errOut := weft(t, "", args...); code != ExitOK || !strings.Contains(out, want) {
			t.Errorf("%v: want success and the agent's answer, got exit code %d, %s%s", args, code, out, errOut)
		}
		if code, out, errOut := weft(t, "", append(args, "--json")...); code != ExitOK || !json.Valid([]byte(out)) {
			t.Errorf("%v --json: want success and JSON, got exit code %d, %s%s", args, code, out, errOut)
		}
	}
	if _, out, _ := weft(t, "", "policy", "explain", "--last-drops", "--json", "--socket", servePolicies(t, &policyAgent{})); out != "[]\n" {
		t.Errorf("without drops, the JSON is %s, want an empty list", out)
	}
}
