package cli

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/term"

	"weft/mesh/secret"
	"weft/prog/words"
)

// secretGiven is the token that the operator gave: by --token, or WEFT_PASSWORD.
// There is no flag with the secret itself: arguments show in the process list.
func (a *app) secretGiven(source string) (*secret.Token, error) {
	var text string
	password := os.Getenv("WEFT_PASSWORD")
	os.Unsetenv("WEFT_PASSWORD") // not for the processes that this one starts
	switch {
	case source == "" && password == "":
		return nil, nil
	case source == "":
		t, err := secret.FromPassword(password)
		if err != nil {
			return nil, words.Misused(fmt.Errorf("WEFT_PASSWORD: %w", err))
		}
		return &t, nil
	case source == "-":
		data, err := a.readToken()
		if err != nil {
			return nil, fmt.Errorf("--token -: %w", err)
		}
		text = string(data)
	default:
		data, err := os.ReadFile(source)
		if errors.Is(err, os.ErrNotExist) {
			return nil, words.Misused(fmt.Errorf("--token %s: no such file; a token itself is not given as an argument, where others could read it: pipe it into --token -", hideToken(source)))
		}
		if err != nil {
			return nil, fmt.Errorf("--token: %w", err)
		}
		text = string(data)
	}
	t, err := secret.Parse(text)
	if err != nil {
		return nil, words.Misused(fmt.Errorf("--token: %w", err))
	}
	return &t, nil
}

// readToken reads a token from standard input. A person is asked for it, and what he types does
// not show.
func (a *app) readToken() ([]byte, error) {
	f, ok := a.in.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return io.ReadAll(io.LimitReader(a.in, 4096))
	}
	fmt.Fprint(a.err, "The network's token (it does not show): ")
	defer fmt.Fprintln(a.err)
	return term.ReadPassword(int(f.Fd()))
}

// hideToken keeps a token that was given as a file's name out of the message.
func hideToken(s string) string {
	if _, err := secret.Parse(s); err == nil || len(s) > 64 {
		return "…"
	}
	return s
}
