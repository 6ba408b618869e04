package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"weft/prog/lab"
)

const (
	referenceBin = "/usr/lib/cni" // of Debian's containernetworking-plugins
	cniRounds    = 30
)

// reference is the usual bridge with its usual address manager. It carries IPv4 only: with IPv6 it waits a second
// for duplicate address detection, and the comparison would be with that.
const reference = `{"cniVersion": "1.0.0", "name": "reference", "plugins": [{"type": "bridge", "bridge": "cni0", "isGateway": true,
	"ipam": {"type": "host-local", "dataDir": "/var/lib/weft/cni", "ranges": [[{"subnet": "10.98.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}`

// cni measures ADD and DEL through libcni, at two numbers of endpoints that are on the host already.
func cni(ctx context.Context, b *bench) (err error) {
	for _, plugin := range []string{"bridge", "host-local"} {
		if _, err := os.Stat(filepath.Join(referenceBin, plugin)); err != nil {
			return fmt.Errorf("%w: the comparison needs apt-get install containernetworking-plugins", err)
		}
	}
	ours, down, err := b.up(ctx, lab.Options{Name: "weft", Hosts: 1})
	if err != nil {
		return err
	}
	defer down(&err)
	theirs, down, err := b.up(ctx, lab.Options{Name: "plain", Hosts: 1, Bare: true})
	if err != nil {
		return err
	}
	defer down(&err)
	// In the host this is /var/lib/weft: on disk, as our own state is.
	if err := os.WriteFile(filepath.Join(theirs.StateDir("h1"), "reference.conflist"), []byte(reference), 0o600); err != nil {
		return err
	}
	sides := make([]*remoteRuntime, 2)
	for i, at := range []struct {
		l         *lab.Lab
		conf, bin string
	}{{ours, "/etc/cni/net.d", "/opt/cni/bin"}, {theirs, "/var/lib/weft", referenceBin}} {
		if sides[i], err = b.startRuntime(ctx, at.l, at.conf, at.bin); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, sides[i].stop()) }()
	}
	var rows []comparison
	attached := 0
	for _, n := range []int{1, 200} {
		for ; attached < n; attached++ {
			for _, side := range sides {
				if _, err := side.do("add"); err != nil {
					return err
				}
			}
		}
		add := comparison{what: fmt.Sprintf("ADD, %d attached already", n), atMost: 0.6}
		del := comparison{what: fmt.Sprintf("DEL, %d attached besides", n)}
		for range cniRounds {
			for _, side := range []struct {
				*remoteRuntime
				add, del *samples
			}{{sides[0], &add.ours, &del.ours}, {sides[1], &add.theirs, &del.theirs}} {
				if err := side.measure("add", side.add); err != nil {
					return err
				}
				if err := side.measure("del", side.del); err != nil {
					return err
				}
			}
		}
		rows = append(rows, add, del)
	}
	printComparisons(os.Stdout, "CNI", "ms", "bridge + host-local", rows...)
	return nil
}

// remoteRuntime is a container runtime that runs on a lab's host; see cniRuntime.
type remoteRuntime struct {
	commands *os.File
	answers  *bufio.Scanner
	done     chan error
}

func (b *bench) startRuntime(ctx context.Context, l *lab.Lab, conf, bin string) (*remoteRuntime, error) {
	in, commands, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	answers, out, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	r := &remoteRuntime{commands: commands, answers: bufio.NewScanner(answers), done: make(chan error, 1)}
	go func() { // ends with its input
		err := l.Attach(ctx, "h1", [3]*os.File{in, out, os.Stderr}, nil, b.self, "cni-runtime", conf, bin)
		r.done <- errors.Join(err, in.Close(), out.Close())
	}()
	return r, nil
}

// answer is one CNI call's outcome.
type answer struct {
	Milliseconds float64
	Error        string `json:",omitempty"`
}

func (r *remoteRuntime) do(verb string) (float64, error) {
	if _, err := fmt.Fprintln(r.commands, verb); err != nil {
		return 0, err
	}
	if !r.answers.Scan() {
		return 0, fmt.Errorf("%s: no answer: %w", verb, errors.Join(r.answers.Err(), <-r.done))
	}
	var a answer
	if err := json.Unmarshal(r.answers.Bytes(), &a); err != nil {
		return 0, err
	}
	if a.Error != "" {
		return 0, fmt.Errorf("%s: %s", verb, a.Error)
	}
	return a.Milliseconds, nil
}

func (r *remoteRuntime) measure(verb string, into *samples) error {
	ms, err := r.do(verb)
	into.add(ms)
	return err
}

func (r *remoteRuntime) stop() error {
	return errors.Join(r.commands.Close(), <-r.done)
}
