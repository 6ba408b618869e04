package policy_test

import (
	"testing"

	"pgregory.net/rapid"

	. "weft/router/policy"
)

// Whatever the policies are, endpoints of one class have the same access to and from every endpoint.
func TestEndpointsOfOneClassAreTreatedAlike(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		policies, count := draw(t).Policies(), 0
		for _, class := range Alike(policies, suite) {
			count += len(class)
			for _, e := range class[1:] {
				for _, other := range suite.Endpoints {
					if other.ID == e.ID || other.ID == class[0].ID {
						continue
					}
					to, from := Between(policies, suite, e, other).String(), Between(policies, suite, other, e).String()
					if a, b := Between(policies, suite, class[0], other).String(), Between(policies, suite, other, class[0]).String(); a != to || b != from {
						t.Fatalf("%s is in the class of %s: to %s: %s and %s, from it: %s and %s; want the same", e.ID, class[0].ID, other.ID, to, a, from, b)
					}
				}
			}
		}
		if count != len(suite.Endpoints) {
			t.Fatalf("%d of %d endpoints are in a class", count, len(suite.Endpoints))
		}
	})
}

// Without policies there is one class for each namespace.
func TestWithoutPoliciesNamespacesAreClasses(t *testing.T) {
	if classes := Alike(nil, suite); len(classes) != 3 || len(classes[0]) != 3 {
		t.Errorf("classes %v, want one of 3 endpoints for each of 3 namespaces", classes)
	}
}
