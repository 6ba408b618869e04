package manifest

import (
	"errors"
	"strings"
	"testing"
)

// spec returns a policy whose spec begins in line 5.
func spec(lines string) []byte {
	return []byte("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec:\n" + lines)
}

// refused checks that a manifest is refused, with the line and path of the fault.
func refused(t *testing.T, data []byte, line int, field, says string) {
	t.Helper()
	_, err := Parse(data)
	e, ok := errors.AsType[*Error](err)
	if !ok || e.Line != line || e.Field != field || !strings.Contains(e.Why, says) {
		t.Errorf("%s\ngot  %v\nwant line %d: %s: …%s", data, err, line, field, says)
	}
}

const long = "a23456789012345678901234567890123456789012345678901234567890abcd" // 64 bytes

// Manifests that the API server refuses are refused: for example, a mistyped selector would isolate
// no pod.
func TestInvalidManifestsAreRefused(t *testing.T) {
	for _, c := range []struct {
		spec        string
		line        int
		field, says string
	}{
		{"  podSelector: {matchLabels: {\"app=db\": x}}", 5, "spec.podSelector.matchLabels[app=db]", "is no valid label key"},
		{"  podSelector: {matchLabels: {\"\": x}}", 5, "spec.podSelector.matchLabels[]", "is no valid label key"},
		{"  podSelector:\n    matchLabels:\n      app: db\n      tier: a b", 8, "spec.podSelector.matchLabels.tier", "is no valid label value"},
		{"  podSelector:\n    matchLabels:\n      app.k8s.io/a: " + long, 7, "spec.podSelector.matchLabels[app.k8s.io/a]", "63 bytes"},
		{"  podSelector: {matchLabels: {a/b/c: x}}", 5, "spec.podSelector.matchLabels[a/b/c]", "is no valid label key"},
		{"  podSelector: {matchExpressions: [{key: a b, operator: Exists}]}", 5, "spec.podSelector.matchExpressions[0].key", "is no valid label key"},
		{"  podSelector: {matchExpressions: [{operator: Exists}]}", 5, "spec.podSelector.matchExpressions[0].key", "is no valid label key"},
		{"  podSelector:\n    matchExpressions:\n    - key: a\n      operator: In\n      values:\n      - b\n      - -c", 11, "spec.podSelector.matchExpressions[0].values[1]", "is no valid label value"},
		{"  podSelector: {matchExpressions: [{key: a, operator: In}]}", 5, "spec.podSelector.matchExpressions[0].values", "needs values"},
		{"  podSelector: {matchExpressions: [{key: a, operator: Exists, values: [b]}]}", 5, "spec.podSelector.matchExpressions[0].values", "takes no values"},
		{"  podSelector: {}\n  policyTypes: [Ingress, Egress, Ingress]", 6, "spec.policyTypes", "there are 3"},
		{"  podSelector: {}\n  ingress:\n  - ports:\n    - port: 53\n      protocol: \"\"", 9, "spec.ingress[0].ports[0].protocol", `"" is not TCP`},
		{"  podSelector: {}\n  ingress: [{ports: [{protocol: tcp}]}]", 6, "spec.ingress[0].ports[0].protocol", `"tcp" is not TCP`},
		{"  podSelector: {}\n  ingress: [{ports: [{port: \"80\"}]}]", 6, "spec.ingress[0].ports[0].port", "at least one letter"},
		{"  podSelector: {}\n  ingress: [{ports: [{port: 0}]}]", 6, "spec.ingress[0].ports[0].port", "0 is not between"},
		{"  podSelector: {}\n  ingress: [{ports: [{endPort: 80}]}]", 6, "spec.ingress[0].ports[0].endPort", "endPort needs port"},
		{"  podSelector: {}\n  ingress: [{from: [{}]}]", 6, "spec.ingress[0].from[0]", "is needed"},
		{"  podSelector: {}\n  ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/24, except: [10.0.0.0/24]}}]}]", 6, "spec.ingress[0].from[0].ipBlock.except[0]", "not a part of"},
		{"  podSelector: {}\n  egress: [{to: [{ipBlock: {cidr: 10.0.0.0/24, except: [\"fd00::/64\"]}}]}]", 6, "spec.egress[0].to[0].ipBlock.except[0]", "not a part of"},
		{"  podSelector: {}\n  egress: [{to: [{ipBlock: {except: [10.0.0.0/24]}}]}]", 6, "spec.egress[0].to[0].ipBlock.cidr", `"" is no CIDR`},
	} {
		refused(t, spec(c.spec), c.line, c.field, c.says)
	}
}

// An error about a wrong type has the line of the value, and says which type is wanted.
func TestTypeErrorsHaveTheLineOfTheValue(t *testing.T) {
	for _, c := range []struct {
		spec        string
		line        int
		field, says string
	}{
		{"  podSelector:\n    matchLabels:\n      app: web\n      tier: front\n      release: 1.10", 9, "spec.podSelector.matchLabels.release", "a string is wanted, not a number: put 1.10 in quotes"},
		{"  podSelector:\n    matchLabels:\n      app:\n        no", 8, "spec.podSelector.matchLabels.app", "put no in quotes"},
		{"  podSelector:\n    matchExpressions:\n    - key: a\n      operator: In\n      values: [1, 2]", 9, "spec.podSelector.matchExpressions[0].values[0]", "a string is wanted, not a number: put 1 in quotes"},
		{"  podSelector:\n    matchExpressions:\n    - key: a\n      operator: In\n      values:\n      - b\n      - 2", 11, "spec.podSelector.matchExpressions[0].values[1]", "put 2 in quotes"},
		{"  podSelector: {}\n  ingress:\n    from:\n    - podSelector: {}", 7, "spec.ingress", "a list is wanted, not a map: is a dash missing?"},
		{"  podSelector: {}\n  ingress:\n  - from:\n      podSelector: {}", 8, "spec.ingress[0].from", "a list is wanted, not a map: is a dash missing?"},
		{"  podSelector: {}\n  ingress:\n  - ports:\n      port: 80", 8, "spec.ingress[0].ports", "a list is wanted"},
		{"  podSelector: {}\n  ingress:\n  - ports:\n    - port: 80\n    - port: 8.5", 9, "spec.ingress[0].ports[1].port", "a whole number, or a name, is wanted, not a number"},
		{"  podSelector: {}\n  ingress:\n  - from:\n    - ipBlock: 10.0.0.0/8", 8, "spec.ingress[0].from[0].ipBlock", "a map is wanted, not a string"},
		{"  podSelector:\n  - matchLabels: {}", 6, "spec.podSelector", "a map is wanted, not a list"},
		{"  podSelector:\n    matchLabels: {a: [b]}", 6, "spec.podSelector.matchLabels.a", "a string is wanted, not a list"},
		{"  podSelector: {}\n  ingress: [{ports: [{endPort: 99999999999, port: 1}]}]", 6, "spec.ingress[0].ports[0].endPort", "a whole number is wanted"},
	} {
		refused(t, spec(c.spec), c.line, c.field, c.says)
	}
}

// Two keys that the API server's parser reads as the same key are refused, since the parser would use
// only one of them.
func TestDuplicateKeysAreRefused(t *testing.T) {
	for _, c := range []struct{ labels, field, says string }{
		{"yes: a\n      \"true\": b", "true", "the key is in line 7 already: yes without quotes is true"},
		{"\"true\": a\n      on: b", "true", "on without quotes is true"},
		{"yes: a\n      on: b", "true", "without quotes is true"},
		{"\"1\": a\n      0x1: b", "1", "0x1 without quotes is 1"},
		{"a: a\n      \"a\": b", "a", "the key is in line 7 already"},
	} {
		refused(t, spec("  podSelector:\n    matchLabels:\n      "+c.labels), 8, "spec.podSelector.matchLabels."+c.field, c.says)
	}
	docs, err := Parse(spec("  podSelector:\n    matchLabels: {yes: a, \"yes\": b}"))
	if err != nil || docs[0].Policy.Pods.Labels["true"] != "a" || docs[0].Policy.Pods.Labels["yes"] != "b" {
		t.Errorf("Parse of the labels yes and \"yes\" returned %+v, error %v; want the two labels true and yes", docs, err)
	}
}
