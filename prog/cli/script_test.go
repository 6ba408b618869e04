package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"weft": func() { os.Exit(Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }})
}

// The scripts in testdata run the real program. Besides testscript's own commands they have:
//
//	exits CODE COMMAND...      run COMMAND and require this exit code. If COMMAND is weft and fails, its
//	                           message must start with "weft: ", and not show Go's internals (such as strconv). With
//	                           exit code 2, wrong usage, standard output must be empty.
//	agent SOCKET FOLDER        serve the control API on SOCKET. A request to PATH is answered with the
//	                           content of FOLDER/PATH.json, with the error in FOLDER/PATH.error.json,
//	                           or with {}.
//	asked PATH JSON            require that the last request to PATH had this body, and forget it.
//	                           With !, require that there was none.
func TestScripts(t *testing.T) {
	plugin, err := filepath.Abs("../../site/deploy/kubectl-weft")
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata", UpdateScripts: *update, RequireUniqueNames: true,
		Setup: func(e *testscript.Env) error {
			e.Setenv("PLUGIN", plugin)
			return os.CopyFS(filepath.Join(e.WorkDir, "sample"), os.DirFS(filepath.Join("testdata", "sample")))
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"exits": exits, "agent": cannedAgent, "asked": asked},
	})
}

func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	code := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		exit, ok := errors.AsType[*exec.ExitError](err)
		if !ok {
			ts.Fatalf("%v", err)
		}
		code = exit.ExitCode()
	}
	stdout, stderr := ts.ReadFile("stdout"), ts.ReadFile("stderr")
	switch {
	case code != want:
		ts.Fatalf("exit code %d, want %d", code, want)
	case args[1] != "weft" || code == ExitOK:
	case internals.MatchString(stderr):
		ts.Fatalf("the message shows Go's internals, want none: %s", internals.FindString(stderr))
	case stderr != "" && !strings.HasPrefix(stderr, "weft: "):
		ts.Fatalf("the error message does not start with \"weft: \", want that prefix")
	case code == ExitUsage && stdout != "":
		ts.Fatalf("with exit code 2, standard output is not empty, want it empty")
	}
}

// canned is an agent that answers requests with files, and records the requests by path.
type canned struct {
	folder string
	mu     sync.Mutex
	asked  map[string][]byte
}

func cannedAgent(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: agent SOCKET FOLDER")
	}
	l, err := net.Listen("unix", ts.MkAbs(args[0]))
	ts.Check(err)
	c := &canned{folder: ts.MkAbs(args[1]), asked: map[string][]byte{}}
	agents.Store(ts, c)
	server := &http.Server{Handler: c}
	go func() { _ = server.Serve(l) }()
	ts.Defer(func() { server.Close(); agents.Delete(ts) })
}

// agents has the agent of each running script.
var agents sync.Map

func (c *canned) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	path := strings.TrimPrefix(r.URL.Path, "/v1/")
	c.mu.Lock()
	c.asked[path] = body
	c.mu.Unlock()
	file := filepath.Join(c.folder, path)
	if data, err := os.ReadFile(file + ".error.json"); err == nil {
		w.WriteHeader(http.StatusBadRequest)
		_, _ = w.Write(data)
		return
	}
	data, err := os.ReadFile(file + ".json")
	if err != nil {
		data = []byte("{}")
	}
	_, _ = w.Write(data)
}

func asked(ts *testscript.TestScript, neg bool, args []string) {
	if neg == (len(args) == 2) {
		ts.Fatalf("usage: asked PATH JSON, or ! asked PATH")
	}
	found, ok := agents.Load(ts)
	if !ok {
		ts.Fatalf("no agent runs: the script needs the command agent first")
	}
	c := found.(*canned)
	c.mu.Lock()
	defer c.mu.Unlock()
	body, ok := c.asked[args[0]]
	if neg {
		if ok {
			ts.Fatalf("the agent got the request %s, want none", body)
		}
		return
	}
	if !ok {
		ts.Fatalf("the agent got no request at %s, want one", args[0])
	}
	var got, want any
	ts.Check(json.Unmarshal([]byte(args[1]), &want))
	ts.Check(json.Unmarshal(bytes.TrimSpace(body), &got))
	if !reflect.DeepEqual(got, want) {
		ts.Fatalf("the agent got the request %s, want %s", body, args[1])
	}
	delete(c.asked, args[0])
}
