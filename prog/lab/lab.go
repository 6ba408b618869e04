// Package lab builds hosts on one machine, for the demo and for integration tests.
//
// A host is a set of namespaces with its own processes, hostname, mounts and eth0 on a shared bridge, the
// underlay. It runs the real weft, and the real weft-cni attaches its containers through libcni. One process
// holds all of it (see package node), with one state directory:
//
//	/tmp/weft-lab-UID/NAME/
//	    lab.json        what was asked for
//	    lock            held by the underlay's node while the lab lives
//	    nodes.log       what the nodes wrote; empty in a healthy lab
//	    h1.sock …       the nodes' sockets
//	    h1/lib          /var/lib/weft of h1: survives a reboot
//
// The state of a running lab is always read from its nodes, never cached. Any process of the same
// user may Open a lab. Unless documented otherwise, methods are safe for concurrent use, also from
// several processes. The package changes nothing on the machine outside the state directory.
package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"weft/prog/lab/node"
	"weft/prog/words"
)

// Options configures a lab. The zero value means three hosts without containers, on an underlay of
// both families, named "default".
type Options struct {
	Name       string
	Hosts      int      // number of hosts; 0: three
	Containers int      // number of containers on every host
	Underlay   string   // address families: "4", "6" or "46" (the default)
	Together   bool     // start all agents at once, each with the other hosts as targets
	Launch     []string `json:",omitempty"` // additional flags of weft launch
	Bare       bool     // namespaces only: weft is not started, and containers have no eth0
	Bin        string   // directory of weft and weft-cni; default: the directory of the running program

	// Progress, if set, is called with short status messages, also concurrently.
	Progress func(string) `json:"-"`
}

// MaxHosts is the limit of an underlay address's last byte, below the gateway.
const MaxHosts = 200

var validName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,31}$`)

func (o Options) withDefaults() (Options, error) {
	if o.Name == "" {
		o.Name = "default"
	}
	if o.Hosts == 0 {
		o.Hosts = 3
	}
	if o.Underlay == "" {
		o.Underlay = "46"
	}
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	if o.Bin == "" {
		exe, err := os.Executable()
		if err != nil {
			return o, err
		}
		o.Bin = filepath.Dir(exe)
	}
	switch {
	case !validName.MatchString(o.Name):
		return o, fmt.Errorf("lab: bad name %q: use up to 32 of a-z, 0-9 and -", o.Name)
	case o.Hosts < 1 || o.Hosts > MaxHosts:
		return o, fmt.Errorf("lab: %d hosts: between 1 and %d are possible", o.Hosts, MaxHosts)
	case o.Containers < 0 || o.Containers > MaxHosts:
		return o, fmt.Errorf("lab: %d containers: between 0 and %d per host are possible", o.Containers, MaxHosts)
	case o.Underlay != "4" && o.Underlay != "6" && o.Underlay != "46":
		return o, fmt.Errorf("lab: underlay %q: use 4, 6 or 46", o.Underlay)
	}
	return o, nil
}

// Lab is a running lab.
type Lab struct {
	opts Options
	dir  string
}

// Up makes a lab. If weft fails in it, Up returns both the running lab, for inspection, and the
// error. After any other error nothing is left.
func Up(ctx context.Context, o Options) (*Lab, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	if err := preflight(o); err != nil {
		return nil, err
	}
	l := &Lab{opts: o, dir: stateDir(o.Name)}
	if err := l.start(ctx); err != nil {
		return nil, err
	}
	if err := l.addHosts(ctx); err != nil {
		return nil, errors.Join(err, l.Down(context.WithoutCancel(ctx)))
	}
	if o.Bare {
		return l, nil
	}
	if err := l.launchAll(ctx); err != nil {
		return l, err
	}
	o.Progress("plugging containers")
	return l, l.eachHost(ctx, l.plugAll)
}

// Open returns a running lab.
func Open(name string) (*Lab, error) {
	o, err := Options{Name: name}.withDefaults()
	if err != nil {
		return nil, err
	}
	name = o.Name
	dir := stateDir(name)
	data, err := os.ReadFile(filepath.Join(dir, "lab.json"))
	pid, lockErr := holder(dir)
	switch {
	case err != nil && !errors.Is(err, os.ErrNotExist):
		return nil, fmt.Errorf("lab: %w", err)
	case err != nil:
		return nil, fmt.Errorf("lab: no lab %q is up: start one with weft lab up --name %s", name, name)
	case lockErr != nil:
		return nil, lockErr
	case pid == 0:
		return nil, fmt.Errorf("lab: %s is left from a lab that crashed: remove it with weft lab down --name %s", dir, name)
	}
	if err := json.Unmarshal(data, &o); err != nil {
		return nil, fmt.Errorf("lab: %s/lab.json: %w: remove the lab with weft lab down --name %s", dir, err, name)
	}
	return &Lab{opts: o, dir: dir}, nil
}

// start makes the state directory and the underlay.
func (l *Lab) start(ctx context.Context) error {
	base, err := lockBase()
	if err != nil {
		return err
	}
	defer base.Close() // from here on, the root node's own lock protects the directory
	switch pid, err := holder(l.dir); {
	case err != nil:
		return err
	case pid != 0:
		return fmt.Errorf("lab: %q is already up: use it, or run weft lab down --name %s", l.opts.Name, l.opts.Name)
	}
	if _, err := os.Stat(l.dir); err == nil {
		l.opts.Progress("removing a lab that crashed: " + l.dir)
		if _, err := remove(ctx, l.dir); err != nil {
			return err
		}
	}
	if err := l.startRoot(); err != nil {
		return errors.Join(fmt.Errorf("lab: %w", err), os.RemoveAll(l.dir))
	}
	return nil
}

func (l *Lab) startRoot() error {
	if err := os.Mkdir(l.dir, 0o700); err != nil {
		return err
	}
	data, err := json.MarshalIndent(l.opts, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(l.dir, "lab.json"), data, 0o600); err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(l.dir, "nodes.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	root, err := node.StartRoot(filepath.Join(l.opts.Bin, "weft"), node.Config{
		Role: node.Underlay, Name: UnderlayName, Bin: l.opts.Bin,
		Socket: l.socket(UnderlayName), Lock: filepath.Join(l.dir, lockFile),
	}, log)
	if err != nil {
		return err
	}
	go func() { _, _ = root.Wait() }() // reaps the root, and ends with the lab or this process
	return nil
}

func (l *Lab) addHosts(ctx context.Context) error {
	l.opts.Progress(fmt.Sprintf("making %s with %s each", words.Count(l.opts.Hosts, "host"), words.Count(l.opts.Containers, "container")))
	return l.eachHost(ctx, l.boot)
}

// boot makes a host and its containers, without weft.
func (l *Lab) boot(ctx context.Context, host string) error {
	up, err := l.currentUplink(ctx, host)
	if err != nil {
		return err
	}
	cfg, err := l.hostConfig(host, up)
	if err != nil {
		return err
	}
	for _, dir := range []string{cfg.StateDir, cfg.Settings, cfg.Scratch} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("lab: %w", err)
		}
	}
	if err := l.node(UnderlayName).Spawn(ctx, cfg); err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	for i := range l.opts.Containers {
		if err := l.AddContainer(ctx, fmt.Sprintf("%s/c%d", host, i+1)); err != nil {
			return err
		}
	}
	return nil
}

// AddContainer makes the namespaces of another container, HOST/NAME. Plug attaches it to the network.
func (l *Lab) AddContainer(ctx context.Context, container string) error {
	host, name, ok := strings.Cut(container, "/")
	if !ok || !validName.MatchString(name) {
		return fmt.Errorf("lab: bad container %q: use HOST/NAME, such as h1/c3", container)
	}
	err := l.node(host).Spawn(ctx, node.Config{
		Role: node.Container, Name: name, Bin: l.opts.Bin, Socket: l.socket(container), Names: localNames,
	})
	if err != nil {
		return fmt.Errorf("lab: add container %s: %w", container, err)
	}
	return nil
}

// RemoveContainer kills a container like a crash: without CNI DEL.
func (l *Lab) RemoveContainer(ctx context.Context, container string) error {
	host, name, _ := strings.Cut(container, "/")
	return l.node(host).End(ctx, name)
}

// Hosts returns the names of the lab's hosts.
func (l *Lab) Hosts() []string {
	names := make([]string, l.opts.Hosts)
	for i := range names {
		names[i] = fmt.Sprintf("h%d", i+1)
	}
	return names
}

// eachHost runs f for all hosts, a few at a time, since the number of processors is limited.
func (l *Lab) eachHost(ctx context.Context, f func(context.Context, string) error) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(4)
	for _, host := range l.Hosts() {
		group.Go(func() error { return f(ctx, host) })
	}
	return group.Wait()
}

// Link cuts the underlay between two hosts, or restores it with up. Frames of established connections
// are dropped too. All other links stay. If a host is behind NAT, the cut is at its NAT, unless the other
// host is inside too.
func (l *Lab) Link(ctx context.Context, a, b string, up bool) error {
	for _, host := range []string{a, b} {
		if err := l.checkHost(host); err != nil {
			return err
		}
	}
	cut, err := l.cutBetween(ctx, a, b)
	if err != nil {
		return err
	}
	if err := l.node(UnderlayName).SetCut(ctx, cut, !up); err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	return nil
}

// Kill sends SIGKILL to a host's processes of one kind, "agent" or "datapath".
func (l *Lab) Kill(ctx context.Context, host, kind string) error {
	if err := l.checkHost(host); err != nil {
		return err
	}
	pids, err := l.node(host).Signal(ctx, kind, unix.SIGKILL)
	if err != nil {
		return fmt.Errorf("lab: kill the %s of %s: %w", kind, host, err)
	}
	if len(pids) == 0 {
		return fmt.Errorf("lab: no weft %s runs on %s: see weft lab status", kind, host)
	}
	return nil
}

// PowerOff kills everything on a host at once, like a power failure. Only /var/lib/weft stays.
func (l *Lab) PowerOff(ctx context.Context, host string) error {
	if err := l.checkHost(host); err != nil {
		return err
	}
	return l.node(UnderlayName).End(ctx, host)
}

// Reboot powers a host off and on. A NAT stays. Unless the lab is bare, weft starts again from its stored state,
// and containers are made and attached again, as a container runtime does.
func (l *Lab) Reboot(ctx context.Context, host string) error {
	if err := l.PowerOff(ctx, host); err != nil {
		return err
	}
	if err := l.boot(ctx, host); err != nil {
		return err
	}
	if l.opts.Bare {
		return nil
	}
	if err := l.Start(ctx, host); err != nil {
		return err
	}
	return l.plugAll(ctx, host)
}

func (l *Lab) checkHost(host string) error {
	if _, err := hostNumber(host); err != nil {
		return err
	}
	if slices.Contains(l.Hosts(), host) {
		return nil
	}
	return fmt.Errorf("lab: no host %s: there are h1 to h%d", host, l.opts.Hosts)
}
