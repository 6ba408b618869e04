package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"weft/prog/agent/config"
	"weft/prog/api"
	"weft/prog/lab"
)

var update = flag.Bool("update", false, "write golden files anew")

// sample is the report of a host with every kind of entry, all in trouble or in use. Scripts serve it too.
func sample(t *testing.T) (r api.Report) {
	t.Helper()
	f, err := os.Open("testdata/sample/report.json")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	dec := json.NewDecoder(f)
	dec.DisallowUnknownFields()
	if err := dec.Decode(&r); err != nil {
		t.Fatal(err)
	}
	return r
}

// serveReport runs an agent that answers with the sample.
func serveReport(t *testing.T) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	report := sample(t)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == api.PathUsage {
			_ = json.NewEncoder(w).Encode(map[string]api.Usage{"3cced98783461972": {Active: 3}})
			return
		}
		_ = json.NewEncoder(w).Encode(report)
	})}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { server.Close() })
	return socket
}

func weft(t *testing.T, stdin string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errOut bytes.Buffer
	code = Main(args, strings.NewReader(stdin), &out, &errOut)
	return code, out.String(), errOut.String()
}

func TestEachKindOfErrorHasItsExitCode(t *testing.T) {
	for err, want := range map[error]int{
		errors.New("x"): ExitFailed,
		&api.Error{Code: api.CodeNotReady, Message: "x"}: ExitNotReady, &api.Error{Code: api.CodeNoSpace, Message: "x"}: ExitNotReady,
		&api.Error{Code: api.CodeBadRequest, Message: "x"}: ExitUsage, &api.Error{Code: api.CodeConflict, Message: "x"}: ExitFailed,
		&lab.ExitError{Code: 42}: 42,
	} {
		if got := exitCode(err); got != want {
			t.Errorf("the error %T %v gives exit code %d, want %d", err, err, got, want)
		}
	}
}

func TestOnlyHashesAreShortenedAsContainerIDs(t *testing.T) {
	hash := strings.Repeat("4f66ad9a0b2e11d4", 4)
	for id, want := range map[string]string{
		hash: "4f66ad9a0b2e", "netns-4026533141": "netns-4026533141", "lab-h1-c1": "lab-h1-c1", "outside": "outside",
	} {
		if got := shortID(id); got != want {
			t.Errorf("the short form of %s is %s, want %s", id, got, want)
		}
	}
}

func TestDNSForwardFlagsSetTheServersOfDomains(t *testing.T) {
	var o config.DNS
	d := dnsFlags{domain: "Weft.Internal.", forward: []string{".=192.0.2.53", "Corp.=192.0.2.54", "corp=[2001:db8::53]:5353"}}
	if err := d.complete(&o); err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprint(o.Domain, " ", o.Forward)
	if want := "weft.internal map[.:[192.0.2.53:53] corp:[192.0.2.54:53 [2001:db8::53]:5353]]"; got != want {
		t.Errorf("the DNS options are %s, want %s", got, want)
	}
}

func TestDockerNamesThatDNSDoesNotAllowAreRefused(t *testing.T) {
	for name, ok := range map[string]bool{"": true, "Web_1": true, "web.shop": true, "web-": false, "a..b": false, strings.Repeat("a", 64): false} {
		if err := checkDocker(name); (err == nil) != ok || err != nil && !strings.Contains(err.Error(), "--name") {
			t.Errorf("checkDocker of the name %q returned %v; want it accepted: %v, or an error that names --name", name, err, ok)
		}
	}
}

// attach finds a container in the Docker API, and explains each failure of the API.
func TestDockerContainersAreFoundAndErrorsExplained(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "docker.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/containers/web/json":
			_, _ = io.WriteString(w, `{"Id":"4f66ad9a0b2e11d4","Name":"/web","State":{"Pid":4711}}`)
		case "/containers/stopped/json":
			_, _ = io.WriteString(w, `{"Id":"aa","Name":"/stopped","State":{"Pid":0}}`)
		case "/containers/broken/json":
			w.WriteHeader(http.StatusInternalServerError)
			_, _ = io.WriteString(w, `{"message":"disk\nfull`+strings.Repeat(".", 1000)+`"}`)
		case "/containers/html/json":
			_, _ = io.WriteString(w, `hello`)
		case "/containers/silent/json":
			panic(http.ErrAbortHandler)
		default:
			w.WriteHeader(http.StatusNotFound)
			_, _ = io.WriteString(w, `{"message":"No such container"}`)
		}
	})}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { server.Close() })
	c, err := dockerContainer(t.Context(), socket, "web")
	if want := (container{id: "4f66ad9a0b2e11d4", netns: "/proc/4711/ns/net", name: "web"}); err != nil || c != want {
		t.Errorf("dockerContainer returned %+v, error %v; want the running container", c, err)
	}
	for name, says := range map[string]string{
		"stopped": "start the container first", "other": "has no container", "broken": "Docker says: disk full...",
		"html": "that is not Docker's", "silent": "(it hung up)",
	} {
		if _, err := dockerContainer(t.Context(), socket, name); err == nil || !strings.Contains(err.Error(), says) || len(err.Error()) > 500 || internals.MatchString(err.Error()) {
			t.Errorf("container %s: dockerContainer returned %v, want an error with the cause", name, err)
		}
	}
	if _, err := dockerContainer(t.Context(), socket+"x", "web"); err == nil || !strings.Contains(err.Error(), "neither a PID nor a path") ||
		!strings.Contains(err.Error(), "x (no such file or directory): is Docker running") || strings.Contains(err.Error(), "http://") {
		t.Errorf("without Docker, the error is %v; want one that names the socket and the fix", err)
	}
}

// Child processes do not inherit the password from the environment.
func TestChildProcessesDoNotInheritThePassword(t *testing.T) {
	t.Setenv("WEFT_PASSWORD", "correct horse battery")
	if given, err := (&app{}).secretGiven("", ""); given.Secret == nil || err != nil {
		t.Fatalf("got token %v, error %v, want the one in WEFT_PASSWORD", given, err)
	}
	if _, there := os.LookupEnv("WEFT_PASSWORD"); there {
		t.Error("WEFT_PASSWORD is still in the environment, want it removed: child processes would inherit it")
	}
}
