package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"weft/prog/api"
)

// settingsIn writes a settings file for a test.
func settingsIn(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "weft", "weft.yaml")
	if err := replaceFile(path, []byte(text)); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestFlagsOverrideTheEnvironmentWhichOverridesTheSettingsFile(t *testing.T) {
	path := settingsIn(t, "# ours\nmtu: 1300\nport: 7000\nwireguard-port: 7001\nnickname: \"a\"\ndns-ttl: \"5s\"\nno-dns: true\nadvertise: [192.0.2.1, \"2001:db8::1\"]\npolicy-exempt: none\n")
	f, _, err := configured(t, []string{"WEFT_PORT=8000", "WEFT_WIREGUARD_PORT=8001"}, []string{"--settings", path, "--wireguard-port=9001"})
	if err != nil {
		t.Fatal(err)
	}
	if f.MTU != 1300 || f.GossipPort != 8000 || f.Port != 9001 || f.Nickname != "a" || f.DNS.TTL.Seconds() != 5 || !f.DNS.Off || len(f.Advertise) != 2 || f.Exempt.OwnHost {
		t.Errorf("the options are %+v, want the file's values where nothing overrides them", f.Options)
	}
	want := map[string]string{"mtu": api.FromFile, "port": api.FromEnvironment, "wireguard-port": api.FromFlag, "state-dir": api.FromDefault}
	for _, s := range f.Settings {
		if w, ok := want[s.Name]; ok && s.Origin != w {
			t.Errorf("the setting %+v has the wrong origin, want %s", s, w)
		}
	}
}

func TestErrorsAboutTheSettingsFileNameLineAndKey(t *testing.T) {
	for text, says := range map[string]string{
		"mtu: 1300\nMtu_: 1\n":               "line 2: Mtu_: there is no such setting (did you mean mtu?)",
		"nonsense: 1\n":                      "line 1: nonsense: there is no such setting",
		"\nmtu: large\n":                     "line 2: mtu: want a whole number",
		"mtu: 12\n":                          "line 1: mtu: --mtu 12: want 1280",
		"no-dns: perhaps\n":                  "line 1: no-dns: want true or false",
		"nickname: 007\n":                    "line 1: nickname: want a text in quotes",
		"dns-ttl: 5\n":                       "line 1: dns-ttl: want a duration in quotes",
		"ipalloc-rest: soon\n":               "line 1: ipalloc-rest: --ipalloc-rest soon: want a time such as",
		"port: [1, 2]\n":                     "line 1: port: want a whole number, not a list",
		"token: weft1-verysecret\n":          "a token does not belong into this file",
		"wait: 1m\n":                         "there is no such setting",
		"mtu: 1300\nmtu: 1400\n":             "line 2: mtu is set twice",
		"mtu: 1\nport: 2\nmtu: 3\nport: 4\n": "line 3: mtu is set twice: want lines",
		"mtu: [\n":                           "line 1: did not find expected",
		"mtu: a: b\n":                        "weft.yaml: mapping values are not allowed",
		"mtu":                                "weft.yaml, line 1: there is no key with a value: want lines such as `mtu: 1300`",
		"\n# ours\n- mtu: 1300\n":            "weft.yaml, line 3: there is no key with a value",
		"? [mtu]\n: 1300\n":                  "a key is no text",
		"state-dir: \"\"\n":                  "line 1: state-dir: --state-dir: want the path of a folder",
		"run-dir: \"\"\n":                    "line 1: run-dir: --run-dir: want the path of a folder",
		"mtu: .nan\n":                        "unsupported value",
		"\"advertise\":\n  - nowhere\n":      "line 1: advertise: --advertise nowhere",
	} {
		_, _, err := configured(t, nil, []string{"--settings", settingsIn(t, text)})
		if err == nil || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), "weft.yaml") || exitCode(err) != ExitUsage || strings.Contains(err.Error(), "verysecret") ||
			strings.Contains(err.Error(), "\n") || internals.MatchString(err.Error()) || strings.Contains(err.Error(), " yaml: ") {
			t.Errorf("the file %q gives the error %v; want one line with file, line and key", text, err)
		}
	}
}

// Every setting can be in the file, and reading what launch saves gives the same values.
func TestSettingsSavedByLaunchAreReadAgain(t *testing.T) {
	args := []string{
		"--mtu=1300", "--nickname=a: \"#b\"", "--no-dns=false", "--dns-ttl=90s", "--advertise=192.0.2.1,2001:db8::1", "--ipalloc-exclude=", "--policy-exempt=none",
		"--ipalloc-range=10.1.0.0/16", "--dns-forward=corp=192.0.2.53", "--status-addr=", "--token=/dev/null",
	}
	path := settingsIn(t, "# a comment that stays\nmtu: 1400\nadvertise:\n- 192.0.2.7\n  # inside\ndns-domain: \"old.internal\"")
	given, _, err := configured(t, nil, append([]string{"--settings", path}, args...))
	if err != nil {
		t.Fatal(err)
	}
	flags := given.flagsOf(t, args)
	if err := saveSettings(path, givenSettings(flags, given.from)); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, gone := range []string{"token", "192.0.2.7", "1400", "settings:"} {
		if strings.Contains(string(text), gone) {
			t.Errorf("the saved file contains %s, want it removed:\n%s", gone, text)
		}
	}
	if !strings.Contains(string(text), "# a comment that stays\n") {
		t.Errorf("the saved file lacks the operator's comment, want it kept:\n%s", text)
	}
	again, _, err := configured(t, nil, []string{"--settings", path})
	if err != nil {
		t.Fatalf("reading the saved settings: %v\n%s", err, text)
	}
	values := map[string]string{}
	for _, s := range again.Settings {
		values[s.Name] = s.Value
	}
	for _, s := range given.Settings {
		if s.Origin == api.FromFlag && values[s.Name] != s.Value {
			t.Errorf("the setting %s was saved as %q, but read as %q; want the same value:\n%s", s.Name, s.Value, values[s.Name], text)
		}
	}
	if again.Exclude == nil || again.DNS.Domain != "old.internal" {
		t.Errorf("the saved settings were read as %+v; want an empty Exclude and old.internal", again.Options)
	}
}

// flagsOf returns flags as a command line sets them.
func (f *launchFlags) flagsOf(t *testing.T, args []string) *pflag.FlagSet {
	t.Helper()
	cmd := (&app{}).agent()
	if err := cmd.ParseFlags(args); err != nil {
		t.Fatal(err)
	}
	return cmd.Flags()
}

func TestResetRemovesOnlyASettingsFileThatLaunchMade(t *testing.T) {
	own := settingsIn(t, "mtu: 1300\n")
	made := filepath.Join(t.TempDir(), "weft.yaml")
	if err := saveSettings(made, map[string]string{"mtu": "1300"}); err != nil {
		t.Fatal(err)
	}
	for path, stays := range map[string]bool{own: true, made: false} {
		if err := removeSettings(path); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(path); (err == nil) != stays {
			t.Errorf("after removeSettings the file %s exists: %v, want %v", path, err == nil, stays)
		}
	}
}

// site/docs/settings.md describes each setting, with its default.
func TestSettingsAreDocumented(t *testing.T) {
	doc, err := os.ReadFile("../../site/docs/settings.md")
	if err != nil {
		t.Fatal(err)
	}
	list, err := settingsNow(filepath.Join(t.TempDir(), "none"))
	if err != nil || len(list) < 30 {
		t.Fatalf("got %d settings, error %v, want at least 30", len(list), err)
	}
	for _, s := range list {
		row := "| `" + s.Name + "` | "
		if s.Value != "" && s.Name != "nickname" { // the default nickname is this machine's name
			row += "`" + s.Value + "`"
		}
		if !strings.Contains(string(doc), "\n"+row) {
			t.Errorf("site/docs/settings.md has no row that begins with %s, want one for each setting", row)
		}
	}
	if rows := strings.Count(string(doc), "\n| `"); rows != len(list) {
		t.Errorf("site/docs/settings.md has %d rows, want %d, one for each setting", rows, len(list))
	}
}

func TestConfigViewShowsWhatLaunchWouldChange(t *testing.T) {
	for unit, want := range map[bool]int{true: 1, false: 2} { // a unit passes the same flags again; launch need not
		if got := changing([]api.Setting{{Name: "mtu", Value: "1300", Origin: api.FromFile}, {Name: "port", Value: "1", Origin: api.FromFlag}},
			[]api.Setting{{Name: "mtu", Value: "1400", Origin: api.FromFile}, {Name: "port", Value: "2", Origin: api.FromFile}}, unit); len(got) != want || got[0].Name != "mtu" {
			t.Errorf("unit %v: the settings that change at the next launch are %+v, want %d, mtu first", unit, got, want)
		}
	}
}
