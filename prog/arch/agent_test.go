package arch

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// These limits keep the agent's components small, so that each owns one piece of state and is easy to
// understand.
const (
	mostMethods = 25   // methods of a type
	mostLines   = 400  // lines of a file
	mostInAll   = 1000 // lines of a package
)

// agentDir is the folder of the components.
var agentDir = filepath.Join("..", "agent")

// goFiles parses the Go files of a folder, except tests, and returns them by path.
func goFiles(t *testing.T, dir string) map[string]*ast.File {
	t.Helper()
	files := map[string]*ast.File{}
	paths, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		files[path] = file
	}
	return files
}

// folders returns a folder and all folders below it.
func folders(t *testing.T, root string) (out []string) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			out = append(out, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestAgentComponentsAreSmall(t *testing.T) {
	for _, dir := range folders(t, agentDir) {
		inAll, methods := 0, map[string]int{}
		for path, file := range goFiles(t, dir) {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			n := bytes.Count(text, []byte("\n"))
			if inAll += n; n > mostLines {
				t.Errorf("%s has %d lines, want at most %d: divide the file", path, n, mostLines)
			}
			for _, d := range file.Decls {
				if f, ok := d.(*ast.FuncDecl); ok && f.Recv != nil {
					methods[receiver(f)]++
				}
			}
		}
		if inAll > mostInAll {
			t.Errorf("the package %s has %d lines, want at most %d: divide the package", dir, inAll, mostInAll)
		}
		for name, n := range methods {
			if n > mostMethods {
				t.Errorf("%s: the type %s has %d methods, want at most %d: divide the type", dir, name, n, mostMethods)
			}
		}
	}
}

// receiver returns the name of a method's type.
func receiver(f *ast.FuncDecl) string {
	x := f.Recv.List[0].Type
	if star, ok := x.(*ast.StarExpr); ok {
		x = star.X
	}
	if generic, ok := x.(*ast.IndexExpr); ok {
		x = generic.X
	}
	name, _ := x.(*ast.Ident)
	return name.Name
}

// On a Node of a cluster the agent runs other components than elsewhere, so no component has to check
// whether there is a cluster.
func TestNoComponentChecksForKubernetes(t *testing.T) {
	inspect(t, "prog/agent", nil, func(at func(ast.Node) token.Position, n ast.Node) {
		x, ok := n.(*ast.BinaryExpr)
		if !ok || x.Op != token.NEQ && x.Op != token.EQL {
			return
		}
		if right, ok := x.Y.(*ast.Ident); !ok || right.Name != "nil" {
			return
		}
		name := ""
		switch left := x.X.(type) {
		case *ast.Ident:
			name = left.Name
		case *ast.SelectorExpr:
			name = left.Sel.Name
		}
		if slices.Contains([]string{"kube", "cluster", "kubernetes"}, name) {
			t.Errorf("%v: %s is compared with nil, want no check for Kubernetes: give the component a different input outside Kubernetes", at(n), name)
		}
	})
}

// impure lists the packages that a pure function must not call, and clock the functions of package
// time that read the clock. methods lists the names of methods that change or wait for shared state.
var (
	impure  = []string{"net", "os", "syscall", "log", "slog", "rand", "context", "sync", "atomic", "exec", "http"}
	clock   = []string{"Now", "Since", "Until", "After", "Sleep", "NewTicker", "NewTimer", "AfterFunc", "Tick"}
	methods = []string{"Lock", "Unlock", "RLock", "RUnlock", "Set", "Store", "Swap", "CompareAndSwap", "Wait", "Do", "Go"}
)

// A function whose comment says "pure" has no pointer receiver, starts and waits for nothing, and only
// writes to its own variables. Neither it nor the functions of its package that it calls use impure
// packages.
func TestFunctionsDocumentedAsPureArePure(t *testing.T) {
	checked := 0
	for _, dir := range folders(t, "..") {
		funcs := functions(goFiles(t, dir))
		for name, f := range funcs {
			if f.Doc == nil || !slices.Contains(strings.FieldsFunc(f.Doc.Text(), func(r rune) bool { return r == ' ' || r == '\n' || r == '.' || r == ',' }), "pure") {
				continue
			}
			checked++
			if why := impureBecause(funcs, f, map[string]bool{}); why != "" {
				t.Errorf("%s: the comment of %s says pure, but %s; want a pure function, or another comment", dir, name, why)
			}
		}
	}
	if checked < 3 {
		t.Errorf("only %d functions have the word pure in their comments, want at least 3: does this test look in the right place?", checked)
	}
}

// impureBecause detects each kind of impure function.
func TestImpureFunctionsAreFound(t *testing.T) {
	for body, says := range map[string]string{
		`return time.Now().Unix()`:                            "time.Now",
		`count++; return 0`:                                   "count",
		`count = 1; return 0`:                                 "count",
		`in.list[0] = 1; return 0`:                            "in",
		`in.at.n = 1; return 0`:                               "in",
		`g.mu.Lock(); return 0`:                               "Lock",
		`<-ch; return 0`:                                      "waits",
		`ch <- 1; return 0`:                                   "waits",
		`close(ch); return 0`:                                 "close",
		`go other(); return 0`:                                "starts",
		`for range ch { }; return 0`:                          "",
		`return other()`:                                      "os.Getpid",
		`n := 0; n++; l := []int{1}; l[0] = n; return l[0]`:   "",
		`var out struct{ n int }; out.n = in.n; return out.n`: "",
		`for i := range in.list { i++ }; return 0`:            "",
	} {
		const head = "package p\ntype in struct { list []int; n int; at *in }\nfunc other() int { return os.Getpid() }\nfunc pure(in in, ch chan int) int {"
		file, err := parser.ParseFile(token.NewFileSet(), "p.go", head+body+"}", 0)
		if err != nil {
			t.Fatal(err)
		}
		funcs := functions(map[string]*ast.File{"p.go": file})
		if why := impureBecause(funcs, funcs["pure"], map[string]bool{}); (why == "") != (says == "") || !strings.Contains(why, says) {
			t.Errorf("%s: got the reason %q, want %q", body, why, says)
		}
	}
}

// functions returns the functions of a package by name, and its methods as TYPE.NAME.
func functions(files map[string]*ast.File) map[string]*ast.FuncDecl {
	funcs := map[string]*ast.FuncDecl{}
	for _, file := range files {
		for _, d := range file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok {
				name := f.Name.Name
				if f.Recv != nil {
					name = receiver(f) + "." + name
				}
				funcs[name] = f
			}
		}
	}
	return funcs
}

// impureBecause returns the reason why a function is impure, or "".
func impureBecause(funcs map[string]*ast.FuncDecl, f *ast.FuncDecl, seen map[string]bool) (why string) {
	if seen[f.Name.Name] || f.Body == nil {
		return ""
	}
	seen[f.Name.Name] = true
	if f.Recv != nil {
		if _, pointer := f.Recv.List[0].Type.(*ast.StarExpr); pointer {
			return f.Name.Name + " has a pointer receiver"
		}
	}
	own := declaredIn(f)
	ast.Inspect(f.Body, func(n ast.Node) bool {
		switch x := n.(type) {
		case *ast.GoStmt:
			why = "it starts a goroutine"
		case *ast.SelectStmt, *ast.SendStmt:
			why = "it waits for another goroutine"
		case *ast.UnaryExpr:
			if x.Op == token.ARROW {
				why = "it waits for another goroutine"
			}
		case *ast.IncDecStmt:
			why = writes(x.X, own)
		case *ast.AssignStmt:
			for _, left := range x.Lhs {
				if w := writes(left, own); w != "" && x.Tok != token.DEFINE {
					why = w
				}
			}
		case *ast.CallExpr:
			if w := callsImpure(funcs, f, x, seen); w != "" {
				why = w
			}
		}
		return why == ""
	})
	return why
}

// declaredIn returns the names that a function itself declares, and to which it may write: its results
// and the variables in its body.
func declaredIn(f *ast.FuncDecl) map[string]bool {
	own := map[string]bool{"_": true}
	if f.Type.Results != nil {
		for _, field := range f.Type.Results.List {
			for _, name := range field.Names {
				own[name.Name] = true
			}
		}
	}
	ast.Inspect(f.Body, func(n ast.Node) bool {
		switch x := n.(type) {
		case *ast.AssignStmt:
			for _, left := range x.Lhs {
				if name, ok := left.(*ast.Ident); ok && x.Tok == token.DEFINE {
					own[name.Name] = true
				}
			}
		case *ast.ValueSpec:
			for _, name := range x.Names {
				own[name.Name] = true
			}
		case *ast.RangeStmt:
			for _, v := range []ast.Expr{x.Key, x.Value} {
				if name, ok := v.(*ast.Ident); ok && x.Tok == token.DEFINE {
					own[name.Name] = true
				}
			}
		case *ast.FuncLit: // the parameters of the function literal
			for _, field := range x.Type.Params.List {
				for _, name := range field.Names {
					own[name.Name] = true
				}
			}
		}
		return true
	})
	return own
}

// writes describes an assignment to a variable that the function did not declare, or returns "".
func writes(to ast.Expr, own map[string]bool) string {
	for {
		switch x := to.(type) {
		case *ast.Ident:
			if own[x.Name] {
				return ""
			}
			return "it writes to " + x.Name
		case *ast.SelectorExpr:
			to = x.X
		case *ast.IndexExpr:
			to = x.X
		case *ast.StarExpr:
			to = x.X
		case *ast.ParenExpr:
			to = x.X
		default:
			return "it writes to the result of a call"
		}
	}
}

// callsImpure returns why a call is impure, or "".
func callsImpure(funcs map[string]*ast.FuncDecl, f *ast.FuncDecl, call *ast.CallExpr, seen map[string]bool) string {
	switch called := call.Fun.(type) {
	case *ast.Ident:
		if called.Name == "close" {
			return "it calls close"
		}
		if next := funcs[called.Name]; next != nil {
			return impureBecause(funcs, next, seen)
		}
	case *ast.SelectorExpr:
		pkg, _ := called.X.(*ast.Ident)
		switch {
		case pkg != nil && (slices.Contains(impure, pkg.Name) || pkg.Name == "time" && slices.Contains(clock, called.Sel.Name)):
			return "it calls " + pkg.Name + "." + called.Sel.Name
		case slices.Contains(methods, called.Sel.Name):
			return "it calls " + called.Sel.Name
		case f.Recv != nil:
			if next := funcs[receiver(f)+"."+called.Sel.Name]; next != nil {
				return impureBecause(funcs, next, seen)
			}
		}
	}
	return ""
}

// Package plan computes from values only. It imports no package of the standard library that is impure.
// Of Weft's impure packages it uses only the types, and calls no function.
func TestPackagePlanIsPure(t *testing.T) {
	for path, file := range goFiles(t, filepath.Join(agentDir, "plan")) {
		names := map[string]string{}
		for _, i := range file.Imports {
			imported, _ := strconv.Unquote(i.Path.Value)
			if slices.Contains(notInPure, imported) {
				t.Errorf("%s imports %s, want no impure packages", path, imported)
			}
			if strings.HasPrefix(imported, "weft/") && !slices.Contains(pure, imported) {
				names[imported[strings.LastIndex(imported, "/")+1:]] = imported
			}
		}
		ast.Inspect(file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			f, ok := call.Fun.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if pkg, ok := f.X.(*ast.Ident); ok && names[pkg.Name] != "" {
				t.Errorf("%s calls %s.%s, want only types of %s, which is not pure", path, pkg.Name, f.Sel.Name, names[pkg.Name])
			}
			return true
		})
	}
}
