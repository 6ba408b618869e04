// Command manifest renders the Helm chart with its default values, for those who install
// without Helm. `make manifest` runs it.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"text/template"

	"sigs.k8s.io/yaml"
)

// namespace is where the chart is installed, unless Helm is told otherwise.
const namespace = "weft"

const head = "# Installs Weft: kubectl apply -f weft.yaml\n# Made from site/chart by `make manifest`: change it there.\n"

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: manifest CHART")
		os.Exit(2)
	}
	if err := render(os.Args[1], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "manifest:", err)
		os.Exit(1)
	}
}

// render writes what Helm would, as far as templates use what it has: Chart, Release and
// Values, and these functions. That Helm gives the same objects is tested in prog/lab/kube.
func render(chart string, w io.Writer) error {
	var about struct {
		AppVersion string `json:"appVersion"`
	}
	var values map[string]any
	for name, into := range map[string]any{"Chart.yaml": &about, "values.yaml": &values} {
		data, err := os.ReadFile(filepath.Join(chart, name))
		if err != nil {
			return err
		}
		if err := yaml.Unmarshal(data, into); err != nil {
			return fmt.Errorf("%s: %w", filepath.Join(chart, name), err)
		}
	}
	t, err := template.New("weft.yaml").Option("missingkey=error").Funcs(functions).ParseFiles(filepath.Join(chart, "templates", "weft.yaml"))
	if err != nil {
		return err
	}
	var out bytes.Buffer
	out.WriteString(head)
	err = t.Execute(&out, map[string]any{
		"Chart": about, "Values": values, "Release": map[string]string{"Namespace": namespace},
	})
	if err != nil {
		return err
	}
	_, err = out.WriteTo(w)
	return err
}

var functions = template.FuncMap{
	"default": func(otherwise, v any) any {
		if v == nil || reflect.ValueOf(v).IsZero() {
			return otherwise
		}
		return v
	},
	"quote":  func(v any) string { return strconv.Quote(fmt.Sprint(v)) },
	"toJson": func(v any) (string, error) { data, err := json.Marshal(v); return string(data), err },
}
