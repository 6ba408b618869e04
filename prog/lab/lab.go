// Package lab builds hosts on one machine: the demo, and what integration tests run on.
//
// A host is a set of namespaces with its own processes, hostname, mounts and eth0 on a shared bridge, the
// underlay. It runs the real weft, and its containers are plugged in by the real weft-cni through libcni. All
// of it hangs on one process (package node says how), in one state directory:
//
//	/tmp/weft-lab-UID/NAME/
//	    lab.json        what was asked for
//	    lock            held by the underlay's node while the lab lives
//	    nodes.log       what the nodes wrote; empty in a healthy lab
//	    h1.sock …       the nodes' sockets
//	    h1/lib          /var/lib/weft of h1: survives a reboot
//
// Everything about a running lab is read from its nodes, nothing is remembered that could be out of date: any
// process of the same user may Open a lab, and methods are safe for concurrent use, by several processes too.
// Exceptions are named. The package changes nothing on the machine outside of the state directory.
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

// Options is what a lab is made of. The zero value is three hosts without containers on an underlay of both
// families, named "default".
type Options struct {
	Name       string
	Hosts      int      // default 3
	Containers int      // on every host
	Underlay   string   // "4", "6" or "46", the default
	Together   bool     // start all agents at once, each with the others as targets
	Launch     []string `json:",omitempty"` // further flags of weft launch
	Bare       bool     // namespaces only: no weft is started, containers have no eth0
	Bin        string   // directory of weft and weft-cni; default: the running program's

	// Progress, if set, is told what is being done, in short lines. It is called concurrently.
	Progress func(string) `json:"-"`
}

// MaxHosts is bounded by the last byte of an underlay address, below the gateway.
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

// Up makes a lab. If weft fails in it, the lab is left running for a look at it, and returned together with
// the error; else an error means that nothing is left.
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

// Open returns a lab that is already up.
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
		return nil, fmt.Errorf("lab: %s is left over from a lab that died: clean up with weft lab down --name %s", dir, name)
	}
	if err := json.Unmarshal(data, &o); err != nil {
		return nil, fmt.Errorf("lab: %s/lab.json: %w: take the lab down with weft lab down --name %s", dir, err, name)
	}
	return &Lab{opts: o, dir: dir}, nil
}

// start makes the state directory and the underlay.
func (l *Lab) start(ctx context.Context) error {
	base, err := lockBase()
	if err != nil {
		return err
	}
	defer base.Close() // from here on the root node's own lock guards the directory
	switch pid, err := holder(l.dir); {
	case err != nil:
		return err
	case pid != 0:
		return fmt.Errorf("lab: %q is up already: use it, or weft lab down --name %s", l.opts.Name, l.opts.Name)
	}
	if _, err := os.Stat(l.dir); err == nil {
		l.opts.Progress("cleaning up after a lab that died: " + l.dir)
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
	go func() { _, _ = root.Wait() }() // ends with the lab, or with this process; else the root stays a zombie
	return nil
}

func (l *Lab) addHosts(ctx context.Context) error {
	l.opts.Progress(fmt.Sprintf("making %s with %s each", words.Count(l.opts.Hosts, "host"), words.Count(l.opts.Containers, "container")))
	return l.eachHost(ctx, l.boot)
}

// boot makes a host and its containers, without weft.
func (l *Lab) boot(ctx context.Context, host string) error {
	cfg, err := l.hostConfig(host)
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

// AddContainer makes the namespaces of one more container, HOST/NAME, without a network; see Plug.
func (l *Lab) AddContainer(ctx context.Context, container string) error {
	host, name, ok := strings.Cut(container, "/")
	if !ok || !validName.MatchString(name) {
		return fmt.Errorf("lab: bad container %q: it is called HOST/NAME, like h1/c3", container)
	}
	err := l.node(host).Spawn(ctx, node.Config{
		Role: node.Container, Name: name, Bin: l.opts.Bin, Socket: l.socket(container), Names: localNames,
	})
	if err != nil {
		return fmt.Errorf("lab: add container %s: %w", container, err)
	}
	return nil
}

// RemoveContainer ends a container as a crash would: without telling CNI.
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

// eachHost runs f for all hosts, several at a time: more would only fight for the processors.
func (l *Lab) eachHost(ctx context.Context, f func(context.Context, string) error) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(4)
	for _, host := range l.Hosts() {
		group.Go(func() error { return f(ctx, host) })
	}
	return group.Wait()
}

// Link cuts the underlay between two hosts, or heals it with up. Frames of established flows are dropped at
// once as well. Everything else goes on.
func (l *Lab) Link(ctx context.Context, a, b string, up bool) error {
	for _, host := range []string{a, b} {
		if err := l.checkHost(host); err != nil {
			return err
		}
	}
	if err := l.node(UnderlayName).SetCut(ctx, node.Cut{A: a, B: b}, !up); err != nil {
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

// PowerOff ends everything on a host at once, as pulling its plug would. Only /var/lib/weft stays.
func (l *Lab) PowerOff(ctx context.Context, host string) error {
	if err := l.checkHost(host); err != nil {
		return err
	}
	return l.node(UnderlayName).End(ctx, host)
}

// Reboot powers a host off and on. Unless the lab is bare, weft starts again from its persisted state, and the
// containers are made and plugged anew, as a container runtime would.
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
