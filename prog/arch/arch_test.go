// Package arch holds the import rules of the tree as a test.
//
// Imports point one way: cmd → prog → {mesh, ipam, router} → pure packages → the
// standard library. mesh, ipam and router do not import each other; they meet in
// pure packages, and in prog/agent.
package arch

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// pure packages take values and return values: no network, no files, no clock, no
// global randomness, no log.
var pure = []string{
	"weft/mesh/peer", "weft/mesh/secret", "weft/mesh/directory", "weft/mesh/document", "weft/mesh/topology",
	"weft/router/policy", "weft/router/problem", "weft/ipam/slot", "weft/ipam/ring", "weft/ipam/space", "weft/ipam/paxos",
}

// kubernetes are the packages that may know Kubernetes' own types.
var kubernetes = []string{
	"weft/prog/manifest", "weft/prog/kube", "weft/prog/kube/kubetest",
	"weft/prog/lab/bench", // stands in for an API server with all that is in it
}

// imaging are the modules that make the container image: no program of ours links them.
var imaging = []string{"github.com/google/go-containerregistry/", "github.com/CycloneDX/"}

// notInPure are the packages of the standard library that a pure package does not import.
var notInPure = []string{"net", "os", "syscall", "log", "log/slog", "time", "math/rand", "math/rand/v2", "crypto/rand", "context", "sync"}

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
				bad = "Kubernetes' types stay at the edge"
			case p.ImportPath != "weft/prog/image" && slices.ContainsFunc(imaging, func(m string) bool { return strings.HasPrefix(i, m) }):
				bad = "only the program that makes the image imports that"
			case to == "":
			case slices.Contains(pure, p.ImportPath) && !slices.Contains(pure, i):
				bad = "a pure package imports only pure ones"
			case slices.Contains([]string{"mesh", "ipam", "router"}, from) && from != to && !slices.Contains(pure, i):
				bad = "mesh, ipam and router meet in pure packages only"
			case from == "cmd" && to != "prog":
				bad = "cmd imports prog only"
			case from != "cmd" && to == "cmd":
				bad = "nobody imports cmd"
			case i == "weft/prog/agent" && !slices.Contains([]string{"weft/prog/cli"}, p.ImportPath):
				bad = "only the command line starts the agent"
			case p.ImportPath == "weft/prog/api":
				bad = "the contract imports the standard library only"
			}
			if bad != "" {
				t.Errorf("%s imports %s: %s", p.ImportPath, i, bad)
			}
		}
	}
}

func TestPurePackagesArePure(t *testing.T) {
	for _, p := range packages(t) {
		if !slices.Contains(pure, p.ImportPath) {
			continue
		}
		for _, i := range p.Imports {
			if slices.Contains(notInPure, i) {
				t.Errorf("%s is pure, and imports %s", p.ImportPath, i)
			}
		}
	}
}

// weft-cni's start-up time is paid for every pod.
func TestTheCNIPluginStaysSmall(t *testing.T) {
	for _, p := range packages(t) {
		if p.ImportPath != "weft/cmd/weft-cni" {
			continue
		}
		for _, d := range p.Deps {
			for _, heavy := range []string{"github.com/hashicorp", "k8s.io", "golang.zx2c4.com", "github.com/google/nftables", "github.com/spf13", "go.etcd.io", "net/http", "weft/mesh", "weft/ipam"} {
				if strings.HasPrefix(d, heavy) && !slices.Contains(pure, d) {
					t.Errorf("weft-cni links %s", d)
				}
			}
		}
	}
}

func TestEveryPackageSaysWhatItIs(t *testing.T) {
	for _, p := range packages(t) {
		if len(p.GoFiles) > 0 && len(p.Doc) < 25 {
			t.Errorf("%s has no package comment to speak of", p.ImportPath)
		}
	}
}
