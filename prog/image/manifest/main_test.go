package main

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

const (
	chart     = "../../../site/chart"
	committed = "../../../site/weft.yaml"
)

func TestManifestIsCurrent(t *testing.T) {
	var out bytes.Buffer
	if err := render(chart, &out); err != nil {
		t.Fatal(err)
	}
	have, err := os.ReadFile(committed)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(have, out.Bytes()) {
		t.Error("site/weft.yaml is not what the chart renders to: run `make manifest`")
	}
}

// object is as much of one as the tests look at.
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
	data, err := os.ReadFile(committed)
	if err != nil {
		t.Fatal(err)
	}
	for _, doc := range strings.Split(string(data), "\n---\n") {
		var o object
		if err := yaml.Unmarshal([]byte(doc), &o); err != nil {
			t.Fatalf("%v\n%s", err, doc)
		}
		out = append(out, o)
	}
	return out
}

// Pods have no more rights than they need, and none that would make the others needless.
func TestLeastPrivilege(t *testing.T) {
	pods := 0
	for _, o := range objects(t) {
		for _, r := range o.Rules {
			for _, word := range append(append([]string{}, r.Verbs...), r.Resources...) {
				if word == "*" || word == "delete" || word == "pods/exec" {
					t.Errorf("%s %s asks for %q", o.Kind, o.Metadata.Name, word)
				}
			}
			if strings.Join(r.Resources, "") == "secrets" && strings.Join(r.Verbs, "") != "create" && len(r.ResourceNames) != 1 {
				t.Errorf("%s %s reads more than its own secret", o.Kind, o.Metadata.Name)
			}
		}
		pod := o.Spec.Template.Spec
		for _, c := range pod.Containers {
			pods++
			s := c.SecurityContext
			if s.Privileged != nil || s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation || s.ReadOnlyRootFilesystem == nil || !*s.ReadOnlyRootFilesystem ||
				strings.Join(s.Capabilities.Drop, "") != "ALL" || pod.SecurityContext.SeccompProfile.Type != "RuntimeDefault" {
				t.Errorf("%s has more rights than it needs: %+v", o.Metadata.Name, s)
			}
			for _, c := range s.Capabilities.Add {
				if c != "NET_ADMIN" && c != "NET_BIND_SERVICE" {
					t.Errorf("%s asks for %s", o.Metadata.Name, c)
				}
			}
		}
	}
	if pods != 2 {
		t.Errorf("%d containers, want the agent's and the data path's", pods)
	}
}

// Each right in a role has a comment above it that says why.
func TestRightsAreJustified(t *testing.T) {
	data, err := os.ReadFile(committed)
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
				t.Errorf("no reason for %s", line)
			}
		case strings.HasPrefix(line, "# "):
			explained = true
		default:
			explained = false
		}
	}
	if rules == 0 {
		t.Error("no rules")
	}
}

// What is taken off is what was installed.
func TestUninstallUsesTheSameImage(t *testing.T) {
	data, err := os.ReadFile("../../../site/uninstall.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range objects(t) {
		for _, c := range o.Spec.Template.Spec.Containers {
			if !strings.Contains(string(data), "image: "+c.Image+"\n") {
				t.Errorf("site/uninstall.yaml does not use %s", c.Image)
			}
		}
	}
}

// Rolling the agent never touches the data path.
func TestDataPathIsReplacedByHandOnly(t *testing.T) {
	strategies := map[string]string{}
	for _, o := range objects(t) {
		if o.Kind == "DaemonSet" {
			strategies[o.Metadata.Name] = o.Spec.UpdateStrategy.Type
		}
	}
	if strategies["weft-datapath"] != "OnDelete" || strategies["weft"] != "RollingUpdate" {
		t.Errorf("update strategies: %v", strategies)
	}
}
