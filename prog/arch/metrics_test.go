package arch

import (
	"fmt"
	"go/ast"
	"go/token"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// documented finds a row of the table in site/docs/metrics.md: name, type, labels, meaning.
var documented = regexp.MustCompile("(?m)^\\| `(weft_[a-z_]+)` \\| (gauge|counter|histogram) \\| (.*?) \\| (.*?) \\|$")

// The documentation has every metric with its labels and its help text, and no other.
func TestMetricsAreDocumented(t *testing.T) {
	text, err := os.ReadFile("../../site/docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]string{}
	for _, m := range documented.FindAllStringSubmatch(string(text), -1) {
		rows[m[1]] = m[3] + " | " + m[4]
		if counts := strings.HasSuffix(m[1], "_total"); counts != (m[2] == "counter") {
			t.Errorf("%s is a %s: want a name with _total for counters, and only for these", m[1], m[2])
		}
	}
	inspect(t, "prog", nil, func(at func(ast.Node) token.Position, n ast.Node) {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return
		}
		f, ok := call.Fun.(*ast.SelectorExpr)
		if !ok || !slices.Contains([]string{"Desc", "NewDurations"}, f.Sel.Name) {
			return
		}
		if pkg, isName := f.X.(*ast.Ident); !isName || pkg.Name != "metric" {
			return
		}
		var words []string
		for _, arg := range call.Args {
			lit, ok := arg.(*ast.BasicLit)
			if !ok {
				t.Errorf("%v: a metric with a computed name, help or label: want literals, which the documentation can be compared with", at(n))
				return
			}
			word, err := strconv.Unquote(lit.Value)
			if err != nil {
				t.Fatal(err)
			}
			words = append(words, word)
		}
		name, labels := "weft_"+words[0], "-"
		if len(words) > 2 {
			labels = "`" + strings.Join(words[2:], "`, `") + "`"
		}
		if row, want := rows[name], fmt.Sprintf("%s | %s", labels, words[1]); row != want {
			t.Errorf("%v: site/docs/metrics.md has for %s: %q, want %q", at(n), name, row, want)
		}
		delete(rows, name)
	})
	for name := range rows {
		t.Errorf("site/docs/metrics.md has %s, which is no metric", name)
	}
}
