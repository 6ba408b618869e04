package cli

import (
	"strings"
	"testing"
)

// The hints for Weave's commands and flags are only for those that Weft does not have.
func TestWhatWeaveHadIsNotWhatWeftHas(t *testing.T) {
	root := (&app{}).root()
	for name := range weaveCommands {
		if cmd, _, _ := root.Find([]string{name}); cmd != root {
			t.Errorf("weft has a command %s", name)
		}
	}
	for words, flags := range weaveFlags {
		cmd, rest, err := root.Find(strings.Fields(words))
		if err != nil || cmd == root || len(rest) > 0 {
			t.Errorf("weft has no command %s", words)
			continue
		}
		for name := range flags {
			if cmd.Flag(name) != nil {
				t.Errorf("weft %s has a flag --%s", words, name)
			}
		}
	}
	for name := range weaveArguments {
		if cmd, _, _ := root.Find([]string{name}); cmd == root {
			t.Errorf("weft has no command %s", name)
		}
	}
}
