// Package install owns the CNI plugin and its configuration in the folders of the container
// runtime. Once they are installed, the runtime attaches containers with Weft, so the caller
// installs them only after everything else is ready. The package never changes other configurations.
//
// An Installer remembers what it installed. It is safe for concurrent use.
package install

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/containernetworking/cni/pkg/version"

	"weft/prog/api"
	"weft/prog/state"
	"weft/router/problem"
)

// The names of the CNI configuration file, the plugin and the network.
const (
	ConflistFile = "10-weft.conflist"
	PluginName   = "weft-cni"
	networkName  = "weft"
)

// CNIVersion is the newest version of the CNI spec that the plugin supports.
const CNIVersion = "1.1.0"

// Config configures an Installer.
type Config struct {
	ConfDir string // empty: no configuration is written
	BinDir  string
	Chain   []string // plugins that the runtime calls after weft-cni if they are in BinDir
	// Plugin is the configuration of weft-cni: only the values that differ from its defaults.
	Plugin map[string]string
}

// Installer installs the plugin once, and again when a plugin of the chain appears.
type Installer struct {
	cfg  Config
	done atomic.Pointer[api.CNI] // the installed configuration; nil before the installation
}

// New returns an Installer. It does no I/O.
func New(cfg Config) *Installer { return &Installer{cfg: cfg} }

// chainable holds the plugins that may follow weft-cni: the capability with which the runtime
// configures each, and what does not work without the plugin.
var chainable = map[string]struct{ capability, lost string }{
	"portmap":   {"portMappings", "host ports"},
	"bandwidth": {"bandwidth", "limits of bandwidth"},
}

// ParseChain checks the names of plugins to chain after weft-cni.
func ParseChain(names []string) error {
	for _, name := range names {
		if chainable[name].capability == "" {
			return fmt.Errorf("%q: want portmap, bandwidth or both", name)
		}
	}
	return nil
}

// oldVersion is the version that old runtimes get (see conflist), and that plugins are assumed to
// support if they report no version. CNI 1.0 was released in 2021, and Debian 12's programs support it.
const oldVersion = "1.0.0"

// chain returns the plugins that the runtime calls, weft-cni first.
func (i *Installer) chain(ctx context.Context) (c api.CNI) {
	c.Version, c.Plugins = CNIVersion, []string{PluginName}
	for _, name := range i.cfg.Chain {
		path := filepath.Join(i.cfg.BinDir, name)
		if info, err := os.Stat(path); err != nil || !info.Mode().IsRegular() {
			c.Missing = append(c.Missing, name)
			continue
		}
		c.Plugins = append(c.Plugins, name)
		c.Version = older(c.Version, newestOf(ctx, path))
	}
	return c
}

// older returns the lower of two versions.
func older(a, b string) string {
	if ok, err := version.GreaterThan(a, b); err == nil && ok {
		return b
	}
	return a
}

// newestOf asks a plugin for its newest CNI version. It returns oldVersion for a plugin that cannot run
// here, for example in a container without the plugin's libraries.
func newestOf(ctx context.Context, path string) string {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, path)
	cmd.Env = []string{"CNI_COMMAND=VERSION", "CNI_ARGS=", "CNI_IFNAME=", "CNI_PATH=" + filepath.Dir(path), "CNI_CONTAINERID="}
	cmd.Stdin = strings.NewReader(`{"cniVersion": "` + oldVersion + `"}`)
	out, err := cmd.Output()
	if err != nil {
		return oldVersion
	}
	info, err := (&version.PluginDecoder{}).Decode(out)
	if err != nil || len(info.SupportedVersions()) == 0 {
		return oldVersion
	}
	newest := info.SupportedVersions()[0]
	for _, v := range info.SupportedVersions() {
		if older(v, newest) == newest {
			newest = v
		}
	}
	return newest
}

// conflist returns the CNI configuration.
func (i *Installer) conflist(c api.CNI) []byte {
	plugin := map[string]any{"type": PluginName, "capabilities": map[string]bool{"ips": true}}
	for key, value := range i.cfg.Plugin {
		plugin[key] = value
	}
	plugins := []any{plugin}
	for _, name := range c.Plugins[1:] {
		plugins = append(plugins, map[string]any{"type": name, "capabilities": map[string]bool{chainable[name].capability: true}})
	}
	// Runtimes with a libcni older than 1.2, such as Debian 12's containerd and Podman, only read
	// cniVersion, and refuse a version that is too new. Other runtimes use the newest version in
	// cniVersions that they support.
	versions := []string{c.Version}
	if older(oldVersion, c.Version) == oldVersion && c.Version != oldVersion {
		versions = []string{oldVersion, c.Version}
	}
	data, err := json.MarshalIndent(map[string]any{"cniVersion": versions[0], "cniVersions": versions, "name": networkName, "plugins": plugins}, "", "  ")
	if err != nil {
		panic(err) // a value with only strings can be encoded
	}
	return append(data, '\n')
}

// Install installs the plugin and then the configuration, unless they are installed already.
func (i *Installer) Install(ctx context.Context) error {
	if i.cfg.ConfDir == "" {
		return nil
	}
	if now := i.done.Load(); now != nil && !i.appeared(now.Missing) {
		return nil
	}
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("install CNI: %w", err)
	}
	plugin, err := os.ReadFile(filepath.Join(filepath.Dir(exe), PluginName))
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("install CNI: %s is not beside %s: put it there, or disable CNI with --cni-conf-dir=", PluginName, exe)
	}
	if err != nil {
		return fmt.Errorf("install CNI: %w", err)
	}
	if err := installFile(filepath.Join(i.cfg.BinDir, PluginName), plugin, 0o755); err != nil {
		return fmt.Errorf("install CNI: %w", err)
	}
	made := i.chain(ctx)
	made.Config = filepath.Join(i.cfg.ConfDir, ConflistFile)
	if err := installFile(made.Config, i.conflist(made), 0o644); err != nil {
		return fmt.Errorf("install CNI: %w", err)
	}
	i.done.Store(&made)
	return nil
}

// appeared reports whether one of the missing plugins has been installed meanwhile.
func (i *Installer) appeared(missing []string) bool {
	return slices.ContainsFunc(missing, func(name string) bool {
		_, err := os.Stat(filepath.Join(i.cfg.BinDir, name))
		return err == nil
	})
}

// Status returns the installed configuration, or nil.
func (i *Installer) Status() *api.CNI { return i.done.Load() }

// Problems reports missing plugins of the chain, and configurations that the runtime uses instead of
// Weft's.
func (i *Installer) Problems() (list []problem.Problem) {
	made := i.done.Load()
	if made == nil {
		return nil
	}
	for _, name := range made.Missing {
		list = append(list, problem.Problem{
			Reason: problem.Host, What: fmt.Sprintf("the CNI plugin %s is not in %s", name, i.cfg.BinDir), Effect: chainable[name].lost + " have no effect",
			Fix: "install the plugin in this folder (package containernetworking-plugins, or the CNI project's release); Weft then adds it to the chain",
		})
	}
	others, _ := os.ReadDir(i.cfg.ConfDir) // if it is unreadable, the runtime cannot read our file either
	for _, f := range others {
		switch filepath.Ext(f.Name()) {
		case ".conf", ".conflist", ".json":
			if f.Name() < ConflistFile && !i.callsWeft(f.Name()) {
				list = append(list, problem.Problem{
					Reason: problem.Host, What: fmt.Sprintf("%s comes before %s in %s", f.Name(), ConflistFile, i.cfg.ConfDir),
					Effect: "runtimes use the first file, which does not call Weft", Fix: "remove this file if Weft should be the network",
				})
			}
		}
	}
	return list
}

// multus is the part of Multus' configuration that selects the default network of pods
// (https://github.com/k8snetworkplumbingwg/multus-cni/blob/master/docs/configuration.md).
type multus struct {
	ClusterNetwork string `json:"clusterNetwork"` // the name of a network, or the path of its file
	Delegates      []struct {
		Name, Type string
		Plugins    []struct{ Type string }
	} `json:"delegates"` // the first delegate is the default network
}

// callsWeft reports whether another configuration calls Weft for every pod.
func (i *Installer) callsWeft(file string) bool {
	data, err := os.ReadFile(filepath.Join(i.cfg.ConfDir, file))
	if err != nil {
		return false
	}
	var conf struct {
		multus
		Plugins []multus `json:"plugins"`
	}
	if err := json.Unmarshal(data, &conf); err != nil {
		return false
	}
	return slices.ContainsFunc(append(conf.Plugins, conf.multus), func(m multus) bool {
		if m.ClusterNetwork != "" {
			return m.ClusterNetwork == networkName || filepath.Base(m.ClusterNetwork) == ConflistFile
		}
		if len(m.Delegates) == 0 {
			return false
		}
		first := m.Delegates[0]
		return first.Name == networkName || first.Type == PluginName || slices.ContainsFunc(first.Plugins, func(p struct{ Type string }) bool { return p.Type == PluginName })
	})
}

// installFile writes a file, unless it already has that content.
func installFile(path string, data []byte, mode os.FileMode) error {
	if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, data) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return state.WriteFile(path, data, mode)
}

// Remove removes the configuration, then the plugin, so that the runtime starts no more containers
// with Weft. It skips a folder with an empty name.
func Remove(confDir, binDir string) error {
	for _, file := range []struct{ dir, name string }{{confDir, ConflistFile}, {binDir, PluginName}} {
		if file.dir == "" {
			continue
		}
		if err := os.Remove(filepath.Join(file.dir, file.name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("reset: %w", err)
		}
	}
	return nil
}
