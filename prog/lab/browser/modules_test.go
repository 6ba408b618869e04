package browser

import (
	"os"
	"testing"
)

// The page's pure modules are checked where they run.
func TestModules(t *testing.T) {
	js, err := os.ReadFile("testdata/modules.js")
	if err != nil {
		t.Fatal(err)
	}
	p := open(t, serve(t, three()))
	for _, fault := range eval[[]string](p, string(js)) {
		t.Error(fault)
	}
}
