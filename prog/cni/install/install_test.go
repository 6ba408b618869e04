package install

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

// write makes a file: a plugin, or a configuration.
func write(t *testing.T, dir, name, content string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o755); err != nil {
		t.Fatal(err)
	}
}

// modern is a plugin that supports the newest version of CNI.
const modern = "#!/bin/sh\ntest $CNI_COMMAND = VERSION && cat >/dev/null && echo '{\"cniVersion\": \"1.0.0\", \"supportedVersions\": [\"0.4.0\", \"1.1.0\", \"1.0.0\"]}'\n"

func TestConflistNamesInstalledPluginsAndACommonVersion(t *testing.T) {
	older := strings.Replace(modern, `"1.1.0", `, "", 1)
	for name, c := range map[string]struct {
		installed        map[string]string
		asked            []string
		version          string
		plugins, missing []string
	}{
		"weft-cni alone":             {nil, nil, "1.1.0", []string{"weft-cni"}, nil},
		"not configured":             {map[string]string{"portmap": modern}, nil, "1.1.0", []string{"weft-cni"}, nil},
		"new":                        {map[string]string{"portmap": modern}, []string{"portmap"}, "1.1.0", []string{"weft-cni", "portmap"}, nil},
		"one plugin is older":        {map[string]string{"portmap": modern, "bandwidth": older}, []string{"portmap", "bandwidth"}, "1.0.0", []string{"weft-cni", "portmap", "bandwidth"}, nil},
		"one plugin is missing":      {map[string]string{"portmap": modern}, []string{"portmap", "bandwidth"}, "1.1.0", []string{"weft-cni", "portmap"}, []string{"bandwidth"}},
		"a plugin does not run here": {map[string]string{"portmap": "#!/no/such/interpreter\n"}, []string{"portmap"}, "1.0.0", []string{"weft-cni", "portmap"}, nil},
		"a plugin has no version":    {map[string]string{"portmap": "#!/bin/sh\necho {}\n"}, []string{"portmap"}, "1.0.0", []string{"weft-cni", "portmap"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			i := New(Config{BinDir: t.TempDir(), Chain: c.asked})
			for plugin, script := range c.installed {
				write(t, i.cfg.BinDir, plugin, script)
			}
			made := i.chain(t.Context())
			if made.Version != c.version || !slices.Equal(made.Plugins, c.plugins) || !slices.Equal(made.Missing, c.missing) {
				t.Errorf("the chain is %+v; want the plugins %v, the version %s and the missing plugins %v", made, c.plugins, c.version, c.missing)
			}
			var conf struct {
				CNIVersion string // the only version that libcni before 1.2 reads
				Plugins    []struct {
					Type         string
					Capabilities map[string]bool
				}
			}
			if err := json.Unmarshal(i.conflist(made), &conf); err != nil || conf.CNIVersion != "1.0.0" || len(conf.Plugins) != len(c.plugins) {
				t.Fatalf("the conflist is %+v, error %v; want cniVersion 1.0.0 and all plugins", conf, err)
			}
			if list, err := libcni.NetworkConfFromBytes(i.conflist(made)); err != nil || list.CNIVersion != c.version {
				t.Errorf("libcni reads the configuration %+v, error %v; want version %s of CNI", list, err, c.version)
			}
			for n, p := range conf.Plugins {
				if p.Type != c.plugins[n] || len(p.Capabilities) != 1 {
					t.Errorf("plugin %d of the conflist is %+v; want its type and one capability", n, p)
				}
			}
		})
	}
}

func TestOnlyKnownPluginsCanBeChained(t *testing.T) {
	if err := ParseChain([]string{"portmap", "bandwidth"}); err != nil {
		t.Error(err)
	}
	if err := ParseChain([]string{"portmap", "tuning"}); err == nil || !strings.Contains(err.Error(), "want portmap, bandwidth") {
		t.Error(err)
	}
}

func TestCNIConfigurationsBeforeWeftsAreReportedAsProblems(t *testing.T) {
	i := New(Config{ConfDir: t.TempDir(), BinDir: t.TempDir()})
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
		write(t, i.cfg.ConfDir, name, content)
	}
	if list := i.Problems(); len(list) != 0 {
		t.Errorf("before the installation, the problems are %v; want none", list)
	}
	i.done.Store(&api.CNI{Missing: []string{"portmap"}})
	list := i.Problems()
	want := []string{"host ports", "00-multus.conf", "04-second.conf", "05-other.conflist", "06-broken.conf"}
	if len(list) != len(want) {
		t.Fatalf("got %d problems, want %d: %v", len(list), len(want), list)
	}
	for n, word := range want {
		if !strings.Contains(list[n].String(), word) || list[n].Fix == "" {
			t.Errorf("problem %d is %v; want it to name %s and have a fix", n, list[n], word)
		}
	}
}

// beside puts a weft-cni beside the test's program, where Install looks for it.
func beside(t *testing.T) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Dir(exe)
	write(t, dir, PluginName, "the plugin")
	t.Cleanup(func() { os.Remove(filepath.Join(dir, PluginName)) })
}

func TestCNIPluginInstalledLaterJoinsTheChain(t *testing.T) {
	beside(t)
	i := New(Config{ConfDir: filepath.Join(t.TempDir(), "net.d"), BinDir: filepath.Join(t.TempDir(), "bin"), Chain: []string{"portmap"}})
	if i.Status() != nil {
		t.Error("before Install, Status returns a configuration; want none")
	}
	install := func(plugins ...string) {
		t.Helper()
		if err := i.Install(t.Context()); err != nil {
			t.Fatal(err)
		}
		if s := i.Status(); s == nil || !slices.Equal(s.Plugins, plugins) || s.Config != filepath.Join(i.cfg.ConfDir, ConflistFile) {
			t.Errorf("the status is %+v; want the plugins %v and the path of the conflist", s, plugins)
		}
	}
	install(PluginName)
	if data, err := os.ReadFile(filepath.Join(i.cfg.BinDir, PluginName)); err != nil || string(data) != "the plugin" {
		t.Errorf("the installed plugin has the content %q, error %v; want the content of weft-cni beside the test's program", data, err)
	}
	before := i.Status()
	if install(PluginName); i.Status() != before {
		t.Error("the configuration was written again although no plugin appeared, want it kept")
	}
	write(t, i.cfg.BinDir, "portmap", modern)
	install(PluginName, "portmap")
	if list := i.Problems(); len(list) != 0 {
		t.Errorf("the problems are %v; want none", list)
	}
}

func TestInstallWithoutTheWeftCNIPluginFails(t *testing.T) {
	i := New(Config{ConfDir: t.TempDir(), BinDir: t.TempDir()})
	err := i.Install(t.Context())
	if err == nil || !strings.Contains(err.Error(), "weft-cni is not beside") || !strings.Contains(err.Error(), "--cni-conf-dir=") || i.Status() != nil {
		t.Errorf("Install without weft-cni returned %v, status %+v; want an error with the fix, and no status", err, i.Status())
	}
	if err := New(Config{}).Install(t.Context()); err != nil {
		t.Errorf("Install without a folder returned %v; want no error", err)
	}
}

func TestRemoveDeletesTheCNIConfigurationAndThePlugin(t *testing.T) {
	conf, bin := t.TempDir(), t.TempDir()
	write(t, conf, ConflistFile, "{}")
	write(t, conf, "20-other.conflist", "{}")
	write(t, bin, PluginName, "")
	for range 2 { // the second time, nothing is left to remove
		if err := Remove(conf, bin); err != nil {
			t.Fatal(err)
		}
	}
	left, _ := filepath.Glob(filepath.Join(conf, "*"))
	if plugins, _ := filepath.Glob(filepath.Join(bin, "*")); len(left) != 1 || filepath.Base(left[0]) != "20-other.conflist" || len(plugins) != 0 {
		t.Errorf("Remove left the configurations %v and the plugins %v; want only 20-other.conflist", left, plugins)
	}
}
