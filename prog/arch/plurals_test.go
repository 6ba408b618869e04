package arch

import (
	"go/ast"
	"go/token"
	"path/filepath"
	"regexp"
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
		measurements := []string{"bench", "uml"} // for us
		inspect(t, filepath.Join("prog", dir), measurements, func(at func(ast.Node) token.Position, n ast.Node) {
			if s, ok := n.(*ast.BasicLit); ok && s.Kind == token.STRING && counted.MatchString(bound.ReplaceAllString(s.Value, "")) {
				t.Errorf("%v: %s: use words.Count", at(s), s.Value)
			}
		})
	}
}
