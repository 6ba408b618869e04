package cli

import (
	"bytes"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"regexp"
	"strings"
	"text/template"

	"github.com/spf13/cobra"

	"weft/prog/api"
	"weft/prog/words"
)

// These types are JSON output that commands make themselves, instead of an answer of the agent. site/docs/json.md describes all
// output, and site/docs/json.schema.json has every field.
type (
	done struct {
		Done bool `json:"done"`
	} // the output of commands that print nothing without --json
	versioned struct {
		Version string `json:"version"`
		Go      string `json:"go"`
	}
	identity struct {
		ID string `json:"id"`
	}
	tokened struct {
		Token string `json:"token"`
		ID    string `json:"id,omitempty"` // not for the secret of a new network
	}
	primed struct {
		Ready bool `json:"ready"`
	}
	exposure struct {
		Exposed bool         `json:"exposed"`
		Node    []netip.Addr `json:"node"` // this host's node addresses: the next hop of a route to the universe
	}
	launched struct {
		Ready    bool         `json:"ready"`   // false only with --wait 0
		Founded  bool         `json:"founded"` // this host founded a new network; weft token create makes the tokens for other hosts
		ID       string       `json:"id,omitempty"`
		Nickname string       `json:"nickname,omitempty"`
		Node     []netip.Addr `json:"node,omitempty"`
		PID      int          `json:"pid"`
	}
	wiped struct {
		Done bool   `json:"done"`
		Heir string `json:"heir,omitempty"` // the peer that took over this host's addresses
	}
)

// noJSON lists commands that run until they are stopped, or that print input for another program.
var noJSON = map[string]bool{
	"weft agent": true, "weft datapath": true, "weft help": true, "weft probe listen": true,
	"weft completion bash": true, "weft completion zsh": true, "weft completion fish": true, "weft completion powershell": true,
	"weft lab up": true, "weft lab down": true, "weft lab exec": true, "weft lab link": true, "weft lab kill": true,
	"weft lab start": true, "weft lab stop": true, "weft lab reboot": true, "weft lab network": true, "weft lab nat": true, "weft lab demo": true,
	"weft lab ui": true,
}

// show prints v as JSON with --json, and calls print otherwise.
func (a *app) show(v any, print func()) error {
	if !a.json {
		print()
		return nil
	}
	enc := json.NewEncoder(a.out)
	if !a.oneLine {
		enc.SetIndent("", "  ")
	}
	return enc.Encode(v)
}

// did ends a command that has no output. With --json it prints {"done": true} after a success.
func (a *app) did(err error) error {
	if err != nil {
		return err
	}
	return a.show(done{true}, func() {})
}

// jsonFlag adds -o json as another spelling of --json, since users of kubectl type it.
func (a *app) jsonFlag(cmd *cobra.Command) {
	output := ""
	cmd.Flags().StringVarP(&output, "output", "o", "", "json: the same as --json")
	cmd.PreRunE = func(*cobra.Command, []string) error {
		if a.json = a.json || output == "json"; output != "" && output != "json" {
			return words.Misused(fmt.Errorf("-o %s: only json is possible; omit -o for a table", output))
		}
		return nil
	}
}

// reportTemplate parses the template of report -f. Its fields have their names in JSON.
func reportTemplate(text string) (*template.Template, error) {
	t, err := template.New("report").Option("missingkey=error").Funcs(template.FuncMap{"json": func(v any) (string, error) {
		data, err := json.Marshal(v)
		return string(data), err
	}}).Parse(text)
	return t, templateError(err)
}

// templateError says where a template is wrong, in the words of the report instead of Go's.
func templateError(err error) error {
	if err == nil {
		return nil
	}
	text := evaluated.ReplaceAllString(err.Error(), "no field $1: the value is a list, or has no fields")
	return errors.New(strings.NewReplacer("template: report:", "line ", "map has no entry for key", "there is no field",
		"executing \"report\" ", "", "nil pointer evaluating interface {}.", "nothing has the field ").Replace(text))
}

// evaluated matches the template package's error about a field of a value that is no map.
var evaluated = regexp.MustCompile(`can't evaluate field (\S+) in type \S+( \{\})?`)

// fill executes a template on a report.
func (a *app) fill(t *template.Template, r api.Report) error {
	var out bytes.Buffer // print nothing if the template fails halfway
	if err := t.Execute(&out, fields(reflect.ValueOf(r))); err != nil {
		return words.Misused(fmt.Errorf("-f: %w: field names are those of `weft report`, for example .router.peers", templateError(err)))
	}
	fmt.Fprintln(a.out, out.String())
	return nil
}

// fields converts a value to maps and lists as encoding/json does, but keeps empty fields, so that a
// template can use them.
func fields(v reflect.Value) any {
	if v.Kind() == reflect.Pointer || v.Kind() == reflect.Interface {
		if v.IsNil() {
			return nil
		}
		return fields(v.Elem())
	}
	if m, ok := reflect.TypeAssert[encoding.TextMarshaler](v); ok {
		text, err := m.MarshalText()
		if err != nil { // unreachable: every value in the report can be marshalled
			return err.Error()
		}
		return string(text)
	}
	switch v.Kind() {
	case reflect.Struct:
		out := map[string]any{}
		for f, value := range v.Fields() {
			if f.Anonymous {
				maps.Copy(out, fields(value).(map[string]any))
				continue
			}
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			out[name] = fields(value)
		}
		return out
	case reflect.Slice:
		out := make([]any, v.Len())
		for i := range out {
			out[i] = fields(v.Index(i))
		}
		return out
	case reflect.Map:
		out := map[string]any{}
		for key, value := range v.Seq2() {
			out[key.String()] = fields(value)
		}
		return out
	}
	return v.Interface()
}
