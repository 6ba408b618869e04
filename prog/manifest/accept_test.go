package manifest

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"weft/router/policy"
)

// The output of kubectl get -o yaml is accepted, also with objects of older API servers.
func TestKubectlListsAreAccepted(t *testing.T) {
	const printed = `apiVersion: v1
items:
- apiVersion: networking.k8s.io/v1
  kind: NetworkPolicy
  metadata:
    annotations:
      kubectl.kubernetes.io/last-applied-configuration: |
        {"apiVersion":"networking.k8s.io/v1"}
    creationTimestamp: "2026-11-27T07:00:00Z"
    generation: 1
    managedFields:
    - apiVersion: networking.k8s.io/v1
      fieldsType: FieldsV1
      fieldsV1:
        f:spec:
          f:podSelector: {}
          f:policyTypes: {}
      manager: kubectl
      operation: Update
      time: "2026-11-27T07:00:00Z"
    name: a
    namespace: shop
    ownerReferences:
    - {apiVersion: v1, kind: ConfigMap, name: c, uid: 1b4e28ba}
    resourceVersion: "77"
    selfLink: /apis/networking.k8s.io/v1/namespaces/shop/networkpolicies/a
    uid: 1b4e28ba-2fa1-11d2-883f-0016d3cca427
  spec:
    podSelector: {}
    policyTypes: [Ingress]
  status: {}
- apiVersion: v1
  kind: Namespace
  metadata: {name: shop, creationTimestamp: null, labels: {team: a}}
  spec: {finalizers: [kubernetes]}
  status: {phase: Active}
kind: List
metadata:
  resourceVersion: ""
`
	docs, err := Parse([]byte(printed))
	if err != nil || len(docs) != 2 || docs[0].Name() != "shop/a" || docs[1].Name() != "shop" || docs[1].Labels["team"] != "a" {
		t.Fatalf("Parse of a list returned %+v, error %v; want shop/a and the namespace shop", docs, err)
	}
	for _, d := range docs {
		again(t, d)
	}
	for text, want := range map[string][]string{
		"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicyList\nmetadata: {resourceVersion: \"7\"}\nitems:\n- metadata: {name: a}\n  spec: {podSelector: {}}\n- {metadata: {name: b}, spec: {podSelector: {}}}":               {"default/a", "default/b"},
		"apiVersion: v1\nkind: NamespaceList\nitems: [{metadata: {name: a}}]\n---\napiVersion: v1\nkind: List\nitems: []":                                                                                                         {"a"},
		`{"apiVersion":"v1","kind":"List","items":[{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"j","creationTimestamp":null},"spec":{"podSelector":{},"policyTypes":["Ingress","Ingress"]}}]}`: {"default/j"},
	} {
		docs, err := Parse([]byte(text))
		var names []string
		for _, d := range docs {
			names = append(names, d.Name())
		}
		if err != nil || !slices.Equal(names, want) {
			t.Errorf("%s: Parse returned the names %q, error %v; want the names %q", text, names, err, want)
		}
	}
}

// Errors in lists have the line and path of the element.
func TestErrorsInListsHaveLineAndPath(t *testing.T) {
	const list = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: networking.k8s.io/v1\n  kind: NetworkPolicy\n  metadata: {name: a}\n"
	refused(t, []byte(list+"  spec: {podSelector: {}, ingres: []}"), 7, "items[0].spec.ingres", "no such field")
	refused(t, []byte(list+"  spec: {podSelector: {matchLabels: {a: 1}}}"), 7, "items[0].spec.podSelector.matchLabels.a", "put 1 in quotes")
	refused(t, []byte(list+"  spec:\n    podSelector: {}\n    policyTypes:\n    - Both"), 10, "items[0].spec.policyTypes[0]", "is not Ingress")
	refused(t, []byte(list+"- apiVersion: v1\n  kind: Pod"), 8, "items[1].kind", "v1 Pod is not supported")
	refused(t, []byte("apiVersion: v1\nkind: List\nitem: []"), 3, "item", "no such field")
	refused(t, []byte("apiVersion: v1\nkind: List\nitems: {a: b}"), 3, "items", "a list is wanted")
	refused(t, []byte("apiVersion: v1\nkind: List\nitems: []"), 0, "", "there is no NetworkPolicy")
	refused(t, []byte(list+"  spec: {podSelector: {}}\n- apiVersion: networking.k8s.io/v1\n  kind: NetworkPolicy\n  metadata: {name: a}\n  spec: {podSelector: {}}"), 8, "items[1].metadata.name", "is in line 4 already")
}

// CIDRs mean the same as for the API server and net.IPNet.
func TestCIDRsMeanTheSameAsInTheAPIServer(t *testing.T) {
	block := func(cidr string, except ...string) *policy.Block {
		b := &policy.Block{CIDR: netip.MustParsePrefix(cidr)}
		for _, e := range except {
			b.Except = append(b.Except, netip.MustParsePrefix(e))
		}
		return b
	}
	for text, want := range map[string]*policy.Block{
		"{cidr: 10.200.000.0/24}":                                            block("10.200.0.0/24"),
		"{cidr: 010.020.030.0/024}":                                          block("10.20.30.0/24"), // leading zeros are decimal, not octal
		"{cidr: 10.1.2.3/8}":                                                 block("10.0.0.0/8"),
		"{cidr: 2001:DB8:0::1/32}":                                           block("2001:db8::/32"),
		"{cidr: \"::ffff:10.0.0.0/104\"}":                                    block("10.0.0.0/8"),
		"{cidr: \"::ffff:10.1.2.3/128\"}":                                    block("10.1.2.3/32"),
		"{cidr: \"::ffff:a01:203/120\"}":                                     block("10.1.2.0/24"),
		"{cidr: \"::ffff:010.0.0.0/104\"}":                                   block("10.0.0.0/8"),
		"{cidr: \"::ffff:0:0/96\"}":                                          block("0.0.0.0/0"),
		"{cidr: \"::ffff:10.0.0.0/90\"}":                                     block("::ffc0:0:0/90"), // no longer v4-mapped: an IPv6 block, which matches no packet
		"{cidr: \"::/0\"}":                                                   block("::/0"),
		"{cidr: 10.0.0.0/8, except: [10.1.0.0/16, \"::ffff:10.2.0.0/112\"]}": block("10.0.0.0/8", "10.1.0.0/16", "10.2.0.0/16"),
		"{cidr: \"::ffff:10.0.0.0/104\", except: [10.1.0.0/16]}":             nil,                                // 16 is less than 104
		"{cidr: 10.0.0.0/24, except: [\"::ffff:10.0.0.0/104\"]}":             block("10.0.0.0/24", "10.0.0.0/8"), // matches nothing
		"{cidr: 10.0.0.0/33}":                                                nil,
		"{cidr: 10.0.0.0}":                                                   nil,
		"{cidr: 10.0.0/24}":                                                  nil,
		"{cidr: \"fe80::%e/64\"}":                                            nil,
		"{cidr: \" 10.0.0.0/8\"}":                                            nil,
		"{cidr: 10.0.0.0/+8}":                                                nil,
	} {
		docs, err := Parse(spec("  podSelector: {}\n  ingress: [{from: [{ipBlock: " + text + "}]}]"))
		if want == nil {
			if err == nil {
				t.Errorf("%s: want an error, got the block %+v", text, docs[0].Policy.Ingress[0].Peers[0].Block)
			}
			continue
		}
		if err != nil || docs[0].Policy.Ingress[0].Peers[0].Block.String() != want.String() {
			t.Errorf("%s: Parse returned the error %v, or another block; want the block %v", text, err, want)
			continue
		}
		again(t, docs[0])
		if plain := "cidr: " + want.CIDR.String() + "\n"; !strings.Contains(string(docs[0].YAML), plain) && want.String() != "10.0.0.0/24 except 10.0.0.0/8" {
			t.Errorf("%s is stored as\n%s\nwant the normalized CIDR", text, docs[0].YAML)
		}
	}
}
