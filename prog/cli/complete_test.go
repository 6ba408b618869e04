package cli

import (
	"encoding/json"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"weft/prog/api"
)

// The Tab key offers what the agent knows: hosts, endpoints, namespaces, policies and more.
func TestWordsAreCompleted(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "weft.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	var report api.Report
	report.Router.Peers = []api.Peer{{ID: "01", Nickname: "h1", Self: true}, {ID: "02", Nickname: "h2", State: "running"}, {ID: "03", Nickname: "twin"}, {ID: "04", Nickname: "twin"}}
	report.Router.Targets = []api.Target{{Host: "192.0.2.7", State: "retrying"}}
	report.Endpoints = []api.Endpoint{{ContainerID: "4f66", Name: "web"}, {ContainerID: "8a8a"}}
	answers := map[string]any{
		api.PathReport: report, api.PathTokens: []api.Token{{ID: "ab12", Name: "rack7"}}, api.PathNames: []api.Name{{Name: "web.weft.internal"}},
		api.PathEndpoints: api.NetworkEndpoints{Endpoints: []api.NetworkEndpoint{{Namespace: "shop", Name: "web"}, {Namespace: "shop", Name: "db"}, {Namespace: "jobs", Name: "batch"}, {ID: "unnamed"}}},
		api.PathPolicies:  []api.Policy{{DocumentRef: api.DocumentRef{Kind: api.KindPolicy, Namespace: "shop", Name: "db"}}, {DocumentRef: api.DocumentRef{Kind: api.KindNamespace, Name: "shop"}}},
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _ = json.NewEncoder(w).Encode(answers[r.URL.Path]) })}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { server.Close() })
	for line, want := range map[string]string{
		"rmpeer |":                  "03 04 h2",
		"rmpeer h2 |":               "03 04",
		"forget 192|":               "192.0.2.7",
		"policy explain sh|":        "shop/db shop/web",
		"policy explain shop/web |": "jobs/batch shop/db",
		"policy explain a b |":      "",
		"policy get |":              "namespace/shop shop/db",
		"policy delete sho|":        "shop/db",
		"detach |":                  "8a8a web",
		"flows --from sh|":          "shop/ shop/db shop/web",
		"dns-lookup w|":             "web.weft.internal",
		"token revoke |":            "ab12",
		"chec|":                     "check",
	} {
		args := append([]string{"__complete", "--socket", socket}, strings.Fields(strings.TrimSuffix(line, "|"))...)
		if strings.HasSuffix(line, " |") {
			args = append(args, "")
		}
		code, out, errOut := weft(t, "", args...)
		var got []string
		for text := range strings.Lines(out) {
			if word, _, _ := strings.Cut(strings.TrimSpace(text), "\t"); word != "" && !strings.HasPrefix(word, ":") {
				got = append(got, word)
			}
		}
		if strings.Join(got, " ") != want || code != ExitOK {
			t.Errorf("weft %s completes to %q (exit code %d, %s), want %q", line, got, code, errOut, want)
		}
		if !strings.Contains(out, ":4") && want != "check" {
			t.Errorf("weft %s: %q; want no names of files among the candidates", line, out)
		}
	}
	if code, out, _ := weft(t, "", "__complete", "--socket", socket+".none", "rmpeer", ""); code != ExitOK || !strings.HasPrefix(out, ":") {
		t.Errorf("without an agent: exit code %d, %q; want no candidates", code, out)
	}
}
