package arch

import (
	"go/ast"
	"go/token"
	"regexp"
	"testing"
)

var (
	// counted matches a number with a noun that always has an s.
	counted = regexp.MustCompile(`%d (containers|addresses|endpoints|hosts|peers|packets|requests|times|IPs|arguments|messages|names|bytes)\b`)
	// bound matches numbers that are never 1: limits, and the ends of a range.
	bound = regexp.MustCompile(`(at most|at least|more than|between|to|of|and) %d|%d [a-z]+: between|%d [a-z]+, (at most|1 to) %d`)
	// unseen matches messages that only developers read: why bytes from another agent are invalid, and
	// the description of a configuration in logs, which hides its keys.
	unseen = regexp.MustCompile(`^"(invalid claim: it has|invalid removal: it has|invalid id of the peer to forget: it has|data path of) `)
)

// A message must not say "1 containers": words.Count formats numbers with their noun. Packages that
// cannot import it avoid such phrases.
func TestMessagesUseCountForPlurals(t *testing.T) {
	for _, dir := range []string{"mesh", "ipam", "router", "prog/agent", "prog/cli", "prog/cni", "prog/kube", "prog/lab"} {
		measurements := []string{"bench", "uml"} // only developers read the output of these packages
		inspect(t, dir, measurements, func(at func(ast.Node) token.Position, n ast.Node) {
			if s, ok := n.(*ast.BasicLit); ok && s.Kind == token.STRING && counted.MatchString(bound.ReplaceAllString(s.Value, "")) && !unseen.MatchString(s.Value) {
				t.Errorf("%v: %s can print \"1 hosts\", want the right plural: use words.Count", at(s), s.Value)
			}
		})
	}
}
