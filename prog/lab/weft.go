package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sync/errgroup"

	"weft/prog/words"
)

// launchAll starts weft on all hosts. By default h1 founds the mesh, and the other hosts join the mesh
// with h1's token.
func (l *Lab) launchAll(ctx context.Context) error {
	hosts := l.Hosts()
	if l.opts.Together {
		token, err := l.newToken(ctx)
		if err != nil {
			return err
		}
		l.opts.Progress(fmt.Sprintf("launching weft on %s at once", words.Count(len(hosts), "host")))
		group, ctx := errgroup.WithContext(ctx) // all hosts start at once, since they may wait for each other
		for _, host := range hosts {
			group.Go(func() error { return l.Launch(ctx, host, token, l.others(host)...) })
		}
		return group.Wait()
	}
	l.opts.Progress("launching weft on h1")
	if err := l.Launch(ctx, hosts[0], ""); err != nil {
		return err
	}
	token, err := l.Token()
	if err != nil {
		return err
	}
	return l.eachHost(ctx, func(ctx context.Context, host string) error {
		if host == hosts[0] {
			return nil
		}
		l.opts.Progress("launching weft on " + host)
		return l.Launch(ctx, host, token, hosts[0])
	})
}

func (l *Lab) others(host string) []string {
	var all []string
	for _, h := range l.Hosts() {
		if h != host {
			all = append(all, h)
		}
	}
	return all
}

// Launch runs weft launch on a host, with the token and the underlay addresses of the target hosts.
// Without token and targets, the host founds a mesh or uses its stored state.
func (l *Lab) Launch(ctx context.Context, host, token string, targets ...string) error {
	args := append([]string{"weft", "launch"}, l.opts.Launch...)
	if token != "" {
		args = append(args, "--token", "-")
	}
	for _, t := range targets {
		addr, err := l.UnderlayAddr(t)
		if err != nil {
			return err
		}
		args = append(args, addr.String())
	}
	if _, err := l.Exec(ctx, host, strings.NewReader(token), args...); err != nil {
		return fmt.Errorf("lab: launch weft on %s: %w%s", host, err, l.logEnd(host))
	}
	return nil
}

// logEnd returns the end of an agent's log for an error, since the log may be deleted with the lab.
func (l *Lab) logEnd(host string) string {
	const lines = 10
	data, err := os.ReadFile(filepath.Join(l.StateDir(host), "agent.log"))
	if err != nil || len(data) == 0 {
		return ""
	}
	all := strings.Split(strings.TrimSpace(string(data)), "\n")
	return "\nThe end of the agent's log:\n  " + strings.Join(all[max(0, len(all)-lines):], "\n  ")
}

// Start launches weft on a host that was stopped, killed or rebooted, from its stored state.
func (l *Lab) Start(ctx context.Context, host string) error {
	if err := l.checkHost(host); err != nil {
		return err
	}
	return l.Launch(ctx, host, "")
}

// Stop runs weft stop on a host. Its data path, endpoints and guard stay.
func (l *Lab) Stop(ctx context.Context, host string) error {
	if err := l.checkHost(host); err != nil {
		return err
	}
	_, err := l.Exec(ctx, host, nil, "weft", "stop")
	return err
}

// Token returns the token with which other hosts join h1's mesh.
func (l *Lab) Token() (string, error) {
	data, err := os.ReadFile(filepath.Join(l.StateDir("h1"), "secret"))
	if err != nil {
		return "", fmt.Errorf("lab: h1 has no token yet: %w", err)
	}
	return strings.TrimSpace(string(data)), nil
}

// newToken makes a token for a new mesh.
func (l *Lab) newToken(ctx context.Context) (string, error) {
	out, err := l.Exec(ctx, "h1", nil, "weft", "token")
	return strings.TrimSpace(out), err
}

func (l *Lab) plugAll(ctx context.Context, host string) error {
	for i := range l.opts.Containers {
		if _, err := l.Plug(ctx, fmt.Sprintf("%s/c%d", host, i+1)); err != nil {
			return err
		}
	}
	return nil
}

// Plug attaches a container through libcni and weft-cni, run on its host, and returns its addresses.
// In the network it has its own name, in a namespace with its host's name.
func (l *Lab) Plug(ctx context.Context, container string) ([]string, error) {
	return l.PlugAs(ctx, container, identityOf(container))
}

// PlugAs is like Plug, but with another identity of the container.
func (l *Lab) PlugAs(ctx context.Context, container string, as Identity) ([]string, error) {
	out, err := l.cni(ctx, "add", container, as)
	if err != nil {
		return nil, fmt.Errorf("lab: plug %s: %w", container, err)
	}
	var p plugged
	if err := json.Unmarshal([]byte(out), &p); err != nil {
		return nil, fmt.Errorf("lab: plug %s: %w", container, err)
	}
	if p.ResolvConf != "" {
		if _, err := l.Exec(ctx, container, strings.NewReader(p.ResolvConf), "sh", "-c", "cat >/etc/resolv.conf"); err != nil {
			return nil, fmt.Errorf("lab: plug %s: %w", container, err)
		}
	}
	return p.Addresses, nil
}

// Unplug undoes Plug. It is no error if the container is not attached.
func (l *Lab) Unplug(ctx context.Context, container string) error {
	if _, err := l.cni(ctx, "del", container, identityOf(container)); err != nil {
		return fmt.Errorf("lab: unplug %s: %w", container, err)
	}
	return nil
}

func (l *Lab) cni(ctx context.Context, operation, container string, as Identity) (string, error) {
	netns, err := l.NetNS(ctx, container)
	if err != nil {
		return "", err
	}
	identity, err := json.Marshal(as)
	if err != nil {
		return "", err
	}
	host, _, _ := strings.Cut(container, "/")
	return l.Exec(ctx, host, nil, "weft", "lab", "cni", operation, ContainerID(container), netns, string(identity))
}

const idPrefix = "lab-"

// ContainerID returns the id of a container in CNI.
func ContainerID(container string) string { return idPrefix + strings.ReplaceAll(container, "/", "-") }

// NetNS returns the path of a container's network namespace on its host.
func (l *Lab) NetNS(ctx context.Context, container string) (string, error) {
	host, name, _ := strings.Cut(container, "/")
	info, err := l.node(host).Info(ctx)
	if err != nil {
		return "", l.explain(host, err)
	}
	for _, c := range info.Children {
		if c.Name == name {
			return fmt.Sprintf("/proc/%d/ns/net", c.Pid), nil
		}
	}
	return "", fmt.Errorf("lab: no container %q on %s: see weft lab status", name, host)
}
