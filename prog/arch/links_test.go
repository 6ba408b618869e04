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
)

// Relative links in pages, and all paths below site, lead to existing files.
func TestLinksAndPathsExist(t *testing.T) {
	const root = "../.."
	links, paths := 0, 0
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
		if err != nil {
			return err
		}
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
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if links < 80 || paths < 60 {
		t.Errorf("only %d links and %d paths were found, want at least 80 and 60: does this test look in the right place?", links, paths)
	}
}

func exists(t *testing.T, file, path string) {
	t.Helper()
	if _, err := os.Stat(path); err != nil {
		t.Errorf("%s refers to %s, which does not exist; want an existing file", file, path)
	}
}
