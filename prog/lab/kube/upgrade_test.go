package kube

import (
	"os"
	"strings"
	"testing"
)

// The manifest of a newer release is applied, and then the manifest of this release again. Agents run
// the release that was applied last; the data path's pods keep their release. Both releases are the
// same image under two names.
func upgraded(t *testing.T) {
	t.Helper()
	data, err := os.ReadFile(checkout + "/site/deploy/weft.yaml")
	if err != nil {
		t.Fatal(err)
	}
	this := image(t)
	next := this + "-next"
	for _, node := range nodes {
		out, err := cluster(t, "", "in", node, "ctr", "-n", "k8s.io", "images", "tag", this, next)
		must(t, out, err)
	}
	images := func(app string) string {
		return kubectl(t, "-n", "weft", "get", "pods", "-l", "app="+app, "-o", "jsonpath={.items[*].spec.containers[*].image}")
	}
	for _, release := range []string{next, this} {
		before := agentPods(t)
		apply(t, strings.ReplaceAll(string(data), this, release))
		agentsReplaced(t, before)
		for app, want := range map[string]string{"weft": release, "weft-datapath": this} {
			if is := images(app); is != strings.TrimSpace(strings.Repeat(want+" ", len(nodes))) {
				t.Errorf("after %s was applied, the pods of %s use %s, want %s", release, app, is, want)
			}
		}
	}
}
