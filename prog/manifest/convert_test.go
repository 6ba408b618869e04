package manifest

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	networking "k8s.io/api/networking/v1"
	"sigs.k8s.io/yaml"

	"weft/router/policy"
)

// warning returns the text about the parts of a policy that were not understood.
func warning(p policy.Policy) string {
	said, _ := Problem(p)
	return said.String()
}

// converted converts a spec, with a value of the audit annotation.
func converted(t *testing.T, text, audit string) policy.Policy {
	t.Helper()
	np := networking.NetworkPolicy{}
	np.Namespace, np.Name = "a", "p"
	if audit != "" {
		np.Annotations = map[string]string{AuditAnnotation: audit}
	}
	if err := yaml.Unmarshal([]byte(text), &np.Spec); err != nil {
		t.Fatal(err)
	}
	p, wrong := Convert(np)
	if said, bad := Problem(p); len(p.Unread) != min(len(wrong), mostTold+1) || (len(wrong) > 0) != bad {
		t.Errorf("%s: errors %v, Unread %q, Problem %v; want an entry in Unread for each error, and a Problem if there is any", text, wrong, p.Unread, said)
	}
	return p
}

// A part that is not understood allows nothing, but the other parts still count. No list becomes
// empty, since that would allow everything.
func TestUnknownPartsOfAPolicyAllowNothing(t *testing.T) {
	client := policy.Peer{Pods: &policy.Selector{Labels: map[string]string{"app": "client"}}}
	nobody, none := policy.Peer{Unread: true}, policy.Port{Unread: true}
	for text, want := range map[string][]policy.Rule{
		"{from: [{ipBlock: {cidr: 10.0.0/24}}, {podSelector: {matchLabels: {app: client}}}]}":           {{Peers: []policy.Peer{nobody, client}}},
		"{from: [{ipBlock: {cidr: 10.0.0/24}}]}, {from: [{podSelector: {matchLabels: {app: client}}}]}": {{Peers: []policy.Peer{nobody}}, {Peers: []policy.Peer{client}}},
		"{from: [{ipBlock: {cidr: 10.0.0.0/24, except: [10.0.0/28]}}]}":                                 {{Peers: []policy.Peer{nobody}}},
		"{from: [{ipBlock: {cidr: 10.0.0.0/24, except: [11.0.0.0/28, 10.0.0.0/28]}}]}":                  {{Peers: []policy.Peer{nobody}}},
		"{from: [{}]}": {{Peers: []policy.Peer{nobody}}}, // a newer API may have a field here that this version does not know
		"{from: [{podSelector: {matchExpressions: [{key: a, operator: Gt, values: [\"1\"]}]}}]}":                    {{Peers: []policy.Peer{nobody}}},
		"{from: [{namespaceSelector: {matchExpressions: [{key: a, operator: In}]}, podSelector: {}}]}":              {{Peers: []policy.Peer{nobody}}},
		"{from: [{podSelector: {}, ipBlock: {cidr: 10.0.0.0/24}}]}":                                                 {{Peers: []policy.Peer{nobody}}},
		"{ports: [{protocol: QUIC, port: 443}]}":                                                                    {{Ports: []policy.Port{none}}},
		"{ports: [{protocol: \"\"}, {port: 80}]}":                                                                   {{Ports: []policy.Port{none, {Protocol: policy.TCP, Number: 80}}}},
		"{ports: [{port: 70000}, {port: 80, endPort: 79}, {port: 80, endPort: 70000}, {port: Web!}, {endPort: 1}]}": {{Ports: []policy.Port{none, none, none, none, none}}},
		"{from: [{podSelector: {matchLabels: {app: client}}}], ports: [{port: web, endPort: 9}]}":                   {{Peers: []policy.Peer{client}, Ports: []policy.Port{none}}},
	} {
		p := converted(t, "{podSelector: {}, ingress: ["+text+"]}", "")
		if d := cmp.Diff(want, p.Ingress, compare); d != "" || len(p.Unread) == 0 || p.Isolates != policy.Of(policy.Ingress) {
			t.Errorf("%s: wrong rules, with Unread %q (-want +got)\n%s", text, p.Unread, d)
		}
	}
}

// Texts about a policy are bounded and have no control characters, whatever the policy contains.
func TestErrorTextsAboutAPolicyAreBounded(t *testing.T) {
	bad := "{ipBlock: {cidr: \"" + strings.Repeat("9", 5000) + "\"}}"
	p := converted(t, "{podSelector: {}, policyTypes: [\"a\\e\"], ingress: [{from: ["+strings.Repeat(bad+", ", 20)+bad+"]}]}", "")
	if w := warning(p); len(p.Unread) != mostTold+1 || len(w) > 2000 || strings.Contains(w, "\x1b") || !strings.Contains(w, "and 14 more") {
		t.Errorf("the list of errors is %q, want it bounded", p.Unread)
	}
}

// If a selector or a direction is unknown, the policy isolates more endpoints or directions, and its
// rules for them are dropped.
func TestPolicyWithUnknownSelectorOrTypeIsolatesMoreEndpoints(t *testing.T) {
	const rules = "ingress: [{}], egress: [{}]"
	web := policy.Selector{Labels: map[string]string{"app": "web"}}
	for text, want := range map[string]policy.Policy{
		"{podSelector: {matchLabels: {app: web}, matchExpressions: [{key: a, operator: Gt}]}, policyTypes: [Ingress]": {Pods: web, Isolates: policy.Of(policy.Ingress)},
		"{podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress, Sideways]":                                   {Pods: web, Isolates: policy.Both, Ingress: []policy.Rule{{}}},
		"{podSelector: {matchLabels: {app: web}}, policyTypes: [Sideways]":                                            {Pods: web, Isolates: policy.Both},
		// The next two policies are invalid, but their meaning is clear. Older API servers accepted
		// the first one.
		"{podSelector: {matchExpressions: [{key: app, operator: In, values: [a b]}]}, policyTypes: [Egress]": {
			Pods: policy.Selector{Expressions: []policy.Expression{{Key: "app", Op: policy.In, Values: []string{"a b"}}}}, Isolates: policy.Of(policy.Egress),
			Ingress: []policy.Rule{{}}, Egress: []policy.Rule{{}},
		},
		"{podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress, Egress, Ingress]": {Pods: web, Isolates: policy.Both, Ingress: []policy.Rule{{}}, Egress: []policy.Rule{{}}},
	} {
		got := converted(t, text+", "+rules+"}", "")
		want.Namespace, want.Name, want.Unread = "a", "p", got.Unread
		if d := cmp.Diff(want, got, compare); d != "" || len(got.Unread) != 1 {
			t.Errorf("%s: wrong policy, with Unread %q (-want +got)\n%s", text, got.Unread, d)
		}
	}
}

// A policy is in audit mode only if its annotation says so. Other values are reported.
func TestPolicyIsInAuditModeOnlyByAnnotation(t *testing.T) {
	for value, want := range map[string]struct{ tried, told bool }{
		"": {false, false}, "true": {true, false}, "false": {false, false},
		"True": {true, true}, "1": {true, true}, "False": {false, true}, "yes": {false, true}, "ture": {false, true}, "true ": {false, true}, //nolint:gocritic // a space is the case
	} {
		p := converted(t, "{podSelector: {}}", value)
		if w := warning(p); p.Audit != want.tried || (w != "") != want.told || want.told && !strings.Contains(w, "weft.internal/audit") {
			t.Errorf("the annotation %q gives audit mode %v and the warning %q; want audit mode %v, and a warning: %v", value, p.Audit, w, want.tried, want.told)
		}
	}
}

// ParseStored keeps all parts that it understands of a document that another version accepted.
func TestParseStoredKeepsThePartsThatItUnderstands(t *testing.T) {
	for text, want := range map[string]struct {
		says  string
		rules int
	}{
		"podSelector: {matchLabels: {\"app=db\": x}}, ingress: [{}]":                      {"is no valid label key", 1},
		"podSelector: {}, ingress: [{}, {from: [{ipBlock: {cidr: x}}]}]":                  {"is no CIDR", 2},
		"podSelector: {}, ingress: [{fro: [{podSelector: {}}]}]":                          {"line 5: spec.ingress[0].fro: there is no such field", 0},
		"podSelector: {}, ingress: [{ports: [{protocol: QUIC}]}], policyTypes: [Ingress]": {"QUIC", 1},
		"podSelector: {}, ingress: [{ports: [{port: 80}]}], policyTypes: [Ingress]":       {"", 1},
	} {
		d, err := ParseStored(spec("  {" + text + "}"))
		if err != nil || d.Name() != "default/p" || len(d.Policy.Ingress) != want.rules || !strings.Contains(warning(d.Policy), want.says) || (want.says == "") != (warning(d.Policy) == "") {
			t.Errorf("%s: ParseStored returned %+v, error %v; want %d rules and a warning with %q, or none if empty", text, d, err, want.rules, want.says)
		}
	}
	for _, bad := range []string{"", "a", "apiVersion: v9\nkind: NetworkPolicy", string(spec("  podSelector: 7")), string(spec("  {}")) + "\n---\n" + string(spec("  {}"))} {
		if d, err := ParseStored([]byte(bad)); err == nil {
			t.Errorf("%s: want an error, got %+v", bad, d)
		}
	}
	d, err := ParseStored([]byte("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {\"a b\": c}}"))
	if err != nil || d.Name() != "shop" || d.Labels["a b"] != "c" {
		t.Errorf("ParseStored of a Namespace with an invalid label returned %+v, error %v; want the label kept", d, err)
	}
}
