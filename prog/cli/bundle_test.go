package cli

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"weft/prog/api"
)

// archived returns the files of an archive by their names, without the archive's folder.
func archived(t *testing.T, path string) map[string]string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for r := tar.NewReader(z); ; {
		head, err := r.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		_, name, _ := strings.Cut(head.Name, "/")
		out[name] = string(data)
	}
}

// An archive without a running agent still describes this host. It never overwrites a file.
func TestABundleWithoutAnAgentDescribesThisHost(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.tar.gz")
	code, _, errOut := weft(t, "", "bundle", "-o", path, "--socket", path+".none")
	if code != ExitOK || !strings.Contains(errOut, "not running") {
		t.Fatalf("exit code %d, %q; want 0, and that no agent runs", code, errOut)
	}
	files := archived(t, path)
	for _, name := range []string{"system.txt", "links.txt", "routes.txt", "sysctls.txt", "error.txt"} {
		if files[name] == "" {
			t.Errorf("the archive lacks %s, want it", name)
		}
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the archive has the mode %v, error %v; want 0600", info.Mode(), err)
	}
	if code, _, errOut := weft(t, "", "bundle", "-o", path, "--socket", path+".none"); code != ExitFailed || !strings.Contains(errOut, "-o") {
		t.Errorf("a second archive of that name: exit code %d, %q; want a refusal", code, errOut)
	}
}

// A host's nickname cannot choose where its files are unpacked.
func TestANicknameLeadsToNoOtherFolder(t *testing.T) {
	for _, nickname := range []string{"../../etc/cron.d", "/etc", "..", `..\x`} {
		if name := folder(api.Host{Nickname: nickname, Peer: "01"}); strings.ContainsAny(name, `/\`) || name == ".." || !strings.HasSuffix(name, "-01") {
			t.Errorf("the folder of the host %q is %q, want a plain name that ends with its id", nickname, name)
		}
	}
}

// No name of an endpoint, namespace, policy or host, and no label, remains; what is the same stays the same.
func TestAnonymousArchivesHaveNoNames(t *testing.T) {
	report := api.Report{Router: api.Router{Nickname: "rack7"}, Endpoints: []api.Endpoint{{
		Name: "payroll-0", Namespace: "salaries", Labels: map[string]string{"acme.com/team": "finance"}, Aliases: []string{"boss"}, ContainerID: "payslips",
	}}}
	files := anonymized(map[string]string{
		"network.json":                indented(api.Network{Hosts: []api.Host{{Nickname: "rack7", Peer: "01"}}}),
		"rack7-01/report.json":        indented(report),
		"rack7-01/policies.json":      indented([]api.Policy{{DocumentRef: api.DocumentRef{Namespace: "salaries", Name: "secret-rule"}, Selector: "tier in (gold)", Manifest: "labels: {hidden: thing}"}}),
		"rack7-01/routes.txt":         "10.32.0.0/12 dev weft # salaries/payroll-0 payroll-0.salaries.weft.internal app=finance xfinance\n",
		"rack7-01/" + agentLog:        "msg=attached name=gone-pod\n",
		"rack7-01/sysctls.txt":        "net.ipv4.ip_forward = 1\n",
		"rack7-01/policy-status.json": `{"policies":[{"policy":"salaries/secret-rule"}]}`,
	})
	all := ""
	for name, content := range files {
		all += name + "\n" + content
	}
	for _, word := range []string{"rack7", "payroll", "payslips", "salaries", "acme", "team", " app=finance", "boss", "secret-rule", "gold", "hidden", "gone-pod"} {
		if strings.Contains(all, word) {
			t.Errorf("the archive has %q, want it replaced:\n%s", word, all)
		}
	}
	for _, word := range []string{"net.ipv4.ip_forward = 1", "xfinance", ".weft.internal", `"nickname": "name-`} {
		if !strings.Contains(all, word) {
			t.Errorf("the archive lacks %q, want it kept:\n%s", word, all)
		}
	}
}

// A nickname may have any printable characters. It is replaced like any other name.
func TestUnusualNamesAreReplaced(t *testing.T) {
	for _, nickname := range []string{"rack seven:b", "büro", "[hall]", "a=b"} {
		h := api.Host{Nickname: nickname, Peer: "01"}
		for name, content := range anonymized(map[string]string{
			"network.json": indented(api.Network{Hosts: []api.Host{h}}), folder(h) + "/links.txt": "tunnel to 01(" + nickname + ")\n",
		}) {
			if strings.Contains(name+content, nickname) {
				t.Errorf("%s: %s has the nickname %q, want it replaced", name, content, nickname)
			}
		}
	}
}

func TestLogsArePrinted(t *testing.T) {
	code, out, errOut := weft(t, "", "logs", "--socket", filepath.Join(t.TempDir(), "none"))
	if code != ExitNotRunning || out != "" || !strings.Contains(errOut, "journalctl -u weft") {
		t.Errorf("without an agent: exit code %d, %q, %q; want where the log is", code, out, errOut)
	}
	if code, _, _ := weft(t, "", "logs", "-n", "-1"); code != ExitUsage {
		t.Errorf("-n -1: exit code %d, want %d", code, ExitUsage)
	}
}
