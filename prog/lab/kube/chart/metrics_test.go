package chart

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/grafana/grafana-foundation-sdk/go/cog/plugins"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
)

// With metrics, each agent serves only /metrics at its node's address, and the PodMonitor names that port.
func TestHelmServesMetrics(t *testing.T) {
	got := helm(t, map[string]any{"metrics": map[string]any{"enabled": true, "port": 7000, "podMonitor": true, "labels": map[string]any{"release": "main"}}})
	pod := got["DaemonSet/weft/weft"].(map[string]any)["spec"].(map[string]any)["template"].(map[string]any)["spec"].(map[string]any)
	c := pod["containers"].([]any)[0].(map[string]any)
	text, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`{"name":"WEFT_METRICS_ADDR","value":"$(HOST_IP):7000"}`, `"ports":[{"containerPort":7000,"name":"metrics"}]`, `"fieldPath":"status.hostIP"`} {
		if !strings.Contains(string(text), want) {
			t.Errorf("the agent's container is %s, want %s in it", text, want)
		}
	}
	monitor, ok := got["PodMonitor/weft/weft"].(map[string]any)
	if !ok || monitor["metadata"].(map[string]any)["labels"].(map[string]any)["release"] != "main" {
		t.Errorf("the PodMonitor is %v, want one with the given labels", monitor)
	}
	if _, ok := helm(t, map[string]any{"metrics": map[string]any{"enabled": true}})["PodMonitor/weft/weft"]; ok {
		t.Error("there is a PodMonitor without podMonitor, want none: most clusters do not have its CustomResourceDefinition")
	}
}

// The board follows Grafana's schema: a field that the schema does not have is an error.
func TestBoardFollowsGrafanasSchema(t *testing.T) {
	data, err := os.ReadFile(filepath.Join(deploy, "prometheus", "board.json"))
	if err != nil {
		t.Fatal(err)
	}
	plugins.RegisterDefaultPlugins() // the schemas of Prometheus' queries and of the panels
	var board dashboard.Dashboard
	if faults := strictly(&board, data); faults != "" {
		t.Fatal(faults)
	}
	if err := board.Validate(); err != nil {
		t.Fatal(err)
	}
	if len(board.Panels) < 10 {
		t.Errorf("the board has %d panels, want at least 10", len(board.Panels))
	}
	var wrong dashboard.Dashboard
	if strictly(&wrong, []byte(strings.Replace(string(data), `"gridPos"`, `"gridPosition"`, 1))) == "" {
		t.Error("a board with an unknown field was accepted, want an error: this test must be able to fail")
	}
}

// strictly reads a board, and returns what does not follow the schema. The library returns a list of faults as an
// error that is not nil even if the list is empty.
func strictly(board *dashboard.Dashboard, data []byte) string {
	if err := board.UnmarshalJSONStrict(data); err != nil {
		return err.Error()
	}
	return ""
}

// The board and the alerts only use metrics that the documentation has.
func TestBoardAndAlertsUseMetricsThatExist(t *testing.T) {
	reference, err := os.ReadFile(filepath.Join(docs, "metrics.md"))
	if err != nil {
		t.Fatal(err)
	}
	metric, suffix := regexp.MustCompile(`\bweft_[a-z_]+`), regexp.MustCompile(`_(bucket|sum|count)$`)
	for _, name := range []string{"board.json", "alerts.yaml", "alerts-test.yaml"} {
		data, err := os.ReadFile(filepath.Join(deploy, "prometheus", name))
		if err != nil {
			t.Fatal(err)
		}
		used := metric.FindAllString(string(data), -1)
		slices.Sort(used)
		for _, one := range slices.Compact(used) {
			if !strings.Contains(string(reference), "| `"+suffix.ReplaceAllString(one, "")+"` |") && !strings.Contains(string(reference), "| `"+one+"` |") {
				t.Errorf("%s uses %s, which metrics.md does not have", name, one)
			}
		}
	}
}
