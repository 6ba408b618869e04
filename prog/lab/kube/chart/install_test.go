package chart

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"k8s.io/client-go/kubernetes/scheme"
)

// apiServer simulates an API server that enforces Pod Security's baseline. It stores objects by path,
// and refuses DaemonSets in a namespace that is not privileged. (A real API server accepts the
// DaemonSets, but refuses their pods.)
type apiServer struct {
	mu      sync.Mutex
	objects map[string]map[string]any
}

// resources are the known kinds, by group and version. The names of namespaced kinds end in a dot.
var resources = map[string]map[string]string{
	"api/v1":                            {"namespaces": "Namespace", "serviceaccounts.": "ServiceAccount", "secrets.": "Secret", "configmaps.": "ConfigMap"},
	"apis/apps/v1":                      {"daemonsets.": "DaemonSet"},
	"apis/rbac.authorization.k8s.io/v1": {"clusterroles": "ClusterRole", "clusterrolebindings": "ClusterRoleBinding", "roles.": "Role", "rolebindings.": "RoleBinding"},
}

type object = map[string]any

func (s *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	code, answer := s.answer(r)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(answer)
}

func (s *apiServer) answer(r *http.Request) (int, object) {
	path := strings.Trim(r.URL.Path, "/")
	if found := discovery(path); found != nil {
		return http.StatusOK, found
	}
	var body object
	if r.Method == http.MethodPost || r.Method == http.MethodPut {
		var err error
		if body, err = decode(r); err != nil {
			return refused(http.StatusBadRequest, "BadRequest", err.Error())
		}
	}
	if r.Method == http.MethodPost {
		path += "/" + body["metadata"].(object)["name"].(string)
	}
	is, there := s.objects[path]
	switch {
	case r.Method == http.MethodPost && there:
		return refused(http.StatusConflict, "AlreadyExists", path+" already exists")
	case r.Method == http.MethodPost:
		if !s.admits(path) {
			return refused(http.StatusForbidden, "Forbidden", path+": violates PodSecurity \"baseline\"")
		}
		s.objects[path] = body
		return http.StatusCreated, body
	case r.Method == http.MethodGet && r.URL.Query().Has("labelSelector"): // Helm lists releases of that name
		list := []any{}
		for name, o := range s.objects {
			if labels, ok := o["metadata"].(object)["labels"].(object); ok && labels["owner"] == "helm" && strings.HasPrefix(name, path+"/") {
				list = append(list, o)
			}
		}
		return http.StatusOK, object{"kind": "SecretList", "apiVersion": "v1", "metadata": object{}, "items": list}
	case !there:
		return refused(http.StatusNotFound, "NotFound", path+" not found")
	case r.Method == http.MethodPut:
		s.objects[path] = body
		return http.StatusOK, body
	case r.Method == http.MethodDelete:
		delete(s.objects, path)
	}
	return http.StatusOK, is
}

// decode decodes an object in JSON or in Kubernetes' protocol buffers.
func decode(r *http.Request) (o object, err error) {
	data, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	typed, _, err := scheme.Codecs.UniversalDeserializer().Decode(data, nil, nil)
	if err != nil {
		return nil, err
	}
	if data, err = json.Marshal(typed); err != nil {
		return nil, err
	}
	return o, json.Unmarshal(data, &o)
}

func (s *apiServer) admits(path string) bool {
	parts := strings.Split(path, "/")
	at := len(parts) - 3
	if at < 2 || parts[at-1] != "namespaces" {
		return true
	}
	namespace, ok := s.objects["api/v1/namespaces/"+parts[at]]
	if !ok {
		return parts[at] == "default" || parts[at] == "kube-system"
	}
	labels, _ := namespace["metadata"].(object)["labels"].(object)
	return !strings.Contains(path, "/daemonsets/") || labels["pod-security.kubernetes.io/enforce"] == "privileged"
}

func refused(code int, reason, message string) (int, object) {
	return code, object{"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": message}
}

// discovery answers requests about the supported kinds, and about field validation by the server; nil
// for other paths.
func discovery(path string) object {
	groups, docs := []any{}, object{}
	for gv, kinds := range resources {
		docs[gv] = object{"serverRelativeURL": "/openapi/v3/" + gv}
		group, version := "", strings.TrimPrefix(gv, "api/")
		if name, ok := strings.CutPrefix(gv, "apis/"); ok {
			version = name
			group, _, _ = strings.Cut(name, "/")
			v := object{"groupVersion": version, "version": "v1"}
			groups = append(groups, object{"name": group, "versions": []any{v}, "preferredVersion": v})
		}
		list, paths := []any{}, object{}
		for name, kind := range kinds {
			name, namespaced := strings.CutSuffix(name, ".")
			list = append(list, object{"name": name, "kind": kind, "namespaced": namespaced, "verbs": []string{"create", "delete", "get", "list", "patch"}})
			paths["/"+name] = object{"patch": object{
				"x-kubernetes-group-version-kind": object{"group": group, "version": "v1", "kind": kind},
				"parameters":                      []any{object{"name": "fieldValidation", "in": "query"}},
				"responses":                       object{},
			}}
		}
		switch path {
		case gv:
			return object{"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": list}
		case "openapi/v3/" + gv:
			return object{"openapi": "3.0.0", "info": object{"title": "stand-in", "version": "1"}, "paths": paths}
		}
	}
	switch path {
	case "version":
		return object{"major": "1", "minor": "35", "gitVersion": "v1.35.0"}
	case "api":
		return object{"kind": "APIVersions", "versions": []string{"v1"}}
	case "apis":
		return object{"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
	case "openapi/v3":
		return object{"paths": docs}
	}
	return nil
}

// documented returns the lines of a section's indented blocks in site/docs/kubernetes.md that begin
// with a word.
func documented(t *testing.T, section, word string) (lines []string) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(docs, "kubernetes.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(data), "\n## "+section+"\n")
	text, _, _ = strings.Cut(text, "\n## ")
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "    "+word+" ") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	if len(lines) == 0 {
		t.Fatalf("site/docs/kubernetes.md has no line that begins with %s in section %q, want one", word, section)
	}
	return lines
}

// The documented Helm commands work if Pod Security enforces baseline. They leave only the namespace,
// which the next documented step deletes.
func TestHelmWorksUnderPodSecurity(t *testing.T) {
	program := filepath.Join(t.TempDir(), "helm")
	build := exec.Command("go", "build", "-o", program, "helm.sh/helm/v3/cmd/helm")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building Helm returned %v, want success:\n%s", err, out)
	}
	s := &apiServer{objects: map[string]map[string]any{}}
	server := httptest.NewServer(s)
	defer server.Close()
	config := filepath.Join(t.TempDir(), "config")
	err := os.WriteFile(config, fmt.Appendf(nil, "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{name: c, context: {cluster: c}}]\nclusters: [{name: c, cluster: {server: %q}}]\n", server.URL), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	helm := func(line string) (string, error) {
		t.Helper()
		words := strings.Fields(line)
		cmd := exec.Command(program, words[1:]...)
		cmd.Dir = deploy
		cmd.Env = append(os.Environ(), "KUBECONFIG="+config, "HOME="+t.TempDir())
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	for range 2 { // in the second round, the namespace exists already
		for _, section := range []string{"Install", "Upgrade", "Uninstall"} {
			for _, line := range documented(t, section, "helm") {
				if section == "Uninstall" {
					delete(s.objects, "apis/apps/v1/namespaces/weft/daemonsets/weft") // earlier documented steps delete the DaemonSets
					delete(s.objects, "apis/apps/v1/namespaces/weft/daemonsets/weft-datapath")
				}
				out, err := helm(line)
				if err != nil || strings.Contains(out, "kubectl label") {
					t.Fatalf("%s returned %v, want success without a hint to label the namespace:\n%s", line, err, out)
				}
			}
			if section == "Install" && (s.objects["apis/apps/v1/namespaces/weft/daemonsets/weft"] == nil || s.objects["api/v1/namespaces/weft"] == nil) {
				t.Fatalf("the installed objects are %v, want the DaemonSet and the namespace among them", s.objects)
			}
		}
		if len(s.objects) != 1 || s.objects["api/v1/namespaces/weft"] == nil {
			t.Fatalf("after Uninstall, the remaining objects are %v, want only the namespace", s.objects)
		}
	}
	// In another namespace without the label, Helm's notes say what to do.
	if out, err := helm("helm install weft chart --namespace net --create-namespace"); err == nil || !strings.Contains(out, "PodSecurity") {
		t.Errorf("installation in a namespace without the label returned %v, want an error about PodSecurity:\n%s", err, out)
	}
	if out, err := helm("helm install weft chart --namespace net --create-namespace --dry-run=server"); !strings.Contains(out, "kubectl label namespace net pod-security.kubernetes.io/enforce=privileged") {
		t.Errorf("a dry run in a namespace without the label printed (error %v), want the kubectl label command:\n%s", err, out)
	}
}
