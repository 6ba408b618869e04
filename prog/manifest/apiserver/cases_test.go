package apiserver

import (
	"strings"
	"testing"
)

// Weft and the API server both accept, or both refuse, manifests that users wrote and similar
// manifests.
func TestWeftAndAPIServerAgreeOnUsersManifests(t *testing.T) {
	long := strings.Repeat("a", 64)
	for _, c := range []struct {
		taken bool
		spec  string
	}{
		{true, "podSelector: {matchLabels: {app: srv}}, ingress: [{from: [{ipBlock: {cidr: 10.200.000.0/24}}, {podSelector: {matchLabels: {app: client}}}]}]"},
		{true, "ingress: [{from: [{ipBlock: {cidr: '::ffff:10.0.0.0/104'}}]}]"},
		{true, "ingress: [{from: [{ipBlock: {cidr: '::ffff:10.0.0.0/90'}}]}]"},
		{true, "ingress: [{from: [{ipBlock: {cidr: '::ffff:0:0/96'}}]}]"},
		{true, "ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/24, except: ['::ffff:10.0.0.0/104']}}]}]"},
		{false, "ingress: [{from: [{ipBlock: {cidr: '::ffff:10.0.0.0/104', except: [10.1.0.0/16]}}]}]"},
		{true, "ingress: [{from: [{ipBlock: {cidr: 10.0.0.1/8, except: [10.1.2.3/16]}}]}]"},
		{false, "ingress: [{from: [{ipBlock: {cidr: 10.0.0/24}}]}]"},
		{false, "ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/24, except: [10.0.0.0/24]}}]}]"},
		{false, "ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/24, except: ['']}}]}]"},
		{false, "ingress: [{from: [{}]}]"},
		{false, "ingress: [{from: [null]}]"},
		{true, "ingress: [null]"},
		{true, "ingress: [{ports: [null]}]"},
		{false, `podSelector: {matchLabels: {"app=db": x}}`},
		{false, `podSelector: {matchLabels: {"": x}}`},
		{false, `podSelector: {matchLabels: {app: "a b"}}`},
		{true, "podSelector: {matchLabels: {app: " + long[:63] + "}}"},
		{false, "podSelector: {matchLabels: {app: " + long + "}}"},
		{false, "podSelector: {matchLabels: {release: 1.10}}"},
		{true, "podSelector: {matchLabels: {release: null}}"},
		{true, `podSelector: {matchLabels: {yes: a, "yes": b}}`},
		{false, `podSelector: {matchLabels: {a: a, "a": b}}`},
		{false, "podSelector: {matchExpressions: [{key: a, operator: In, values: [1, 2]}]}"},
		{false, "podSelector: {matchExpressions: [{key: a, operator: In, values: [" + long + "]}]}"},
		{false, "podSelector: {matchExpressions: [{key: a, operator: Exists, values: [b]}]}"},
		{false, "policyTypes: [Ingress, Egress, Ingress]"},
		{true, "policyTypes: [Ingress, Ingress]"}, // unusual, but accepted
		{false, "policyTypes: [Ingress, ingress]"},
		{true, "policyTypes: []"},
		{true, "policyTypes: null, egress: [{}]"},
		{false, `ingress: [{ports: [{protocol: "", port: 53}]}]`},
		{true, "ingress: [{ports: [{protocol: null, port: 53}]}]"},
		{false, "ingress: [{ports: [{protocol: tcp}]}]"},
		{false, "ingress: [{ports: [{protocol: ICMP}]}]"},
		{false, `ingress: [{ports: [{port: "80"}]}]`},
		{false, `ingress: [{ports: [{port: 0}]}]`},
		{false, `ingress: [{ports: [{port: http, endPort: 80}]}]`},
		{false, `ingress: [{ports: [{endPort: 80}]}]`},
		{true, `ingress: [{ports: [{port: 80, endPort: 80}]}]`},
		{false, `ingress: {from: []}`},
		{false, `ingres: []`},
		{false, `PodSelector: {}`},
	} {
		text := []byte(meta("name: p") + "spec: {" + c.spec + "}\n")
		if why := compare(t, text); why != "" {
			t.Errorf("the results for %s differ, want the same: %s", c.spec, why)
		}
		if _, err := apply(text); (err == nil) != c.taken {
			t.Errorf("%s: Parse returned the error %v; want the spec accepted: %v", c.spec, err, c.taken)
		}
	}
}

// Weft and the API server both accept the output of kubectl get for a policy.
func TestKubectlOutputIsAccepted(t *testing.T) {
	text := []byte(`apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  annotations:
    kubectl.kubernetes.io/last-applied-configuration: |
      {"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy"}
  creationTimestamp: "2026-11-27T07:00:00Z"
  generation: 3
  managedFields:
  - apiVersion: networking.k8s.io/v1
    fieldsType: FieldsV1
    fieldsV1:
      f:metadata: {f:annotations: {.: {}, f:kubectl.kubernetes.io/last-applied-configuration: {}}}
      f:spec: {f:ingress: {}, f:podSelector: {}, f:policyTypes: {}}
    manager: kubectl-client-side-apply
    operation: Update
    time: "2026-11-27T07:00:00Z"
  name: p
  namespace: a
  resourceVersion: "77"
  uid: 1b4e28ba-2fa1-11d2-883f-0016d3cca427
spec:
  ingress:
  - from:
    - podSelector: {matchLabels: {app: client}}
    ports:
    - {port: 80, protocol: TCP}
  podSelector: {}
  policyTypes: [Ingress]
`)
	if _, err := apply(text); err != nil {
		t.Error(err)
	}
	if why := compare(t, text); why != "" {
		t.Error(why)
	}
}
