package labtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"weft/prog/api"
	"weft/prog/lab"
	"weft/prog/lab/probe"
)

// Run runs a command on a host or in a container, which must succeed, and returns what it prints.
func Run(t testing.TB, l *lab.Lab, target string, args ...string) string {
	t.Helper()
	out, err := l.Exec(t.Context(), target, nil, args...)
	if err != nil {
		t.Fatalf("%s: %s: %v, want success", target, strings.Join(args, " "), err)
	}
	return out
}

// Fails runs a command with a text as its standard input. The command must fail; Fails returns what
// it says.
func Fails(t testing.TB, l *lab.Lab, target, stdin string, args ...string) string {
	t.Helper()
	_, err := l.Exec(t.Context(), target, strings.NewReader(stdin), args...)
	failed, ok := errors.AsType[*lab.CommandError](err)
	if !ok {
		t.Fatalf("%s: %s: got %v, want a refusal", target, strings.Join(args, " "), err)
	}
	return failed.Error()
}

// Report returns the report of the agent on a host.
func Report(t testing.TB, l *lab.Lab, host string) api.Report {
	t.Helper()
	r, err := l.Report(t.Context(), host)
	if err != nil {
		t.Fatalf("%s: %v, want a report", host, err)
	}
	return r
}

// Addrs returns the overlay addresses of a container.
func Addrs(t testing.TB, l *lab.Lab, target string) []string {
	t.Helper()
	addrs, err := l.Addrs(t.Context(), target)
	if err != nil {
		t.Fatal(err)
	}
	return addrs
}

// Listen answers probes on a target until the lab is down.
func Listen(t testing.TB, l *lab.Lab, target string) {
	t.Helper()
	if _, err := l.Background(context.WithoutCancel(t.Context()), target, probe.ListenReady, "weft", "probe", "listen"); err != nil {
		t.Fatal(err)
	}
}

// toolVar names the tool that a test program is inside a lab. (Agents warn of variables that begin
// with WEFT_ and are no setting.)
const toolVar = "LAB_TOOL"

// Main runs the tests of a package whose test program is its own tool inside a lab: run with the
// command line that Tool returns, it calls that tool instead.
func Main(m *testing.M, tools map[string]func(args []string) error) {
	tool, ok := tools[os.Getenv(toolVar)]
	if !ok {
		os.Exit(m.Run())
	}
	if err := tool(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// Tool returns the command line of one of the tools that the package gave to Main.
func Tool(t testing.TB, name string, args ...string) []string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return append([]string{"env", toolVar + "=" + name, exe}, args...)
}
