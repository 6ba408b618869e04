package cli

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"weft/prog/api"
)

// watch runs a status command with --watch against an agent that answers with the sample, until the test
// cancels it. It returns the lines of its output.
func watch(t *testing.T, answer http.HandlerFunc, args ...string) (lines *bufio.Reader, errs *bytes.Buffer, stop func() error) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: answer}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { server.Close() })
	out, w := io.Pipe()
	a := &app{out: w, err: &bytes.Buffer{}, watchPeriod: time.Millisecond}
	root := a.root()
	root.SetArgs(append(args, "--watch", "--socket", socket))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- root.ExecuteContext(ctx); w.Close() }()
	return bufio.NewReader(out), a.err.(*bytes.Buffer), func() error {
		cancel()
		go func() { _, _ = io.Copy(io.Discard, out) }()
		return <-ended
	}
}

// answers counts in the version how often the agent was asked, so that no two pictures are equal. The
// second request fails.
func answers(t *testing.T) http.HandlerFunc {
	r, n := sample(t), 0
	return func(w http.ResponseWriter, _ *http.Request) {
		if n++; n == 2 {
			w.WriteHeader(http.StatusInternalServerError)
			_ = json.NewEncoder(w).Encode(api.Error{Code: "x", Message: "the disk is full"})
			return
		}
		r.Router.MTU = 1400 + n
		_ = json.NewEncoder(w).Encode(r)
	}
}

// Each picture begins with its time. A failure in between is shown, and watching goes on. A host that is
// not ready does not end it either.
func TestWatchShowsPicturesUntilInterrupted(t *testing.T) {
	lines, _, stop := watch(t, answers(t), "status")
	clock := regexp.MustCompile(`^--- \d\d:\d\d:\d\d\n$`)
	var said strings.Builder
	for pictures := 0; pictures < 4; {
		line, err := lines.ReadString('\n')
		if err != nil {
			t.Fatalf("the output ended after %q: %v", said.String(), err)
		}
		if said.WriteString(line); clock.MatchString(line) {
			pictures++
		}
	}
	for _, want := range []string{"MTU: 1401\n", "weft: the disk is full\n", "MTU: 1403\n"} {
		if strings.Count(said.String(), want) != 1 {
			t.Errorf("the pictures lack %q, want it once:\n%s", want, said.String())
		}
	}
	if strings.Contains(said.String(), "\x1b") {
		t.Errorf("the output has a terminal's escape sequences, want none, since it is no terminal:\n%q", said.String())
	}
	if err := stop(); err != nil {
		t.Errorf("an interrupted watch ends with the error %v, want none", err)
	}
}

func TestWatchPrintsOneJSONDocumentPerLine(t *testing.T) {
	lines, errs, stop := watch(t, answers(t), "status", "connections", "--json")
	for range 3 {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			t.Fatal(err)
		}
		var list []api.Connection
		if err := json.Unmarshal(line, &list); err != nil || len(list) != 2 || list[0].State != api.ConnDirect {
			t.Errorf("the line %q is no list of two connections: %v", line, err)
		}
	}
	if err := stop(); err != nil {
		t.Errorf("an interrupted watch ends with the error %v, want none", err)
	}
	if got := errs.String(); got != "weft: the disk is full\n" {
		t.Errorf("standard error is %q, want the one failure", got)
	}
}

// On a terminal each picture replaces the one before. JSON does not.
func TestWatchRepaintsATerminal(t *testing.T) {
	for json, want := range map[bool]string{
		false: `^(\x1b\[H\x1b\[J--- \d\d:\d\d:\d\d\r\npicture\r\n){2}$`,
		true:  `^(picture\r\n){2}$`,
	} {
		master, terminal := pseudoTerminal(t)
		ctx, cancel := context.WithCancel(t.Context())
		a, runs := &app{out: terminal, json: json}, 0
		err := a.repeat(ctx, func() error {
			if runs++; runs == 3 { // an interrupted run shows nothing
				cancel()
			}
			_, err := io.WriteString(a.out, "picture\n")
			return err
		})
		if err != nil {
			t.Errorf("with JSON %v: an interrupted watch ends with the error %v, want none", json, err)
		}
		terminal.Close()
		shown, _ := io.ReadAll(master) // it ends with an error, since the terminal is closed
		if !regexp.MustCompile(want).Match(shown) {
			t.Errorf("with JSON %v the terminal shows %q, want two pictures as %s", json, shown, want)
		}
	}
}

func TestWatchFailsIfItsFirstRequestFails(t *testing.T) {
	a := &app{out: &bytes.Buffer{}, watchPeriod: time.Hour}
	first := errors.New("no agent")
	if err := a.repeat(t.Context(), func() error { return first }); !errors.Is(err, first) {
		t.Errorf("got error %v, want the first run's", err)
	}
}
