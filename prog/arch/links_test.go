package arch

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	// linked matches the target of a Markdown link, without its anchor.
	linked = regexp.MustCompile(`\]\(([^)#\s]+)`)
	// sitePath matches a path below site in a comment, a message, a script or a page.
	sitePath = regexp.MustCompile(`\bsite/[\w./-]*\w`)
	// ran matches the start of a test's name in a command of a page, and declared a test.
	ran      = regexp.MustCompile(`-run\s+'?\^?((?:Test|Benchmark|Fuzz)\w+)`)
	declared = regexp.MustCompile(`(?m)^func (?:Test|Benchmark|Fuzz)\w+`)
)

const root = "../.."

// Relative links in pages, and all paths below site, lead to existing files.
func TestLinksAndPathsExist(t *testing.T) {
	links, paths := 0, 0
	eachFile(t, func(file string, text []byte) {
		if filepath.Ext(file) == ".md" {
			for _, m := range linked.FindAllSubmatch(text, -1) {
				if to := string(m[1]); !strings.Contains(to, ":") {
					links++
					exists(t, file, filepath.Join(filepath.Dir(file), to))
				}
			}
		}
		for _, path := range sitePath.FindAllString(string(text), -1) {
			paths++
			exists(t, file, filepath.Join(root, path))
		}
	})
	if links < 80 || paths < 60 {
		t.Errorf("only %d links and %d paths were found, want at least 80 and 60: does this test look in the right place?", links, paths)
	}
}

// Commands in pages that run tests run at least one.
func TestTestsThatPagesRunExist(t *testing.T) {
	run, tests := map[string]string{}, "" // by name of a test: the page
	eachFile(t, func(file string, text []byte) {
		switch {
		case filepath.Ext(file) == ".md":
			for _, m := range ran.FindAllSubmatch(text, -1) {
				run[string(m[1])] = file
			}
		case strings.HasSuffix(file, "_test.go"):
			for _, m := range declared.FindAll(text, -1) {
				tests += string(m) + "\n"
			}
		}
	})
	if len(run) < 10 {
		t.Errorf("pages run only %d tests, want at least 10: does this test look in the right place?", len(run))
	}
	for name, page := range run {
		if !strings.Contains(tests, "func "+name) {
			t.Errorf("%s runs %s, which is no test; want an existing one", page, name)
		}
	}
}

// eachFile calls visit for all files of the project.
func eachFile(t *testing.T, visit func(file string, text []byte)) {
	t.Helper()
	err := filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == ".git" || file == filepath.Join(root, "bin")):
			return fs.SkipDir
		case !d.Type().IsRegular():
			return nil
		}
		text, err := os.ReadFile(file)
		if err == nil {
			visit(file, text)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func exists(t *testing.T, file, path string) {
	t.Helper()
	if _, err := os.Stat(path); err != nil {
		t.Errorf("%s refers to %s, which does not exist; want an existing file", file, path)
	}
}
