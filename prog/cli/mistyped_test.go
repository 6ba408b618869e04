package cli

import (
	"strings"
	"testing"
)

// The hints for Weave's commands and flags are only for those that Weft does not have.
func TestWeaveHintsOnlyForMissingCommandsAndFlags(t *testing.T) {
	root := (&app{}).root()
	for name := range weaveCommands {
		if cmd, _, _ := root.Find([]string{name}); cmd != root {
			t.Errorf("weaveCommands has %s, but weft has this command", name)
		}
	}
	for words, flags := range weaveFlags {
		cmd, rest, err := root.Find(strings.Fields(words))
		if err != nil || cmd == root || len(rest) > 0 {
			t.Errorf("weaveFlags has the command %s, but weft does not", words)
			continue
		}
		for name := range flags {
			if cmd.Flag(name) != nil {
				t.Errorf("weaveFlags has a hint for weft %s --%s, but weft has this flag", words, name)
			}
		}
	}
	for name := range weaveArguments {
		if cmd, _, _ := root.Find([]string{name}); cmd == root {
			t.Errorf("weaveArguments has the command %s, but weft does not", name)
		}
	}
}
