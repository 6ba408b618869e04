package cli

import (
	"os"

	"weft/prog/api"
)

// Colours of a terminal (ECMA-48, SGR).
var colours = map[string]string{
	api.CheckPass: "\x1b[32m", api.CheckWarn: "\x1b[33m", api.CheckFail: "\x1b[31m",
}

// coloured colours a word on a terminal, unless NO_COLOR is set (no-color.org).
func (a *app) coloured(word string) string {
	colour := colours[word]
	if colour == "" || !isTerminal(a.out) || os.Getenv("NO_COLOR") != "" || os.Getenv("TERM") == "dumb" {
		return word
	}
	return colour + word + "\x1b[0m"
}
