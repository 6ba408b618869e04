package apiserver

import (
	"strings"
	"testing"
)

// differences are deliberate. Each has an example, and words by which it is known in the error
// of the one that refuses.
var differences = []struct {
	name, why string
	weft      bool   // takes it, and the API server does not
	says      string // the error of the one that does not
	example   string
}{
	{
		"namespaces with other names", "containers outside Kubernetes have such a namespace: their policies have to name it",
		true, "metadata.namespace: Invalid value", meta("name: p, namespace: shop_a"),
	},
	{
		"the status", "API servers before 1.28 have it, and kubectl get prints it",
		true, `strict decoding error: unknown field "status"`, meta("name: p") + "status: {}\n",
	},
	{
		"lists", "kubectl takes them apart before it asks the API server",
		true, `no kind "List" is registered`, "apiVersion: v1\nkind: List\nitems: [{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: p}, spec: {}}]\n",
	},
	{
		"finalizers with short names", "they mean nothing here and are not kept; the list of those that are allowed is in Kubernetes' internal code",
		true, "name is neither a standard finalizer name nor is it fully qualified", meta("name: p, finalizers: [x]"),
	},
	{
		"names to be generated", "there is nobody to generate one, and to apply the manifest again would make another policy",
		false, "metadata.name: a policy needs one", meta("generateName: p-"),
	},
	{
		"the audit annotation", "it is Weft's: what is neither true nor false would be enforced, or not, by surprise",
		false, `is neither "true" nor "false"`, meta(`name: p, annotations: {weft.internal/audit: "True"}`),
	},
	{
		"two keys that are one in JSON", "which of the two counts is by chance at the API server",
		false, "without quotes is", meta("name: p") + "spec: {podSelector: {matchLabels: {yes: a, \"true\": b}}}\n",
	},
	{
		"aliases", "a small file could stand for one without end",
		false, "aliases are not read", meta("name: &n p, labels: {a: *n}"),
	},
}

func meta(fields string) string {
	return "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {" + fields + "}\n"
}

// excuses counts how often each difference was met.
var excuses = make([]int, len(differences))

// excused finds the deliberate difference that two answers are an example of; -1: none.
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

// Every difference in the table is still there: one that is gone has no place in it.
func TestDifferences(t *testing.T) {
	for i, d := range differences {
		_, refused := create(t, []byte(d.example))
		_, err := apply([]byte(d.example))
		if (err == nil) != d.weft || (refused == nil) == d.weft || excused(err, refused) != i {
			t.Errorf("%s: weft says %v, the API server %v", d.name, err, refused)
		}
	}
}
