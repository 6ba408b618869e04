package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Node is the client's side of a running node; its value is the path of the node's socket.
type Node string

// CommandError is returned for a command that ran and did not succeed. Code is what a shell would report: the
// command's exit code, or 128 plus the number of the signal that ended it.
type CommandError struct {
	Code   int
	Signal unix.Signal // 0 unless a signal ended it
	Argv   []string
	Stderr string // the end of it, if it was captured
}

func (e *CommandError) Error() string {
	var b strings.Builder
	if e.Signal != 0 {
		fmt.Fprintf(&b, "%s: %s", strings.Join(e.Argv, " "), unix.SignalName(e.Signal))
	} else {
		fmt.Fprintf(&b, "%s: exit code %d", strings.Join(e.Argv, " "), e.Code)
	}
	if s := strings.TrimSpace(e.Stderr); s != "" {
		b.WriteString(": " + s)
	}
	return b.String()
}

// Command is one command to run in a node.
type Command struct {
	Argv  []string
	Env   []string // added to the node's environment; PATH always starts with the lab's programs
	Stdio [3]*os.File

	// Signals are passed on to the command's process group while it runs.
	Signals <-chan os.Signal

	// Terminal says that Stdio is a terminal that belongs to nobody yet: it becomes the command's controlling one.
	Terminal bool
}

// Exec runs a command in the node's namespaces with the caller's descriptors and waits for its end. A command
// that fails gives an *CommandError. The command is killed with its process group when ctx ends or the caller dies.
func (n Node) Exec(ctx context.Context, cmd Command) error {
	conn, err := dial(string(n))
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := send(conn, request{Op: opExec, Argv: cmd.Argv, Env: cmd.Env, Terminal: cmd.Terminal}, cmd.Stdio[:]...); err != nil {
		return err
	}
	type result struct {
		reply
		err error
	}
	done := make(chan result, 1)
	go func() { // ends with the connection
		var r result
		_, r.err = receive(conn, &r.reply)
		done <- r
	}()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case s := <-cmd.Signals:
			if sig, ok := s.(unix.Signal); ok {
				_ = send(conn, request{Signal: sig}) // it may just have ended
			}
		case r := <-done:
			return r.outcome(cmd.Argv, r.err)
		}
	}
}

func (r reply) outcome(argv []string, err error) error {
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, unix.ECONNRESET):
		return fmt.Errorf("%w: it ended while %q ran", ErrDown, strings.Join(argv, " "))
	case err != nil:
		return err
	case r.Error != "":
		return &CommandError{Code: r.Code, Argv: argv, Stderr: r.Error}
	case r.Died != 0:
		return &CommandError{Code: 128 + int(r.Died), Signal: r.Died, Argv: argv}
	case r.Code != 0:
		return &CommandError{Code: r.Code, Argv: argv}
	}
	return nil
}

// call makes one request that is not exec.
func (n Node) call(ctx context.Context, req request) (reply, error) {
	var r reply
	conn, err := dial(string(n))
	if err != nil {
		return r, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	if err := send(conn, req); err != nil {
		return r, err
	}
	if _, err := receive(conn, &r); err != nil {
		if ctx.Err() != nil {
			return r, context.Cause(ctx)
		}
		return r, fmt.Errorf("%w: no answer to %s from %s", ErrDown, req.Op, n)
	}
	if r.Error != "" {
		return r, errors.New(r.Error)
	}
	return r, nil
}

// Spawn starts a node below this one and returns once it serves.
func (n Node) Spawn(ctx context.Context, cfg Config) error {
	_, err := n.call(ctx, request{Op: opSpawn, Config: &cfg})
	return err
}

// End kills the named child with everything in its namespaces, and returns when all of it is gone. To end a
// child that is not there is no error.
func (n Node) End(ctx context.Context, child string) error {
	_, err := n.call(ctx, request{Op: opEnd, Name: child})
	return err
}

// Info asks the node about itself.
func (n Node) Info(ctx context.Context) (Info, error) {
	r, err := n.call(ctx, request{Op: opInfo})
	if err != nil {
		return Info{}, err
	}
	return *r.Info, nil
}

// Signal sends sig to the node's processes that run the lab's weft program with this verb as first argument
// ("agent", "datapath"), and returns their pids as the node sees them.
func (n Node) Signal(ctx context.Context, verb string, sig unix.Signal) ([]int, error) {
	r, err := n.call(ctx, request{Op: opSignal, Verb: verb, Signal: sig})
	return r.Pids, err
}

// SetCut makes the underlay drop, or carry again, every frame between two hosts. Both are idempotent.
func (n Node) SetCut(ctx context.Context, cut Cut, down bool) error {
	op := opHeal
	if down {
		op = opCut
	}
	_, err := n.call(ctx, request{Op: op, Cut: &cut})
	return err
}

// Plug connects a running host with one more of the underlay's switches; the host sees its end without an address
// until it is asked for SetUplink. It is the underlay's.
func (n Node) Plug(ctx context.Context, host string, up Uplink) error {
	_, err := n.call(ctx, request{Op: opPlug, Name: host, Uplink: &up})
	return err
}

// SetUplink gives a link of a host its addresses and routes.
func (n Node) SetUplink(ctx context.Context, up Uplink) error {
	_, err := n.call(ctx, request{Op: opUplink, Uplink: &up})
	return err
}

// SetMTU sets the MTU of a link, in bytes.
func (n Node) SetMTU(ctx context.Context, link string, mtu int) error {
	_, err := n.call(ctx, request{Op: opMTU, Link: link, MTU: mtu})
	return err
}

// SetRouteMTU gives the route to a prefix an MTU, in bytes.
func (n Node) SetRouteMTU(ctx context.Context, prefix string, mtu int) error {
	_, err := n.call(ctx, request{Op: opRoute, Route: prefix, MTU: mtu})
	return err
}
