package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"weft/prog/lab"
	"weft/prog/lab/labtest"
)

// With a healthy network no alert fires; each fault fires its own alert.
func TestAlertRules(t *testing.T) {
	labtest.Waits(t)
	promtool, err := lab.Extract("prometheus", "usr/bin/promtool")
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join("..", "..", "..", "site", "deploy", "prometheus")
	for _, args := range [][]string{{"check", "rules", "--lint-fatal", "alerts.yaml"}, {"test", "rules", "alerts-test.yaml"}} {
		cmd := exec.CommandContext(t.Context(), promtool, args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %q: %v\n%s", args, err, out)
		}
	}
	read := func(name string) string {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	tests := read("alerts-test.yaml")
	for _, rule := range regexp.MustCompile(`- alert: (\w+)`).FindAllStringSubmatch(read("alerts.yaml"), -1) {
		if !strings.Contains(tests, "- name: "+rule[1]+"\n") {
			t.Errorf("alerts-test.yaml has no test of %s, want one", rule[1])
		}
	}
}

// A host's metrics follow Prometheus' conventions. The address for metrics serves nothing else.
func TestMetricsAddressServesOnlyMetrics(t *testing.T) {
	labtest.Waits(t)
	promtool, err := lab.Extract("prometheus", "usr/bin/promtool")
	if err != nil {
		t.Fatal(err)
	}
	l := labtest.New(t, lab.Options{Hosts: 2, Containers: 1, Launch: []string{"--metrics-addr", "0.0.0.0:6788"}})
	measured(t, l)
	addr, err := l.UnderlayAddr("h1")
	if err != nil {
		t.Fatal(err)
	}
	get := func(path string) (string, error) {
		return l.Exec(t.Context(), "h2", nil, toolArgs(t, "get", "http://"+addr.String()+":6788"+path)...)
	}
	text, err := get("/metrics")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{
		"weft_build_info{", "weft_ready 1", `weft_tunnel_up{`, `weft_guard_dropped_packets_total{chain="underlay"} 0`, "weft_ipam_free_slots ",
		`weft_cni_request_duration_seconds_count{request="attach"} 1`, "weft_dns_forward_duration_seconds_count 0", "weft_policy_current 1",
	} {
		if !strings.Contains(text, name) {
			t.Errorf("the metrics lack %s:\n%s", name, text)
		}
	}
	for _, path := range []string{"/status", "/ready", "/live", "/", "/v1/report"} {
		if out, err := get(path); err == nil && !strings.Contains(out, "404") {
			t.Errorf("%s at the address for metrics answers %q, want 404", path, out)
		}
	}
	cmd := exec.CommandContext(t.Context(), promtool, "check", "metrics")
	cmd.Stdin = strings.NewReader(ours(text))
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("promtool check metrics: %v\n%s", err, out)
	}
}

// ours leaves out the metrics of Go's runtime and of the process.
func ours(text string) string {
	return strings.Join(slices.DeleteFunc(strings.SplitAfter(text, "\n"), func(line string) bool {
		name := strings.TrimPrefix(strings.TrimPrefix(line, "# HELP "), "# TYPE ")
		return !strings.HasPrefix(name, "weft_")
	}), "")
}
