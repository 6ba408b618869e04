package manifest

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"weft/router/policy"
)

const everything = `# Who may speak to the database.
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: db
  namespace: prod
  labels: {team: a}
  annotations: {weft.internal/audit: "true"}
spec:
  podSelector:
    matchLabels: {app: db}
    matchExpressions:
    - {key: tier, operator: NotIn, values: [old]}
  policyTypes: [Ingress, Egress]
  ingress:
  - from:
    - podSelector: {matchLabels: {app: web}}
      namespaceSelector: {}
    - ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.128/25]}
    ports:
    - port: 5432
    - {protocol: UDP, port: 6000, endPort: 6010}
    - {protocol: SCTP, port: sync}
  - {}
  egress:
  - to:
    - namespaceSelector: {matchExpressions: [{key: dns, operator: Exists}]}
    ports:
    - protocol: UDP
---
# nothing here
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed}
spec: {podSelector: {}}
`

func want() []policy.Policy {
	return []policy.Policy{
		{
			Namespace: "prod", Name: "db", Isolates: policy.Both, Audit: true,
			Pods: policy.Selector{
				Labels: map[string]string{"app": "db"}, Expressions: []policy.Expression{{Key: "tier", Op: policy.NotIn, Values: []string{"old"}}},
			},
			Ingress: []policy.Rule{{
				Peers: []policy.Peer{
					{Namespaces: &policy.Selector{}, Pods: &policy.Selector{Labels: map[string]string{"app": "web"}}},
					{Block: &policy.Block{CIDR: netip.MustParsePrefix("192.0.2.0/24"), Except: []netip.Prefix{netip.MustParsePrefix("192.0.2.128/25")}}},
				},
				Ports: []policy.Port{
					{Protocol: policy.TCP, Number: 5432}, {Protocol: policy.UDP, Number: 6000, End: 6010}, {Protocol: policy.SCTP, Name: "sync"},
				},
			}, {}},
			Egress: []policy.Rule{{
				Peers: []policy.Peer{{Namespaces: &policy.Selector{Expressions: []policy.Expression{{Key: "dns", Op: policy.Exists}}}}},
				Ports: []policy.Port{{Protocol: policy.UDP}},
			}},
		},
		{Namespace: "default", Name: "closed", Isolates: policy.Of(policy.Ingress)},
	}
}

var compare = cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })

func TestParseReturnsPoliciesOfAllDocuments(t *testing.T) {
	got, err := Parse([]byte(everything))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want(), policies(got), compare); d != "" {
		t.Errorf("wrong policies (-want +got)\n%s", d)
	}
}

func policies(docs []Document) (out []policy.Policy) {
	for _, d := range docs {
		out = append(out, d.Policy)
	}
	return out
}

// again parses the text of a document, which must give the same document.
func again(t *testing.T, d Document) {
	t.Helper()
	got, err := Parse(d.YAML)
	if err != nil {
		t.Fatalf("parsing the document's text again returned %v, want the same document\n%s", err, d.YAML)
	}
	if d := cmp.Diff([]Document{d}, got, compare); d != "" {
		t.Errorf("the document's text gives another document (-want +got)\n%s", d)
	}
}

// The text of each document parses as the same document, with all metadata that users write.
func TestTextOfAParsedDocumentParsesToTheSameDocument(t *testing.T) {
	docs, err := Parse([]byte(everything))
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range docs {
		again(t, d)
	}
	docs, err = Parse([]byte(`apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: p
  uid: 1b4e28ba
  resourceVersion: "7"
  creationTimestamp: "2026-01-01T00:00:00Z"
  labels: {team: shop}
  annotations: {note: "spec: {}\nstatus: {}"}
spec: {podSelector: {}}`))
	if err != nil {
		t.Fatal(err)
	}
	want := "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata:\n  annotations:\n    note: |-\n      spec: {}\n      status: {}\n  labels:\n    team: shop\n  name: p\n  namespace: default\nspec:\n  podSelector: {}\n"
	if d := cmp.Diff(want, string(docs[0].YAML)); d != "" {
		t.Errorf("wrong text of the document (-want +got)\n%s", d)
	}
}

func TestNamespacesAreParsedStrictly(t *testing.T) {
	docs, err := Parse([]byte("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {team: a}}\nspec: {finalizers: [kubernetes]}\nstatus: {phase: Active}\n"))
	if err != nil || len(docs) != 1 || docs[0].Kind != NamespaceKind || docs[0].Name() != "shop" || docs[0].Labels["team"] != "a" {
		t.Fatalf("Parse returned %+v, error %v; want the Namespace shop with its label", docs, err)
	}
	again(t, docs[0])
	for text, says := range map[string]string{
		"metadata: {name: shop, labels: {kubernetes.io/metadata.name: other}}": "line 3: metadata.labels",
		"metadata: {name: shop, label: {team: a}}":                             "line 3: metadata.label: there is no such field",
		"metadata: {name: sh/op}":                                              "metadata.name",
	} {
		if _, err := Parse([]byte("apiVersion: v1\nkind: Namespace\n" + text)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: Parse returned %v, want an error", text, err)
		}
	}
}

func TestPolicyTypesHaveTheDefaultsOfTheAPI(t *testing.T) {
	for spec, isolates := range map[string]policy.Directions{
		"{podSelector: {}}":                                       policy.Of(policy.Ingress),
		"{podSelector: {}, egress: [{}]}":                         policy.Both,
		"{podSelector: {}, egress: []}":                           policy.Of(policy.Ingress),
		"{podSelector: {}, policyTypes: [Egress]}":                policy.Of(policy.Egress),
		"{podSelector: {}, policyTypes: [Egress], ingress: [{}]}": policy.Of(policy.Egress),
	} {
		got, err := Parse([]byte("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec: " + spec))
		if err != nil || got[0].Policy.Isolates != isolates {
			t.Errorf("the spec %s gives %+v, error %v; want %v isolated", spec, got, err, isolates)
		}
	}
}

// Every error has its line and path.
func TestManifestErrorsHaveLineAndPath(t *testing.T) {
	for _, c := range []struct {
		from, to string // each from in the manifest is replaced by to
		line     int
		field    string
		says     string
	}{
		{"matchLabels: {app: db}", "matchLabel: {app: db}", 11, "spec.podSelector.matchLabel", "no such field"},
		{"  - from:", "  - fro:", 16, "spec.ingress[0].fro", "no such field"},
		{"port: 5432", "port: 70000", 21, "spec.ingress[0].ports[0].port", "not between 1 and 65535"},
		{"port: 5432", "port: Web!", 21, "spec.ingress[0].ports[0].port", "port name"},
		{"endPort: 6010", "endPort: 10", 22, "spec.ingress[0].ports[1].endPort", "10 is below port 6000"},
		{"endPort: 6010", "endPort: many", 22, "spec.ingress[0].ports[1].endPort", "a whole number is wanted, not a string"},
		{"[old]", "old", 13, "spec.podSelector.matchExpressions[0].values", "a list is wanted, not a string: is a dash missing?"},
		{"  ingress:\n", "  ingress: none\n  ingres:\n", 15, "spec.ingress", "a list is wanted, not a string"},
		{"port: sync}", "port: sync, endPort: 9}", 23, "spec.ingress[0].ports[2].endPort", "not a port name"},
		{"protocol: UDP, ", "protocol: QUIC, ", 22, "spec.ingress[0].ports[1].protocol", `"QUIC" is not`},
		{"192.0.2.0/24", "192.0.2.0", 19, "spec.ingress[0].from[1].ipBlock.cidr", "is no CIDR"},
		{"192.0.2.128/25", "192.0.3.128/25", 19, "spec.ingress[0].from[1].ipBlock.except[0]", "not a part of"},
		{"- ipBlock:", "- podSelector: {}\n      ipBlock:", 20, "spec.ingress[0].from[1].ipBlock", "cannot be combined"},
		{"operator: NotIn", "operator: Like", 13, "spec.podSelector.matchExpressions[0].operator", "Like"},
		{"[Ingress, Egress]", "[Ingress, Both]", 14, "spec.policyTypes[1]", "is not Ingress or Egress"},
		{"matchLabels: {app: db}", "matchLabels: {app: no}", 11, "spec.podSelector.matchLabels.app", "put no in quotes"},
		{"kind: NetworkPolicy", "kind: Pod", 3, "kind", "want networking.k8s.io/v1 NetworkPolicy"},
		{"name: db", "name: d b", 5, "metadata.name", "lower case alphanumeric"},
		{"name: closed", "name: db, namespace: prod", 33, "metadata.name", "is in line 2 already"},
		{"  podSelector:\n", "  podSelector\n", 0, "", ""},
		{"[Ingress, Egress]", "&a [*a]", 14, "spec.policyTypes[0]", "aliases"},
		{"name: db", "name: db_1", 5, "metadata.name", "lower case alphanumeric"},
		{"namespace: prod", "namespace: p/q", 6, "metadata.namespace", "only letters"},
		{"{team: a}", "{team/: a}", 7, "metadata.labels[team/]", "is no valid label key"},
		{`"true"`, `"True"`, 8, "metadata.annotations[weft.internal/audit]", `neither "true" nor "false": the policy is in audit mode`},
		{`"true"`, `"yes"`, 8, "metadata.annotations[weft.internal/audit]", "the policy is enforced"},
		{`"true"`, "true", 8, "metadata.annotations[weft.internal/audit]", "a string is wanted, not true or false: put true in quotes"},
		{"policyTypes:", "podSelector: {}\n  policyTypes:", 14, "spec.podSelector", "in line 10 already"},
	} {
		text := strings.Replace(everything, c.from, c.to, 1)
		if text == everything {
			t.Fatalf("the manifest of this test lacks %q; want it there, so that the case can replace it", c.from)
		}
		_, err := Parse([]byte(text))
		e, ok := errors.AsType[*Error](err)
		if !ok {
			t.Errorf("%s: Parse returned %v, want an *Error", c.to, err)
			continue
		}
		if c.line > 0 && e.Line != c.line || e.Field != c.field || !strings.Contains(e.Why, c.says) {
			t.Errorf("%s: got %v\nwant line %d: %s: …%s", c.to, e, c.line, c.field, c.says)
		}
	}
	for _, nothing := range []string{"", "---\n", "null", "# only words"} {
		if _, err := Parse([]byte(nothing)); err == nil || !strings.Contains(err.Error(), "there is no NetworkPolicy") {
			t.Errorf("the manifest %q gives %v, want the error that there is no NetworkPolicy", nothing, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(everything))
	f.Add([]byte("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec: {podSelector: {}, ingress: [null]}"))
	f.Add([]byte("a: &a [*a]"))
	f.Add([]byte("? {a: b}\n: c"))
	f.Fuzz(func(t *testing.T, data []byte) {
		list, err := Parse(data)
		if err != nil {
			return
		}
		for _, d := range list {
			again(t, d)
		}
	})
}
