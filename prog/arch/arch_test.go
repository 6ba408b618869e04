// Package arch tests the import rules of the tree, and other rules for all packages. It only has
// tests, and reads files only.
//
// Imports point in one direction: cmd → prog → {mesh, ipam, router} → pure packages → the standard
// library. mesh, ipam and router do not import each other; they only share pure packages, and
// prog/agent connects them.
package arch

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/token"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// pure lists the packages that only take and return values: no network, no files, no clock, no global
// randomness, no log.
var pure = []string{
	"weft/mesh/peer", "weft/mesh/secret", "weft/mesh/directory", "weft/mesh/discovery", "weft/mesh/document", "weft/mesh/member", "weft/mesh/path", "weft/mesh/topology",
	"weft/router/policy", "weft/router/problem", "weft/ipam/slot", "weft/ipam/ring", "weft/ipam/space", "weft/ipam/paxos", "weft/prog/flows",
}

// kubernetes lists the packages that may use Kubernetes' types.
var kubernetes = []string{
	"weft/prog/manifest", "weft/prog/kube", "weft/prog/kube/kubetest",
	"weft/prog/lab/bench", // this benchmark simulates a full API server
}

// imaging lists the modules that make the container image. No program of Weft links them.
var imaging = []string{"github.com/google/go-containerregistry/", "github.com/CycloneDX/"}

// notInPure lists the packages of the standard library that a pure package must not import. It may use
// the values of package time, but no clock: see TestPurePackagesReadNoClock.
var notInPure = []string{"net", "os", "syscall", "log", "log/slog", "math/rand", "math/rand/v2", "crypto/rand", "context", "sync"}

type pkg struct {
	ImportPath string
	Imports    []string
	Deps       []string
	GoFiles    []string
	Doc        string
}

func packages(t *testing.T) []pkg {
	t.Helper()
	out, err := exec.Command("go", "list", "-deps=false", "-json=ImportPath,Imports,Deps,GoFiles,Doc", "weft/...").Output()
	if err != nil {
		t.Fatal(err)
	}
	var all []pkg
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

func tree(path string) string {
	parts := strings.Split(path, "/")
	if len(parts) < 2 || parts[0] != "weft" {
		return ""
	}
	return parts[1]
}

func TestImportsPointOneWay(t *testing.T) {
	for _, p := range packages(t) {
		for _, i := range p.Imports {
			from, to := tree(p.ImportPath), tree(i)
			bad := ""
			switch {
			case strings.HasPrefix(i, "k8s.io/") && !slices.Contains(kubernetes, p.ImportPath):
				bad = "only the packages in kubernetes may import Kubernetes' types"
			case p.ImportPath != "weft/prog/image" && slices.ContainsFunc(imaging, func(m string) bool { return strings.HasPrefix(i, m) }):
				bad = "only prog/image may import the modules that make the image"
			case to == "":
			case slices.Contains(pure, p.ImportPath) && !slices.Contains(pure, i):
				bad = "a pure package may only import pure ones"
			case slices.Contains([]string{"mesh", "ipam", "router"}, from) && from != to && !slices.Contains(pure, i):
				bad = "mesh, ipam and router may only share pure packages"
			case from == "cmd" && to != "prog":
				bad = "cmd may only import prog"
			case from != "cmd" && to == "cmd":
				bad = "no package may import cmd"
			case i == "weft/prog/agent" && !slices.Contains([]string{"weft/prog/cli"}, p.ImportPath):
				bad = "only the command line may start the agent"
			case p.ImportPath == "weft/prog/api":
				bad = "prog/api may only import the standard library"
			}
			if bad != "" {
				t.Errorf("%s imports %s, want imports of the allowed directions only: %s", p.ImportPath, i, bad)
			}
		}
	}
}

func TestPurePackagesReadNoClock(t *testing.T) {
	for _, p := range pure {
		inspect(t, strings.TrimPrefix(p, "weft/"), nil, func(at func(ast.Node) token.Position, n ast.Node) {
			f, ok := n.(*ast.SelectorExpr)
			if !ok {
				return
			}
			if x, ok := f.X.(*ast.Ident); ok && x.Name == "time" && slices.Contains(clock, f.Sel.Name) {
				t.Errorf("%v: a pure package uses time.%s, want that callers pass the time", at(n), f.Sel.Name)
			}
		})
	}
}

func TestPurePackagesArePure(t *testing.T) {
	for _, p := range packages(t) {
		if !slices.Contains(pure, p.ImportPath) {
			continue
		}
		for _, i := range p.Imports {
			if slices.Contains(notInPure, i) {
				t.Errorf("the pure package %s imports %s, want pure imports only", p.ImportPath, i)
			}
		}
	}
}

// The start-up time of weft-cni delays every pod, so weft-cni links no package that makes its start
// slow.
func TestCNIPluginHasFewImports(t *testing.T) {
	for _, p := range packages(t) {
		if p.ImportPath != "weft/cmd/weft-cni" {
			continue
		}
		for _, d := range p.Deps {
			for _, heavy := range []string{"github.com/hashicorp", "k8s.io", "golang.zx2c4.com", "github.com/google/nftables", "github.com/spf13", "go.etcd.io", "net/http", "weft/mesh", "weft/ipam"} {
				if strings.HasPrefix(d, heavy) && !slices.Contains(pure, d) {
					t.Errorf("weft-cni links %s, want no package that slows its start", d)
				}
			}
		}
	}
}

func TestEveryPackageHasAComment(t *testing.T) {
	for _, p := range packages(t) {
		if len(p.GoFiles) > 0 && len(p.Doc) < 25 {
			t.Errorf("%s has the package comment %q, want at least 25 characters", p.ImportPath, p.Doc)
		}
	}
}
