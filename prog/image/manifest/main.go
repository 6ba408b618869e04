// Command manifest renders the Helm chart with its default values, for those who install
// without Helm, and gives what uninstalls the same version. `make manifest` runs it.
//
// The release is written in one place, appVersion in site/deploy/chart/Chart.yaml, and is the
// image's tag: so to apply a newer manifest is to roll the agents.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"text/template"

	"sigs.k8s.io/yaml"
)

// namespace is where the chart is installed, unless Helm is told otherwise.
const namespace = "weft"

const head = "# Installs Weft %s: kubectl apply -f weft.yaml\n# Generated from site/deploy/chart by `make manifest`: change the chart, not this file.\n"

func main() {
	version := flag.String("version", "", "the release, as v1.2.3, if it is another one from now on")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: manifest [-version VERSION] FOLDER")
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() != 1 {
		flag.Usage()
		os.Exit(2)
	}
	if err := run(flag.Arg(0), *version); err != nil {
		fmt.Fprintln(os.Stderr, "manifest:", err)
		os.Exit(1)
	}
}

// run writes the manifests in the folder anew, all of them or none.
func run(folder, version string) error {
	made, err := render(folder, version)
	if err != nil {
		return err
	}
	for name, data := range made {
		if err := os.WriteFile(filepath.Join(folder, name+".new"), data, 0o644); err != nil {
			return err
		}
	}
	for name := range made {
		if err := os.Rename(filepath.Join(folder, name+".new"), filepath.Join(folder, name)); err != nil {
			return err
		}
	}
	return nil
}

// The files that name the release.
const (
	chartFile     = "chart/Chart.yaml"
	installFile   = "weft.yaml"
	uninstallFile = "uninstall.yaml"
)

// release is what can be a git tag, an image's tag and, without its v, a chart's version.
// A chart's could have a '+' as well, and an image's tag could be a word such as latest.
var release = regexp.MustCompile(`^v?(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z]+([.-][0-9A-Za-z]+)*)?$`)

// Lines that change with the release.
var (
	chartVersion = regexp.MustCompile(`(?m)^version: .*$`)
	appVersion   = regexp.MustCompile(`(?m)^appVersion: .*$`)
	imageLine    = regexp.MustCompile(`(?m)^( +image: ).*$`)
)

// render returns the files' contents by name. Without a version it is the chart's.
func render(folder, version string) (map[string][]byte, error) {
	about, err := os.ReadFile(filepath.Join(folder, chartFile))
	if err != nil {
		return nil, err
	}
	var c chart
	if err := yaml.Unmarshal(about, &c); err != nil {
		return nil, fmt.Errorf("%s: %w", chartFile, err)
	}
	if version != "" {
		c.AppVersion = version
	}
	if !release.MatchString(c.AppVersion) {
		return nil, fmt.Errorf("%q is no release: nothing is written; give one like v1.2.3 or v1.2.3-rc.1", c.AppVersion)
	}
	about = appVersion.ReplaceAllLiteral(about, []byte("appVersion: "+c.AppVersion))
	about = chartVersion.ReplaceAllLiteral(about, []byte("version: "+strings.TrimPrefix(c.AppVersion, "v")))
	install, err := c.template(filepath.Join(folder, "chart"))
	if err != nil {
		return nil, err
	}
	uninstall, err := os.ReadFile(filepath.Join(folder, uninstallFile))
	if err != nil {
		return nil, err
	}
	image := imageLine.FindSubmatch(install)
	if image == nil || !imageLine.Match(uninstall) {
		return nil, errors.New("the chart or " + uninstallFile + " names no image: nothing is written; see to its line `image:`")
	}
	uninstall = imageLine.ReplaceAllLiteral(uninstall, image[0])
	return map[string][]byte{chartFile: about, installFile: install, uninstallFile: uninstall}, nil
}

// chart is what templates use of Chart.yaml.
type chart struct {
	AppVersion string `json:"appVersion"`
}

// template gives what Helm would with --include-crds, as far as templates use what it has: Chart, Release and
// Values, and these functions. That Helm gives the same objects is tested in prog/lab/kube.
func (c chart) template(dir string) ([]byte, error) {
	data, err := os.ReadFile(filepath.Join(dir, "values.yaml"))
	if err != nil {
		return nil, err
	}
	var values map[string]any
	if err := yaml.Unmarshal(data, &values); err != nil {
		return nil, fmt.Errorf("values.yaml: %w", err)
	}
	t, err := template.New("weft.yaml").Option("missingkey=error").Funcs(functions).ParseFiles(filepath.Join(dir, "templates", "weft.yaml"))
	if err != nil {
		return nil, err
	}
	first, err := os.ReadFile(filepath.Join(dir, "crds", "namespace.yaml"))
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	fmt.Fprintf(&out, head, c.AppVersion)
	out.Write(first)
	out.WriteString("---\n")
	err = t.Execute(&out, map[string]any{
		"Chart": c, "Values": values, "Release": map[string]string{"Namespace": namespace},
	})
	return out.Bytes(), err
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
