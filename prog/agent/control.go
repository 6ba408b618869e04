package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"weft/mesh/peer"
	"weft/prog/api"
)

// Ready reports why this host cannot attach containers yet.
func (a *Agent) Ready(context.Context) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.notReady != "" {
		return &api.Error{Code: api.CodeNotReady, Message: "not ready: " + a.notReady}
	}
	return nil
}

// Targets changes whom this peer joins.
func (a *Agent) Targets(_ context.Context, req api.TargetsRequest) error {
	if err := a.mesh.Forget(req.Forget); err != nil {
		return err
	}
	if len(req.Connect) == 0 && !req.Replace {
		return nil
	}
	if err := a.mesh.Connect(req.Connect, req.Replace); err != nil {
		return &api.Error{Code: api.CodeBadRequest, Message: err.Error()}
	}
	return nil
}

// Expose lets the underlay reach containers through this host, or stops that.
func (a *Agent) Expose(_ context.Context, on bool) error {
	a.mu.Lock()
	next := a.settings
	next.Exposed = on
	a.mu.Unlock()
	if err := a.store.SaveSettings(next); err != nil {
		return err
	}
	a.mu.Lock()
	a.settings = next
	a.mu.Unlock()
	a.changed()
	return nil
}

// Stop ends the agent. The data path stays; with leave, this peer tells the mesh
// that it leaves for good.
func (a *Agent) Stop(_ context.Context, leave bool) error {
	if leave {
		a.mesh.Farewell(peer.Left)
	}
	a.stop()
	return nil
}

// The CNI configuration, and the plugin that it names.
const (
	ConflistFile = "10-weft.conflist"
	PluginName   = "weft-cni"
)

// conflist is the CNI configuration. It names what is not where weft-cni looks for it.
func (o Options) conflist() []byte {
	plugin := map[string]string{"type": PluginName}
	if socket := o.socket(); socket != api.DefaultSocket {
		plugin["socket"] = socket
	}
	if o.StateDir != DefaultStateDir {
		plugin["stateDir"] = o.StateDir
	}
	data, err := json.MarshalIndent(map[string]any{"cniVersion": "1.1.0", "name": "weft", "plugins": []any{plugin}}, "", "  ")
	if err != nil {
		panic(err) // strings only
	}
	return append(data, '\n')
}

// installCNI puts the plugin and then the configuration where the container
// runtime looks for them, if they are not there already.
func (a *Agent) installCNI() error {
	if a.opts.CNIConfDir == "" || a.installed {
		return nil
	}
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("install CNI: %w", err)
	}
	plugin, err := os.ReadFile(filepath.Join(filepath.Dir(exe), PluginName))
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("install CNI: %s is not beside %s: put it there, or use --cni-conf-dir= to do without CNI", PluginName, exe)
	}
	if err != nil {
		return fmt.Errorf("install CNI: %w", err)
	}
	if err := installFile(filepath.Join(a.opts.CNIBinDir, PluginName), plugin, 0o755); err != nil {
		return fmt.Errorf("install CNI: %w", err)
	}
	if err := installFile(filepath.Join(a.opts.CNIConfDir, ConflistFile), a.opts.conflist(), 0o644); err != nil {
		return fmt.Errorf("install CNI: %w", err)
	}
	a.installed = true
	return nil
}

// installFile writes a file unless it has that content already.
func installFile(path string, data []byte, mode os.FileMode) error {
	if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, data) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return writeFile(path, data, mode)
}
