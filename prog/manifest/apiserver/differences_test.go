package apiserver

import (
	"strings"
	"testing"
)

// differences lists the manifests that only one of Weft and the API server accepts, on purpose. Each
// has an example, and a part of the error of the side that refuses it.
var differences = []struct {
	name, why string
	weft      bool   // whether Weft accepts the example and the API server refuses it; otherwise the reverse
	says      string // part of the error of the side that refuses
	example   string
}{
	{
		"namespaces with other names", "containers outside Kubernetes can be in such namespaces, which their policies must name",
		true, "metadata.namespace: Invalid value", meta("name: p, namespace: shop_a"),
	},
	{
		"the status", "API servers before 1.28 set the status, and kubectl get prints it",
		true, `strict decoding error: unknown field "status"`, meta("name: p") + "status: {}\n",
	},
	{
		"lists", "kubectl sends the elements of a list one by one",
		true, `no kind "List" is registered`, "apiVersion: v1\nkind: List\nitems: [{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: p}, spec: {}}]\n",
	},
	{
		"finalizers with short names", "Weft ignores finalizers; the list of allowed finalizers is in Kubernetes' internal code",
		true, "name is neither a standard finalizer name nor is it fully qualified", meta("name: p, finalizers: [x]"),
	},
	{
		"generateName", "Weft generates no names: each time that the manifest is applied, another policy would be made",
		false, "metadata.name: a policy needs a name", meta("generateName: p-"),
	},
	{
		"the audit annotation", "this annotation is Weft's own: with a value that is neither true nor false, users could not know whether the policy is enforced",
		false, `is neither "true" nor "false"`, meta(`name: p, annotations: {weft.internal/audit: "True"}`),
	},
	{
		"two YAML keys that are the same key in JSON", "the API server uses the value of one of them by chance",
		false, "without quotes is", meta("name: p") + "spec: {podSelector: {matchLabels: {yes: a, \"true\": b}}}\n",
	},
	{
		"aliases", "with aliases a small file could expand without limit",
		false, "aliases are not supported", meta("name: &n p, labels: {a: *n}"),
	},
}

func meta(fields string) string {
	return "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {" + fields + "}\n"
}

// excuses counts how often each of the differences occurred.
var excuses = make([]int, len(differences))

// excused returns the index of the deliberate difference that explains two results; -1: none.
func excused(ours, theirs error) int {
	for i, d := range differences {
		refusal := ours
		if d.weft {
			refusal = theirs
		}
		if refusal != nil && strings.Contains(refusal.Error(), d.says) {
			return i
		}
	}
	return -1
}

// Every difference in the table still exists. A difference that no longer exists must be removed.
func TestDeliberateDifferencesFromTheAPIServerStillExist(t *testing.T) {
	for i, d := range differences {
		_, refused := create(t, []byte(d.example))
		_, err := apply([]byte(d.example))
		if (err == nil) != d.weft || (refused == nil) == d.weft || excused(err, refused) != i {
			t.Errorf("%s: weft says %v, the API server %v; want them to differ as in the table", d.name, err, refused)
		}
	}
}
