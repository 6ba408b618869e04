package arch

import (
	"go/ast"
	"go/token"
	"regexp"
	"testing"
)

var (
	// counted is a number with a noun that has its s whatever the number is.
	counted = regexp.MustCompile(`%d (containers|addresses|endpoints|hosts|peers|packets|requests|times|IPs|arguments|messages|names|bytes)\b`)
	// bound is what may, since it is never one: a bound, or a number beyond one.
	bound = regexp.MustCompile(`(at most|at least|more than|between|to|of|and) %d|%d [a-z]+: between|%d [a-z]+, (at most|1 to) %d`)
	// unseen matches messages that only developers read: why bytes between agents are no message, and what stands
	// for a configuration with keys.
	unseen = regexp.MustCompile(`^"(invalid claim: it has|invalid removal: it has|a peer's id has|data path of) `)
)

// One container is not "1 containers": words.Count writes numbers with their noun. Packages that
// cannot import it word what they say without.
func TestNumbersAgreeWithTheirNouns(t *testing.T) {
	for _, dir := range []string{"mesh", "ipam", "router", "prog/agent", "prog/cli", "prog/cni", "prog/kube", "prog/lab"} {
		measurements := []string{"bench", "uml"} // for us
		inspect(t, dir, measurements, func(at func(ast.Node) token.Position, n ast.Node) {
			if s, ok := n.(*ast.BasicLit); ok && s.Kind == token.STRING && counted.MatchString(bound.ReplaceAllString(s.Value, "")) && !unseen.MatchString(s.Value) {
				t.Errorf("%v: %s: use words.Count", at(s), s.Value)
			}
		})
	}
}
