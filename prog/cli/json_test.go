package cli

import (
	"bytes"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"

	"weft/prog/api"
	"weft/prog/lab"
	"weft/prog/lab/probe"
)

// outputs has an example of the JSON output of every command. The test runs commands with args against
// a fake agent; commands without args would change this machine.
var outputs = map[string]struct {
	value any
	args  string
	code  int
}{
	"weft launch":             {value: launched{}},
	"weft stop":               {value: done{}, args: "stop"},
	"weft reset":              {value: wiped{}},
	"weft prime":              {value: primed{}, args: "prime"},
	"weft connect":            {value: []api.Target{}, args: "connect h2"},
	"weft forget":             {value: []api.Target{}, args: "forget h2"},
	"weft rmpeer":             {value: []api.RemovePeerReply{}, args: "rmpeer h2 h3"},
	"weft id":                 {value: identity{}, args: "id"},
	"weft token":              {value: tokened{}, args: "token"},
	"weft token new":          {value: tokened{}, args: "token new"},
	"weft token create":       {value: tokened{}, args: "token create"},
	"weft token list":         {value: []api.Token{}, args: "token list"},
	"weft token revoke":       {value: []api.RevokeReply{}, args: "token revoke rack7"},
	"weft unban":              {value: done{}, args: "unban 0123456789abcdef"},
	"weft version":            {value: versioned{}, args: "version"},
	"weft":                    {value: versioned{}, args: "--version"},
	"weft attach":             {value: api.AttachReply{}},
	"weft detach":             {value: done{}},
	"weft ps":                 {value: []api.Endpoint{}, args: "ps"},
	"weft expose":             {value: exposure{}, args: "expose"},
	"weft hide":               {value: exposure{}, args: "hide"},
	"weft dns-add":            {value: done{}, args: "dns-add 192.0.2.7 -h printer"},
	"weft dns-remove":         {value: done{}, args: "dns-remove 192.0.2.7 -h printer"},
	"weft dns-lookup":         {value: []api.Name{}, args: "dns-lookup web"},
	"weft status":             {value: api.Report{}, args: "status", code: ExitNotReady},
	"weft status connections": {value: []api.Connection{}, args: "status connections"},
	"weft status peers":       {value: []api.Peer{}, args: "status peers"},
	"weft status targets":     {value: []api.Target{}, args: "status targets"},
	"weft status ipam":        {value: api.IPAM{}, args: "status ipam"},
	"weft status dns":         {value: []api.Name{}, args: "status dns"},
	"weft status policy":      {value: api.PolicyStatus{}, args: "status policy"},
	"weft check":              {value: api.CheckReply{}, args: "check"},
	"weft logs":               {value: api.LogsReply{}, args: "logs"},
	"weft bundle":             {value: bundled{}},
	"weft report":             {value: api.Report{}, args: "report"},
	"weft ui":                 {value: served{}},
	"weft config view":        {value: configReply{}, args: "config view"},
	"weft policy apply":       {value: api.ApplyReply{}, args: "policy apply -f -"},
	"weft policy delete":      {value: api.ApplyReply{}, args: "policy delete web"},
	"weft policy list":        {value: []api.Policy{}, args: "policy list"},
	"weft policy get":         {value: map[string]any{}, args: "policy get web"}, // a manifest
	"weft flows":              {value: api.FlowsReply{}, args: "flows"},
	"weft trace":              {value: api.TraceReply{}, args: "trace shop/web shop/db 80", code: ExitFailed},
	"weft policy explain":     {value: api.Explanation{}, args: "policy explain web db"},
	"weft probe icmp":         {value: []probe.Result{}},
	"weft probe udp":          {value: []probe.Result{}},
	"weft probe tcp":          {value: []probe.Result{}},
	"weft probe capture":      {value: probe.CaptureSummary{}},
	"weft lab status":         {value: lab.Status{}},
}

// drops is an example of the output of policy explain --last-drops.
var drops = []api.Drop{}

// serveAll runs an agent whose answers have as few fields as possible, so that commands must fill in
// what is missing.
func serveAll(t *testing.T) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "weft.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	report := sample(t)
	report.Router.PID = 1 << 30 // no process has this id, so stop does not wait for its end
	answers := map[string]any{
		api.PathReport: report, api.PathUsage: map[string]api.Usage{}, api.PathNames: nil, api.PathTokens: nil,
		api.PathLookup: []api.Name{{Name: "web.weft.internal"}}, api.PathDrops: nil, api.PathPolicyStatus: api.PolicyStatus{},
		api.PathExplain: api.Explanation{}, api.PathApplyPolicy: api.ApplyReply{}, api.PathDeletePolicy: api.ApplyReply{},
		api.PathPolicies: []api.Policy{{DocumentRef: api.DocumentRef{Kind: api.KindPolicy, Namespace: "default", Name: "web"}, Manifest: "kind: NetworkPolicy\n"}},
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer, ok := answers[r.URL.Path]
		if !ok {
			answer = struct{}{}
		}
		_ = json.NewEncoder(w).Encode(answer)
	})}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { server.Close() })
	return socket
}

// Every command prints one JSON document of its type, or refuses --json.
func TestEveryCommandPrintsJSON(t *testing.T) {
	root := (&app{}).root()
	seen := map[string]bool{}
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		path := c.CommandPath()
		_, prints := outputs[path]
		seen[path] = true
		group := c.HasSubCommands() && path != "weft" && !slices.Contains(printing, c.Name())
		if !group && !c.Hidden && prints == noJSON[path] {
			t.Errorf("the command %s is neither in outputs nor in noJSON, want it in one of them", path)
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(root)
	socket := serveAll(t)
	for path, want := range outputs {
		if !seen[path] {
			t.Errorf("outputs has %s, which is no command; want only commands of weft", path)
		}
		if want.args == "" {
			continue
		}
		code, out, errOut := weft(t, "kind: x", append(strings.Fields(want.args), "--json", "--socket", socket)...)
		if strings.TrimSpace(out) == "null" {
			t.Errorf("%s printed null, want an empty list", path)
		}
		into := reflect.New(reflect.TypeOf(want.value))
		dec := json.NewDecoder(strings.NewReader(out))
		dec.DisallowUnknownFields()
		if err := dec.Decode(into.Interface()); code != want.code || err != nil || dec.More() {
			t.Errorf("%s: want one JSON document, got exit code %d, error %v, %s%s", want.args, code, err, out, errOut)
		}
	}
	for path := range noJSON {
		if !seen[path] {
			t.Errorf("noJSON has %s, which is no command; want only commands of weft", path)
		}
	}
	for _, args := range []string{"agent", "datapath", "completion bash"} {
		if code, out, errOut := weft(t, "", append(strings.Fields(args), "--json")...); code != ExitUsage || !strings.Contains(errOut, "prints no JSON") {
			t.Errorf("%s: want a refusal of --json, got exit code %d, %s%s", args, code, out, errOut)
		}
	}
}

// A template can use every field that --json prints.
func TestReportTemplatesCanUseEveryJSONField(t *testing.T) {
	socket := serveReport(t)
	var printed, whole map[string]any
	_, out, _ := weft(t, "", "report", "--socket", socket)
	_, all, _ := weft(t, "", "report", "--socket", socket, "-f", "{{json .}}")
	if err := errors.Join(json.Unmarshal([]byte(out), &printed), json.Unmarshal([]byte(all), &whole)); err != nil {
		t.Fatal(err)
	}
	within(t, "report", printed, whole)
}

// within asserts that templates have every field of a JSON document.
func within(t *testing.T, path string, part, whole any) {
	t.Helper()
	switch part := part.(type) {
	case map[string]any:
		w, _ := whole.(map[string]any)
		for name, x := range part {
			if _, ok := w[name]; !ok {
				t.Errorf("templates lack the field %s.%s of the JSON, want all fields", path, name)
			}
			within(t, path+"."+name, x, w[name])
		}
	case []any:
		w, _ := whole.([]any)
		for i := range min(len(part), len(w)) {
			within(t, path, part[i], w[i])
		}
	}
}

// The schema that site/docs/json.md refers to matches the types.
func TestTheJSONSchemaMatchesTheOutput(t *testing.T) {
	defs, commands := map[string]any{}, map[string]any{}
	for path, o := range outputs {
		commands[path] = schemaOf(reflect.TypeOf(o.value), defs)
	}
	commands["weft policy explain --last-drops"] = schemaOf(reflect.TypeOf(drops), defs)
	commands["weft probe tcp --bulk"] = schemaOf(reflect.TypeFor[probe.BulkResult](), defs)
	data := []byte("{\n\"$schema\": \"https://json-schema.org/draft/2020-12/schema\",\n\"title\": \"what weft's commands print with --json, by command\",\n" +
		"\"properties\": " + inLines(t, commands) + ",\n\"$defs\": " + inLines(t, defs) + "\n}\n")
	if !json.Valid(data) {
		t.Fatalf("the generated schema is no JSON, want valid JSON:\n%s", data)
	}
	path := filepath.Join("..", "..", "site", "docs", "json.schema.json")
	if *update {
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(have, data) {
		t.Errorf("%s does not match the types (run with -update if they are right): %v\n%s", path, err, cmp.Diff(string(have), string(data)))
	}
}

// inLines formats an object with one line for each of its members.
func inLines(t *testing.T, object map[string]any) string {
	t.Helper()
	var lines []string
	for _, name := range slices.Sorted(maps.Keys(object)) {
		value, err := json.Marshal(object[name])
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, fmt.Sprintf("%q: %s", name, value))
	}
	return "{\n" + strings.Join(lines, ",\n") + "\n}"
}

// schemaOf describes a type as encoding/json writes it (JSON Schema 2020-12).
func schemaOf(typ reflect.Type, defs map[string]any) map[string]any {
	is := func(name string) map[string]any { return map[string]any{"type": name} }
	switch {
	case typ.Kind() == reflect.Pointer:
		return schemaOf(typ.Elem(), defs)
	case typ == reflect.TypeFor[time.Time]():
		return map[string]any{"type": "string", "format": "date-time"}
	case typ == reflect.TypeFor[time.Duration]():
		return map[string]any{"type": "integer", "description": "nanoseconds"}
	case typ.Implements(reflect.TypeFor[encoding.TextMarshaler]()):
		return is("string")
	}
	switch typ.Kind() {
	case reflect.Slice:
		// encoding/json writes null for a list that is nil
		return map[string]any{"type": []string{"array", "null"}, "items": schemaOf(typ.Elem(), defs)}
	case reflect.Map:
		return map[string]any{"type": []string{"object", "null"}, "additionalProperties": schemaOf(typ.Elem(), defs)}
	case reflect.Struct:
		name := typ.String()
		if defs[name] == nil {
			def := map[string]any{}
			defs[name] = def // stored before its fields are visited, since a type may contain itself
			def["type"], def["properties"], def["required"] = "object", map[string]any{}, []string{}
			describe(typ, def, defs)
		}
		return map[string]any{"$ref": "#/$defs/" + name}
	case reflect.Bool:
		return is("boolean")
	case reflect.String:
		return is("string")
	case reflect.Float64, reflect.Float32:
		return is("number")
	case reflect.Interface:
		return map[string]any{}
	}
	return is("integer")
}

func describe(typ reflect.Type, def, defs map[string]any) {
	for f := range typ.Fields() {
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case f.Anonymous && name == "":
			describe(f.Type, def, defs)
		case !f.IsExported() || name == "-":
		default:
			if name == "" {
				name = f.Name
			}
			def["properties"].(map[string]any)[name] = schemaOf(f.Type, defs)
			if !strings.Contains(options, "omit") {
				def["required"] = append(def["required"].([]string), name)
				slices.Sort(def["required"].([]string))
			}
		}
	}
}
