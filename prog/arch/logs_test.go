package arch

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Users search a log for the name of a host. So peers are logged as id(nickname): the result of a
// function Name, or a text that contains this result.
func TestLogsNamePeersWithTheirNickname(t *testing.T) {
	about := []string{"peer", "writer", "owner", "heir"}
	levels := []string{"Debug", "Info", "Warn", "Error"}
	looked := 0
	for _, dir := range []string{"mesh", "ipam", "router", "prog"} {
		inspect(t, dir, nil, func(at func(ast.Node) token.Position, n ast.Node) {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return
			}
			f, ok := call.Fun.(*ast.SelectorExpr)
			if !ok || !slices.Contains(levels, f.Sel.Name) || len(call.Args) < 3 {
				return
			}
			for i := 1; i+1 < len(call.Args); i += 2 {
				key, ok := call.Args[i].(*ast.BasicLit)
				if !ok || !slices.Contains(about, strings.Trim(key.Value, `"`)) {
					continue
				}
				if looked++; !named(call.Args[i+1]) {
					t.Errorf("%v: the value of %s has no nickname, want id(nickname): use Mesh.Name", at(key), key.Value)
				}
			}
		})
	}
	if looked < 8 {
		t.Errorf("only %d logs with peers were found, want at least 8: does this test look in the right place?", looked)
	}
}

// named reports whether an expression calls Name, or is a variable called name.
func named(x ast.Expr) bool {
	switch x := x.(type) {
	case *ast.CallExpr:
		f, ok := x.Fun.(*ast.SelectorExpr)
		return ok && f.Sel.Name == "Name"
	case *ast.Ident:
		return x.Name == "name"
	}
	return false
}

// inspect walks the syntax trees below a folder, without tests and without folders named in without.
func inspect(t *testing.T, dir string, without []string, look func(at func(ast.Node) token.Position, n ast.Node)) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join("..", "..", dir), func(path string, d fs.DirEntry, err error) error {
		if d != nil && d.IsDir() && slices.Contains(without, d.Name()) {
			return fs.SkipDir
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
			if n != nil {
				look(func(n ast.Node) token.Position { return set.Position(n.Pos()) }, n)
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
