package cli

import (
	"strings"
	"testing"
)

// The hints are only for commands and flags of Weave that Weft does not have.
func TestWeaveHintsAreOnlyForCommandsAndFlagsThatWeftLacks(t *testing.T) {
	root := (&app{}).root()
	for name := range weaveCommands {
		if cmd, _, _ := root.Find([]string{name}); cmd != root {
			t.Errorf("weaveCommands has a hint for %s, which is a command of weft; want hints only for missing commands", name)
		}
	}
	for words, flags := range weaveFlags {
		cmd, rest, err := root.Find(strings.Fields(words))
		if err != nil || cmd == root || len(rest) > 0 {
			t.Errorf("weaveFlags has flags of the command %s, which weft lacks; want only commands of weft", words)
			continue
		}
		for name := range flags {
			if cmd.Flag(name) != nil {
				t.Errorf("weaveFlags has a hint for weft %s --%s, which is a flag of weft; want hints only for missing flags", words, name)
			}
		}
	}
	for name := range weaveArguments {
		if cmd, _, _ := root.Find([]string{name}); cmd == root {
			t.Errorf("weaveArguments has the command %s, which weft lacks; want only commands of weft", name)
		}
	}
}
