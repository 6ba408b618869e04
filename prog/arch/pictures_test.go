package arch

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// graph holds the arrows from each node.
type graph map[string]map[string]bool

func (g graph) add(from, to string) {
	if g[from] == nil {
		g[from] = map[string]bool{}
	}
	g[from][to] = true
}

// reach adds all nodes that can be reached from a node.
func (g graph) reach(from string, seen map[string]bool) {
	for to := range g[from] {
		if !seen[to] {
			seen[to] = true
			g.reach(to, seen)
		}
	}
}

// reduced returns the arrows that other arrows do not imply.
func (g graph) reduced() (arrows []string) {
	for from, tos := range g {
		for to := range tos {
			follows := false
			for via := range tos {
				seen := map[string]bool{}
				if via != to {
					g.reach(via, seen)
				}
				follows = follows || seen[to]
			}
			if !follows {
				arrows = append(arrows, from+" --> "+to)
			}
		}
	}
	slices.Sort(arrows)
	return arrows
}

var arrow = regexp.MustCompile(`(?m)^\s+(\S+) --> (\S+)$`)

// picture returns the arrows of a Mermaid flowchart below a heading of the architecture page.
func picture(t *testing.T, heading string) (arrows []string) {
	t.Helper()
	page, err := os.ReadFile(filepath.Join("..", "..", "site", "docs", "architecture.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(page), "\n## "+heading+"\n")
	_, rest, drawn := strings.Cut(rest, "```mermaid\n")
	chart, _, ended := strings.Cut(rest, "```")
	if !found || !drawn || !ended {
		t.Fatalf("architecture.md has no picture below %q, want a Mermaid flowchart", heading)
	}
	for _, m := range arrow.FindAllStringSubmatch(chart, -1) {
		arrows = append(arrows, m[1]+" --> "+m[2])
	}
	slices.Sort(arrows)
	return arrows
}

// compare reports arrows that only the picture or only the code has.
func compare(t *testing.T, heading string, code graph) {
	t.Helper()
	drawn, real := picture(t, heading), code.reduced()
	for _, a := range drawn {
		if !slices.Contains(real, a) {
			t.Errorf("%s: the picture has the arrow %q, want it removed: the code has no such import, or other arrows imply it", heading, a)
		}
	}
	for _, a := range real {
		if !slices.Contains(drawn, a) {
			t.Errorf("%s: the picture lacks the arrow %q of the code, want it", heading, a)
		}
	}
}

func TestArchitecturePictureOfTheAgentMatchesImports(t *testing.T) {
	everywhere := []string{"live", "metric", "config", "agenttest", "policytest"} // all components use these packages, so the picture omits them
	code := graph{}
	for _, p := range packages(t) {
		from, ok := component(p.ImportPath)
		if !ok || slices.Contains(everywhere, from) {
			continue
		}
		for _, i := range p.Imports {
			if to, ok := component(i); ok && !slices.Contains(everywhere, to) {
				code.add(from, to)
			}
		}
	}
	compare(t, "The agent", code)
}

// component returns a package's name in the picture of the agent.
func component(path string) (string, bool) {
	if slices.Contains([]string{"weft/prog/kube/node", "weft/prog/kube/reclaim", "weft/prog/cni/install"}, path) {
		return strings.TrimPrefix(path, "weft/prog/"), true
	}
	return strings.CutPrefix(path, "weft/prog/agent/")
}

func TestArchitecturePictureOfAllPackagesMatchesImports(t *testing.T) {
	shown := []string{"prog/cli", "prog/cni", "prog/lab", "prog/agent", "prog/kube", "prog/dns", "prog/state"}
	part := func(path string) string {
		rest, ours := strings.CutPrefix(path, "weft/")
		if !ours || path == "weft/prog/cni/install" {
			return ""
		}
		if slices.Contains(pure, path) {
			return "pure"
		}
		for _, s := range shown {
			if rest == s || strings.HasPrefix(rest, s+"/") {
				return s
			}
		}
		if top, _, _ := strings.Cut(rest, "/"); slices.Contains([]string{"cmd", "mesh", "ipam", "router"}, top) {
			return top
		}
		return ""
	}
	code := graph{}
	for _, p := range packages(t) {
		for _, i := range p.Imports {
			if from, to := part(p.ImportPath), part(i); from != "" && to != "" && from != to {
				code.add(from, to)
			}
		}
	}
	compare(t, "The whole", code)
}
