package main

import (
	"bytes"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// deploy contains the files to install, docs the documentation.
const (
	deploy = "../../../site/deploy"
	docs   = "../../../site/docs"
)

func TestManifestsEqualTheRenderedChart(t *testing.T) {
	made, err := render(deploy, "")
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range made {
		if !bytes.Equal(read(t, filepath.Join(deploy, name)), want) {
			t.Errorf("site/deploy/%s differs from the rendered chart, want the same text: run `make manifest`", name)
		}
	}
}

func read(t *testing.T, file string) []byte {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// A new release changes only the pods of both DaemonSets and of the uninstaller. So `kubectl apply` of
// a release's manifest replaces these pods, whether the release is newer or older.
func TestReleaseChangesOnlyImageTags(t *testing.T) {
	old, err := render(deploy, "v1.2.3")
	if err != nil {
		t.Fatal(err)
	}
	newer, err := render(deploy, "v1.3.0-rc.1")
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][]string{
		chartFile:     {"version: 1.3.0-rc.1", "appVersion: v1.3.0-rc.1"},
		installFile:   {"# Installs Weft v1.3.0-rc.1: kubectl apply -f weft.yaml", "image: localhost/weft:v1.3.0-rc.1", "image: localhost/weft:v1.3.0-rc.1"},
		uninstallFile: {"image: localhost/weft:v1.3.0-rc.1"},
	} {
		before, after := strings.Split(string(old[name]), "\n"), strings.Split(string(newer[name]), "\n")
		var changed []string
		for i, line := range after {
			if i >= len(before) || line != before[i] {
				changed = append(changed, strings.TrimSpace(line))
			}
		}
		if len(before) != len(after) || !slices.Equal(changed, want) {
			t.Errorf("%s: a newer release changes %q, want %q", name, changed, want)
		}
	}
}

func TestInvalidReleasesAreRefused(t *testing.T) {
	for _, version := range []string{"latest", "v1", "v1.2", "v1.2.3+4", "1.2.3.4", "v01.2.3", "3afc96e", "v1.2.3-", "v1.2.3 "} {
		if _, err := render(deploy, version); err == nil || !strings.Contains(err.Error(), "give one like v1.2.3") {
			t.Errorf("version %q: got error %v, want it refused", version, err)
		}
	}
	for _, version := range []string{"0.2.0", "v10.0.1", "v0.2.0-3-g3afc96e-dirty"} {
		if _, err := render(deploy, version); err != nil {
			t.Errorf("version %q: got error %v, want none", version, err)
		}
	}
}

// `make manifest` stores the release that it is given. The next call without a release keeps it.
func TestManifestKeepsTheStoredRelease(t *testing.T) {
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(deploy)); err != nil {
		t.Fatal(err)
	}
	for _, version := range []string{"v1.2.3", ""} {
		if err := run(dir, version); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{chartFile, installFile, uninstallFile} {
		if !strings.Contains(string(read(t, filepath.Join(dir, name))), "v1.2.3\n") {
			t.Errorf("%s lacks the release v1.2.3, want it", name)
		}
	}
	if left, _ := filepath.Glob(dir + "/*.new"); len(left) > 0 {
		t.Errorf("temporary files %v are left, want none", left)
	}
}

// `make image` builds the image that the manifests use, whatever the commit is. VERSION and IMAGE
// change its tag and its name.
func TestMakeImageBuildsTheImageOfTheManifests(t *testing.T) {
	asked := string(imageLine.Find(read(t, filepath.Join(deploy, uninstallFile))))
	asked = strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(asked), "image:"))
	_, tag, _ := strings.Cut(asked, ":")
	for _, c := range []struct{ arg, want string }{
		{"", asked},
		{"VERSION=v9.9.9", "localhost/weft:v9.9.9"},
		{"IMAGE=registry.example:5000/net/weft", "registry.example:5000/net/weft:" + tag},
		{"IMAGE=registry.example/net/weft:mine", "registry.example/net/weft:mine"},
	} {
		cmd := exec.Command("make", "--no-print-directory", "-n", "-C", "../../..", "image")
		if c.arg != "" {
			cmd.Args = append(cmd.Args, c.arg)
		}
		cmd.Env = slices.DeleteFunc(os.Environ(), func(kv string) bool { // remove the variables of a make that runs this test
			return strings.HasPrefix(kv, "MAKE") || strings.HasPrefix(kv, "VERSION=") || strings.HasPrefix(kv, "IMAGE=") || strings.HasPrefix(kv, "MFLAGS=")
		})
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "-name '"+c.want+"'") {
			t.Errorf("make image %s: error %v, want the image %s in its commands:\n%s", c.arg, err, c.want, out)
		}
		if c.arg == "" && !strings.Contains(string(out), "weft/prog/cli.Version="+tag) { // the version ends with the commit, unless the commit has the release's tag
			t.Errorf("make image gives the programs another version, want a version that begins with %s:\n%s", tag, out)
		}
	}
}

// Each delete command in the instructions succeeds if its object is gone already.
func TestUninstallCanBeRepeated(t *testing.T) {
	_, text, _ := strings.Cut(string(read(t, filepath.Join(docs, "kubernetes.md"))), "\n## Uninstall\n")
	text, _, _ = strings.Cut(text, "\n\nThese steps")
	deletes := 0
	for line := range strings.Lines(text) {
		if strings.Contains(line, "kubectl ") && strings.Contains(line, " delete ") {
			if deletes++; !strings.HasSuffix(strings.TrimSpace(line), " --ignore-not-found") {
				t.Errorf("this command fails if run twice, want --ignore-not-found: %s", strings.TrimSpace(line))
			}
		}
	}
	if deletes != 2 {
		t.Errorf("found %d delete commands, want the one for the installed objects and the one for the uninstaller", deletes)
	}
}

// Nodes do not pull a tag again when its image changes, so no file uses the tag latest.
func TestNoFileUsesTheTagLatest(t *testing.T) {
	for _, dir := range []string{deploy, docs, "../../lab", "../../../README.md", "../../../Makefile"} {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() && bytes.Contains(read(t, path), []byte("weft:"+"latest")) {
				t.Errorf("%s uses the tag latest, want a release", path)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// object contains the fields of a Kubernetes object that the tests check.
type object struct {
	Kind     string
	Metadata struct{ Name, Namespace string }
	Rules    []struct{ Resources, Verbs, ResourceNames []string }
	Spec     struct {
		UpdateStrategy struct{ Type string }
		Template       struct {
			Spec struct {
				AutomountServiceAccountToken *bool
				SecurityContext              struct{ SeccompProfile struct{ Type string } }
				Containers                   []container
			}
		}
	}
}

type container struct {
	Image           string
	SecurityContext struct {
		Privileged, AllowPrivilegeEscalation, ReadOnlyRootFilesystem *bool
		Capabilities                                                 struct{ Add, Drop []string }
	}
}

func objects(t *testing.T) (out []object) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(deploy, installFile))
	if err != nil {
		t.Fatal(err)
	}
	for doc := range strings.SplitSeq(string(data), "\n---\n") {
		var o object
		if err := yaml.Unmarshal([]byte(doc), &o); err != nil {
			t.Fatalf("a document is unreadable, want YAML: %v\n%s", err, doc)
		}
		out = append(out, o)
	}
	return out
}

// Pods have only the rights that they need, and no right that implies further rights.
func TestPodsHaveOnlyTheNeededRights(t *testing.T) {
	pods := 0
	for _, o := range objects(t) {
		for _, r := range o.Rules {
			for _, word := range append(append([]string{}, r.Verbs...), r.Resources...) {
				if word == "*" || word == "delete" || word == "pods/exec" {
					t.Errorf("%s %s has the right %q, want it removed", o.Kind, o.Metadata.Name, word)
				}
			}
			if strings.Join(r.Resources, "") == "secrets" && strings.Join(r.Verbs, "") != "create" && len(r.ResourceNames) != 1 {
				t.Errorf("%s %s can read any Secret, want its own Secret only", o.Kind, o.Metadata.Name)
			}
		}
		pod := o.Spec.Template.Spec
		for _, c := range pod.Containers {
			pods++
			s := c.SecurityContext
			if s.Privileged != nil || s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation || s.ReadOnlyRootFilesystem == nil || !*s.ReadOnlyRootFilesystem ||
				strings.Join(s.Capabilities.Drop, "") != "ALL" || pod.SecurityContext.SeccompProfile.Type != "RuntimeDefault" {
				t.Errorf("%s has the security context %+v, want no privileges, a read-only root and all capabilities dropped", o.Metadata.Name, s)
			}
			for _, c := range s.Capabilities.Add {
				if c != "NET_ADMIN" && c != "NET_RAW" && c != "NET_BIND_SERVICE" {
					t.Errorf("%s adds the capability %s, want only NET_ADMIN, NET_RAW and NET_BIND_SERVICE", o.Metadata.Name, c)
				}
			}
		}
	}
	if pods != 2 {
		t.Errorf("got %d containers, want those of the agent and of the data path", pods)
	}
}

// Each rule of a role has a comment above it with its reason.
func TestEachRBACRuleHasACommentWithItsReason(t *testing.T) {
	data, err := os.ReadFile(filepath.Join(deploy, installFile))
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(data), "\n")
	explained, rules := false, 0
	for _, line := range lines {
		switch {
		case strings.HasPrefix(line, "- {apiGroups:"):
			rules++
			if !explained {
				t.Errorf("this rule has no comment above it, want one with the reason: %s", line)
			}
		case strings.HasPrefix(line, "# "):
			explained = true
		default:
			explained = false
		}
	}
	if rules == 0 {
		t.Error("found no rules in the roles, want some: does this test look in the right place?")
	}
}

// Updating the agent never restarts the data path.
func TestDataPathUpdatesOnlyOnDelete(t *testing.T) {
	strategies := map[string]string{}
	for _, o := range objects(t) {
		if o.Kind == "DaemonSet" {
			strategies[o.Metadata.Name] = o.Spec.UpdateStrategy.Type
		}
	}
	if strategies["weft-datapath"] != "OnDelete" || strategies["weft"] != "RollingUpdate" {
		t.Errorf("got update strategies %v, want OnDelete for weft-datapath and RollingUpdate for weft", strategies)
	}
}
