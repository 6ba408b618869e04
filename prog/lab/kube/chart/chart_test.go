// Package chart tests the output of Helm and Kustomize for site/deploy. It is its own module, so that
// other modules do not depend on Helm.
package chart

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"
)

// deploy is the folder of the manifests, docs the folder of the documentation.
const (
	deploy = "../../../../site/deploy"
	docs   = "../../../../site/docs"
)

// objects returns the objects of a manifest, by kind, namespace and name.
func objects(t *testing.T, manifest string) map[string]any {
	t.Helper()
	out := map[string]any{}
	for doc := range strings.SplitSeq(manifest, "\n---") {
		var o map[string]any
		if err := yaml.Unmarshal([]byte(doc), &o); err != nil {
			t.Fatalf("a rendered document is unreadable, want YAML: %v\n%s", err, doc)
		}
		if len(o) == 0 {
			continue
		}
		meta := o["metadata"].(map[string]any)
		namespace, _ := meta["namespace"].(string)
		out[strings.Join([]string{o["kind"].(string), namespace, meta["name"].(string)}, "/")] = o
	}
	return out
}

func installed(t *testing.T) map[string]any {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(deploy, "weft.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	return objects(t, string(data))
}

// helm returns the output of `helm template weft site/deploy/chart --namespace weft --include-crds`.
func helm(t *testing.T, values map[string]any) map[string]any {
	t.Helper()
	c, err := loader.Load(filepath.Join(deploy, "chart"))
	if err != nil {
		t.Fatal(err)
	}
	v, err := chartutil.ToRenderValues(c, values, chartutil.ReleaseOptions{Name: "weft", Namespace: "weft"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	files, err := engine.Render(c, v)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for name, text := range files {
		if !strings.HasSuffix(name, "/NOTES.txt") {
			all = append(all, text)
		}
	}
	for _, first := range c.CRDObjects() {
		all = append(all, string(first.File.Data))
	}
	slices.Sort(all)
	return objects(t, strings.Join(all, "\n---\n"))
}

// release returns the image's default tag.
func release(t *testing.T) string {
	t.Helper()
	c, err := loader.Load(filepath.Join(deploy, "chart"))
	if err != nil {
		t.Fatal(err)
	}
	return c.Metadata.AppVersion
}

func TestHelmRendersTheManifest(t *testing.T) {
	if d := cmp.Diff(installed(t), helm(t, nil)); d != "" {
		t.Errorf("Helm renders other objects than site/deploy/weft.yaml has, want the same (-site/deploy/weft.yaml +Helm)\n%s", d)
	}
}

// Each value of the chart changes its own fields, and no others.
func TestHelmValuesChangeOnlyTheirFields(t *testing.T) {
	got := helm(t, map[string]any{
		"image":    map[string]any{"repository": "registry.example/net/weft", "tag": "v1"},
		"settings": map[string]any{"WEFT_MTU": "1400", "WEFT_NO_DNS": true},
	})
	settings, ok := got["ConfigMap/weft/weft"].(map[string]any)
	if !ok || !cmp.Equal(settings["data"], map[string]any{"WEFT_MTU": "1400", "WEFT_NO_DNS": "true"}) {
		t.Errorf("the ConfigMap with settings has %v, want the given settings as text", settings)
	}
	delete(got, "ConfigMap/weft/weft")
	want := installed(t)
	for _, name := range []string{"weft", "weft-datapath"} {
		for _, all := range []map[string]any{got, want} {
			pod := all["DaemonSet/weft/"+name].(map[string]any)["spec"].(map[string]any)["template"].(map[string]any)["spec"].(map[string]any)
			c := pod["containers"].([]any)[0].(map[string]any)
			if image := c["image"]; image != "registry.example/net/weft:v1" && image != "localhost/weft:"+release(t) {
				t.Errorf("%s: got the image %v, want the given one, or localhost/weft with the release", name, image)
			}
			delete(c, "image")
		}
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("the values changed other objects too, want no change (-site/deploy/weft.yaml +Helm)\n%s", d)
	}
}

// The example in site/deploy/kustomization.yaml works: images have that name and tag, and there is a
// ConfigMap of that name.
func TestKustomizeExampleWorks(t *testing.T) {
	fs := filesys.MakeFsInMemory()
	var example strings.Builder
	for _, name := range []string{"kustomization.yaml", "weft.yaml"} {
		data, err := os.ReadFile(filepath.Join(deploy, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := fs.WriteFile("/deploy/"+name, data); err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(data)) {
			if text, ok := strings.CutPrefix(line, "#   "); ok && name == "kustomization.yaml" {
				example.WriteString(strings.ReplaceAll(text, "<this folder>", "../deploy"))
			}
		}
	}
	if err := fs.WriteFile("/mine/kustomization.yaml", []byte(example.String())); err != nil {
		t.Fatal(err)
	}
	out, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(fs, "/mine")
	if err != nil {
		t.Fatal(err)
	}
	text, err := out.AsYaml()
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(text), "image: registry.example/net/weft:v1.2.3\n"); n != 2 || strings.Contains(string(text), "image: localhost") {
		t.Errorf("%d images have the example's name and tag, want 2", n)
	}
	if objects(t, string(text))["ConfigMap/weft/weft"] == nil {
		t.Error("the example creates no ConfigMap weft, want one")
	}
}

func TestKustomizeRendersTheManifest(t *testing.T) {
	out, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), deploy)
	if err != nil {
		t.Fatal(err)
	}
	text, err := out.AsYaml()
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(installed(t), objects(t, string(text))); d != "" {
		t.Errorf("Kustomize renders other objects than site/deploy/weft.yaml has, want the same (-site/deploy/weft.yaml +Kustomize)\n%s", d)
	}
}
