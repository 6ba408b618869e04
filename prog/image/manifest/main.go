// Command manifest renders the Helm chart with its default values, for installing without Helm. It
// also renders the manifest that uninstalls the same version. `make manifest` runs it.
//
// The release is defined in one place: appVersion in site/deploy/chart/Chart.yaml. It is also the
// image's tag, so applying a newer manifest rolls out new agents.
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

// namespace is the chart's namespace unless Helm's --namespace names another.
const namespace = "weft"

const head = "# Installs Weft %s: kubectl apply -f weft.yaml\n# Generated from site/deploy/chart by `make manifest`: change the chart, not this file.\n"

func main() {
	version := flag.String("version", "", "the new release, such as v1.2.3; without -version, the release does not change")
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

// run writes all manifests in the folder, or none of them.
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

// The files into which the version of a release is written.
const (
	chartFile     = "chart/Chart.yaml"
	installFile   = "weft.yaml"
	uninstallFile = "uninstall.yaml"
)

// release matches what is valid as a git tag, as an image's tag and, without its v, as a chart's
// version. So it allows no '+', which image tags forbid, and no words such as latest, which charts
// forbid.
var release = regexp.MustCompile(`^v?(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z]+([.-][0-9A-Za-z]+)*)?$`)

// These expressions match the lines that contain the release.
var (
	chartVersion = regexp.MustCompile(`(?m)^version: .*$`)
	appVersion   = regexp.MustCompile(`(?m)^appVersion: .*$`)
	imageLine    = regexp.MustCompile(`(?m)^( +image: ).*$`)
)

// render returns the contents of the files by name. Without a version, it uses the chart's version.
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
		return nil, fmt.Errorf("invalid release %q: nothing is written; give one like v1.2.3 or v1.2.3-rc.1", c.AppVersion)
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
		return nil, errors.New("the chart or " + uninstallFile + " contains no image: nothing is written; add its `image:` line")
	}
	uninstall = imageLine.ReplaceAllLiteral(uninstall, image[0])
	return map[string][]byte{chartFile: about, installFile: install, uninstallFile: uninstall}, nil
}

// chart contains the fields of Chart.yaml that templates use.
type chart struct {
	AppVersion string `json:"appVersion"`
}

// template renders the chart like Helm with --include-crds. It supports Chart, Release, Values and
// the functions that the templates use. A test in prog/lab/kube checks that Helm renders the same
// objects.
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
