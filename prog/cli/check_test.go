package cli

import (
	"encoding/json"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"

	"weft/prog/api"
)

// checking runs an agent with one answer to weft check.
func checking(t *testing.T, r api.CheckReply) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "weft.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _ = json.NewEncoder(w).Encode(r) })}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { server.Close() })
	return socket
}

var failing = api.CheckReply{
	Taken: time.Unix(0, 0), Result: api.CheckFail,
	Hosts: []api.HostCheck{
		{Peer: "01", Nickname: "h1", Version: "v1", Checks: []api.Check{
			{Area: api.AreaReady, Result: api.CheckPass, What: "containers can be attached"},
			{Area: api.AreaDNS, Result: api.CheckWarn, What: "a server did not answer", Effect: "some names are not resolved", Fix: "see why"},
		}},
		{Peer: "02", Nickname: "h2", Error: "no answer in time"},
	},
	Between: []api.Check{{Area: api.AreaHosts, Result: api.CheckFail, What: "1 host does not answer", Fix: "start it"}},
}

// The exit code is 1 if a check fails, with JSON too. Each fault has its effect and its fix below it.
func TestChecksArePrintedWithTheirFixes(t *testing.T) {
	socket := checking(t, failing)
	code, out, errOut := weft(t, "", "check", "--socket", socket)
	want := `01(h1)
  PASS  ready       containers can be attached
  WARN  dns         a server did not answer
                    effect: some names are not resolved
                    fix: see why
all hosts
  FAIL  hosts       1 host does not answer
                    fix: start it
FAIL: 1 passed, 1 warning, 1 failed
`
	if out != want || code != ExitFailed || errOut != "" {
		t.Errorf("exit code %d, standard error %q, output:\n%s\nwant exit code 1 and:\n%s", code, errOut, out, want)
	}
	code, out, _ = weft(t, "", "check", "--json", "--socket", socket)
	var r api.CheckReply
	if err := json.Unmarshal([]byte(out), &r); err != nil || code != ExitFailed || len(r.Hosts) != 2 {
		t.Errorf("with --json: exit code %d, error %v, %+v; want exit code 1 and both hosts", code, err, r)
	}
}

// Colours are only for terminals, and not for users that do not want them.
func TestColoursAreForTerminals(t *testing.T) {
	socket := checking(t, failing)
	for _, c := range []struct {
		terminal       bool
		noColour, term string
		coloured       bool
	}{
		{true, "", "xterm", true}, {true, "1", "xterm", false}, {true, "", "dumb", false}, {false, "", "xterm", false},
	} {
		t.Setenv("NO_COLOR", c.noColour)
		t.Setenv("TERM", c.term)
		reader, writer, err := pty.Open()
		if !c.terminal {
			reader, writer, err = os.Pipe()
		}
		if err != nil {
			t.Fatal(err)
		}
		if code := Main([]string{"check", "--socket", socket}, strings.NewReader(""), writer, writer); code != ExitFailed {
			t.Errorf("%+v: exit code %d, want %d", c, code, ExitFailed)
		}
		buf := make([]byte, 4096)
		n, err := reader.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Contains(string(buf[:n]), "\x1b["); got != c.coloured {
			t.Errorf("%+v: the output %q has colours: %v", c, buf[:n], got)
		}
		writer.Close()
		reader.Close()
	}
}
