package agent

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"

	"weft/prog/api"
)

// fakePlugin is one that answers VERSION, or does not run.
func fakePlugin(t *testing.T, dir, name, script string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
}

// The configuration names the plugins that are there, and a version that all of them speak.
func TestChain(t *testing.T) {
	const newest = "#!/bin/sh\ntest $CNI_COMMAND = VERSION && cat >/dev/null && echo '{\"cniVersion\": \"1.0.0\", \"supportedVersions\": [\"0.4.0\", \"1.1.0\", \"1.0.0\"]}'\n"
	older := strings.Replace(newest, `"1.1.0", `, "", 1)
	for _, c := range []struct {
		name             string
		there            map[string]string
		asked            []string
		version          string
		plugins, missing []string
	}{
		{"alone", nil, nil, "1.1.0", []string{"weft-cni"}, nil},
		{"not asked for", map[string]string{"portmap": newest}, nil, "1.1.0", []string{"weft-cni"}, nil},
		{"new", map[string]string{"portmap": newest}, []string{"portmap"}, "1.1.0", []string{"weft-cni", "portmap"}, nil},
		{"one is older", map[string]string{"portmap": newest, "bandwidth": older}, []string{"portmap", "bandwidth"}, "1.0.0", []string{"weft-cni", "portmap", "bandwidth"}, nil},
		{"one is missing", map[string]string{"portmap": newest}, []string{"portmap", "bandwidth"}, "1.1.0", []string{"weft-cni", "portmap"}, []string{"bandwidth"}},
		{"does not run here", map[string]string{"portmap": "#!/no/such/interpreter\n"}, []string{"portmap"}, "1.0.0", []string{"weft-cni", "portmap"}, nil},
		{"answers nonsense", map[string]string{"portmap": "#!/bin/sh\necho {}\n"}, []string{"portmap"}, "1.0.0", []string{"weft-cni", "portmap"}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := Options{CNIBinDir: t.TempDir(), CNIChain: c.asked, StateDir: DefaultStateDir, RunDir: DefaultRunDir}
			for name, script := range c.there {
				fakePlugin(t, o.CNIBinDir, name, script)
			}
			made := o.chain(t.Context())
			if made.Version != c.version || !slices.Equal(made.Plugins, c.plugins) || !slices.Equal(made.Missing, c.missing) {
				t.Errorf("got %+v", made)
			}
			var conf struct {
				CNIVersion string // all that a libcni from before 1.2 reads
				Plugins    []struct {
					Type         string
					Capabilities map[string]bool
				}
			}
			if err := json.Unmarshal(o.conflist(made), &conf); err != nil || conf.CNIVersion != "1.0.0" || len(conf.Plugins) != len(c.plugins) {
				t.Fatalf("%v: %+v", err, conf)
			}
			if list, err := libcni.NetworkConfFromBytes(o.conflist(made)); err != nil || list.CNIVersion != c.version {
				t.Errorf("libcni takes version %v of CNI, want %s: %v", list, c.version, err)
			}
			for i, p := range conf.Plugins {
				if p.Type != c.plugins[i] || len(p.Capabilities) != 1 {
					t.Errorf("plugin %d: %+v", i, p)
				}
			}
		})
	}
}

// A configuration that the runtime takes before ours is told of, and so is a plugin that is
// not there; one that comes later joins the chain.
func TestCNIWarnings(t *testing.T) {
	a := &Agent{opts: Options{CNIConfDir: t.TempDir(), CNIBinDir: t.TempDir(), CNIChain: []string{"portmap"}}}
	for name, content := range map[string]string{
		"00-multus.conf":    `{"type": "multus", "name": "multus", "clusterNetwork": "other"}`,
		"01-multus.conf":    `{"type": "multus", "clusterNetwork": "weft", "confDir": "/etc/cni/net.d"}`,
		"01-shim.conf":      `{"type": "multus-shim", "clusterNetwork": "/host/etc/cni/net.d/10-weft.conflist"}`,
		"02-list.conflist":  `{"name": "m", "plugins": [{"type": "multus", "clusterNetwork": "/etc/cni/net.d/10-weft.conflist"}]}`,
		"03-delegates.conf": `{"type": "multus", "delegates": [{"name": "weft", "plugins": [{"type": "weft-cni"}, {"type": "portmap"}]}, {"type": "macvlan"}]}`,
		"04-second.conf":    `{"type": "multus", "delegates": [{"name": "other", "type": "bridge"}, {"type": "weft-cni"}]}`,
		"05-other.conflist": `{"name": "weft-not", "plugins": [{"type": "bridge"}]}`,
		"06-broken.conf":    "{",
		"20-later.conflist": "{}",
		"notes.txt":         "",
	} {
		fakePlugin(t, a.opts.CNIConfDir, name, content)
	}
	a.cni.Store(&api.CNI{Missing: []string{"portmap"}})
	_, warnings := a.reportCNI()
	text := strings.Join(warnings, "\n")
	want := []string{"host ports", "00-multus.conf", "04-second.conf", "05-other.conflist", "06-broken.conf"}
	for _, word := range want {
		if len(warnings) != len(want) || !strings.Contains(text, word) {
			t.Errorf("%s: warnings:\n%s", word, text)
		}
	}
	if a.opts.appeared([]string{"portmap"}) {
		t.Error("portmap appeared")
	}
	fakePlugin(t, a.opts.CNIBinDir, "portmap", "")
	if !a.opts.appeared([]string{"portmap"}) {
		t.Error("portmap did not appear")
	}
}
