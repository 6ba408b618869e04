package arch

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The documentation of a pure package shows what the package is for, by an example that runs.
func TestPurePackagesHaveExamples(t *testing.T) {
	for _, p := range pure {
		file := filepath.Join("..", "..", strings.TrimPrefix(p, "weft/"), "example_test.go")
		data, err := os.ReadFile(file)
		if err != nil || !strings.Contains(string(data), "// Output:") {
			t.Errorf("%s has no example with an output, want one in %s: %v", p, filepath.Base(file), err)
		}
	}
}
