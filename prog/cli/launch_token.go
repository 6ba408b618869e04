package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/term"

	"weft/mesh/member"
	"weft/mesh/secret"
	"weft/prog/agent/statedir"
	"weft/prog/api"
	"weft/prog/words"
)

// secretGiven returns the token that the operator gave, with --token or WEFT_PASSWORD. No flag takes
// the secret itself, since the process list shows arguments. The cluster's name only matters to a
// password.
func (a *app) secretGiven(source, cluster string) (given statedir.Given, err error) {
	var text string
	password := os.Getenv("WEFT_PASSWORD")
	os.Unsetenv("WEFT_PASSWORD") // child processes must not inherit the password
	switch {
	case source == "" && password == "":
		return given, nil
	case source == "":
		t, err := secret.FromPassword(password, cluster)
		if err != nil {
			return given, words.Misused(fmt.Errorf("WEFT_PASSWORD: %w", err))
		}
		return statedir.Given{Secret: &t}, nil
	case source == "-":
		data, err := a.readToken()
		if err != nil {
			return given, fmt.Errorf("--token -: %w", err)
		}
		text = string(data)
	default:
		data, err := os.ReadFile(source)
		if errors.Is(err, os.ErrNotExist) {
			return given, words.Misused(fmt.Errorf("--token %s: no such file; do not give the token itself as an argument, since other users can read arguments: pipe it into --token -", hideToken(source)))
		}
		if err != nil {
			return given, fmt.Errorf("--token: %w", err)
		}
		text = string(data)
	}
	if strings.HasPrefix(strings.ToLower(strings.TrimSpace(text)), secret.MemberPrefix) {
		t, err := member.ParseToken(text)
		if err != nil {
			return given, words.Misused(fmt.Errorf("--token: %w", err))
		}
		return statedir.Given{Invitation: &t}, nil
	}
	t, err := secret.Parse(text)
	if err != nil {
		return given, words.Misused(fmt.Errorf("--token: %w", err))
	}
	return statedir.Given{Secret: &t}, nil
}

// checkCluster refuses the name of a cluster that no password goes with. In the settings file, where
// launch saves it, the name may stay: the next launch with a password needs it.
func (f *launchFlags) checkCluster() error {
	if f.cluster == "" || f.from["cluster"] == api.FromFile || f.tokenSrc == "" && os.Getenv("WEFT_PASSWORD") != "" {
		return nil
	}
	err := words.Misused(fmt.Errorf("--cluster %s has no effect without a password: set WEFT_PASSWORD and give no --token, or leave out the name: a token needs none", f.cluster))
	return blame(err, f.from, settings{})
}

// readToken reads a token from standard input. On a terminal it prompts for it, without echo.
func (a *app) readToken() ([]byte, error) {
	f, ok := a.in.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return io.ReadAll(io.LimitReader(a.in, 4096))
	}
	fmt.Fprint(a.err, "The network's token (input is hidden): ")
	defer fmt.Fprintln(a.err)
	return term.ReadPassword(int(f.Fd()))
}

// hideToken masks a token that was mistakenly given as a file name, for messages.
func hideToken(s string) string {
	if _, err := secret.Parse(s); err == nil || secret.IsToken(s) || strings.HasPrefix(strings.ToLower(s), secret.MemberPrefix) || len(s) > 64 {
		return "…"
	}
	return s
}
