package arch

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// counted is a number with a noun that has its s whatever the number is; bound is what may,
// since it is never one.
var (
	counted = regexp.MustCompile(`%d (containers|addresses|endpoints|hosts|peers|packets|requests|times|IPs|arguments|messages|names)\b`)
	bound   = regexp.MustCompile(`(at most|at least|more than|between|to|of|and) %d|%d [a-z]+: between`)
)

// One container is not "1 containers": words.Count writes numbers with their noun.
func TestNumbersAgreeWithTheirNouns(t *testing.T) {
	for _, dir := range []string{"agent", "cli", "cni", "kube", "lab"} {
		err := filepath.WalkDir(filepath.Join("..", dir), func(path string, d fs.DirEntry, err error) error {
			if d != nil && d.IsDir() && (d.Name() == "bench" || d.Name() == "uml") {
				return fs.SkipDir // measurements, for us
			}
			if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			set := token.NewFileSet()
			file, err := parser.ParseFile(set, path, nil, 0)
			if err != nil {
				return err
			}
			ast.Inspect(file, func(n ast.Node) bool {
				if s, ok := n.(*ast.BasicLit); ok && s.Kind == token.STRING && counted.MatchString(bound.ReplaceAllString(s.Value, "")) {
					t.Errorf("%v: %s: use words.Count", set.Position(s.Pos()), s.Value)
				}
				return true
			})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}
