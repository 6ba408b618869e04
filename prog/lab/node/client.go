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

// Node is a client of a running node. Its value is the path of the node's socket.
type Node string

// CommandError means that a command ran and failed. Code is what a shell would return: the command's
// exit code, or 128 plus the number of the signal that killed it.
type CommandError struct {
	Code   int
	Signal unix.Signal // the signal that killed the command, or 0
	Argv   []string
	Stderr string // the end of the command's stderr, if the caller captured it
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
	Env   []string // variables added to the node's environment; PATH always starts with the lab's programs
	Stdio [3]*os.File

	// Signals are sent to the command's process group while it runs.
	Signals <-chan os.Signal

	// Terminal says that Stdio is a terminal without a session. It becomes the command's controlling
	// terminal.
	Terminal bool
}

// Exec runs a command in the node's namespaces with the caller's file descriptors, and waits for its
// end. If the command fails, the error is a *CommandError. The command's process group is killed when
// ctx ends or the caller dies.
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
	go func() { // the goroutine ends with the connection
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
				_ = send(conn, request{Signal: sig}) // the error is ignored: the command may just have ended
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

// call sends a request other than exec.
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

// Root returns the path of the node's root directory, as the caller sees it.
func (n Node) Root() (string, error) {
	conn, err := dial(string(n))
	if err != nil {
		return "", err
	}
	defer conn.Close()
	raw, err := conn.SyscallConn()
	if err != nil {
		return "", err
	}
	var node *unix.Ucred
	var failed error
	err = raw.Control(func(fd uintptr) { node, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err = errors.Join(err, failed); err != nil {
		return "", err
	}
	return fmt.Sprintf("/proc/%d/root", node.Pid), nil
}

// Spawn starts a child node and returns once it serves.
func (n Node) Spawn(ctx context.Context, cfg Config) error {
	_, err := n.call(ctx, request{Op: opSpawn, Config: &cfg})
	return err
}

// End kills the named child and everything in its namespaces, and returns when all processes are
// gone. A missing child is no error.
func (n Node) End(ctx context.Context, child string) error {
	_, err := n.call(ctx, request{Op: opEnd, Name: child})
	return err
}

// Info returns the node's state.
func (n Node) Info(ctx context.Context) (Info, error) {
	r, err := n.call(ctx, request{Op: opInfo})
	if err != nil {
		return Info{}, err
	}
	return *r.Info, nil
}

// Signal sends sig to the node's weft processes whose first argument is verb ("agent", "datapath").
// It returns their pids in the node's pid namespace.
func (n Node) Signal(ctx context.Context, verb string, sig unix.Signal) ([]int, error) {
	r, err := n.call(ctx, request{Op: opSignal, Verb: verb, Signal: sig})
	return r.Pids, err
}

// SetCut makes the underlay drop all frames between two hosts, or forward them again. It is
// idempotent.
func (n Node) SetCut(ctx context.Context, cut Cut, down bool) error {
	op := opHeal
	if down {
		op = opCut
	}
	_, err := n.call(ctx, request{Op: op, Cut: &cut})
	return err
}

// Plug connects a running host to another switch. It is a request to the underlay. The host's link
// has no address until SetUplink.
func (n Node) Plug(ctx context.Context, host string, up Uplink) error {
	_, err := n.call(ctx, request{Op: opPlug, Name: host, Uplink: &up})
	return err
}

// Unplug removes a port, such as that of a host's eth0, and so the host's link. It is a request to the
// underlay. A missing port is no error.
func (n Node) Unplug(ctx context.Context, port string) error {
	_, err := n.call(ctx, request{Op: opUnplug, Name: port})
	return err
}

// SetNAT configures a router. It is a request to the router. A new kind or timeout ends all mappings.
func (n Node) SetNAT(ctx context.Context, nat NAT) error {
	_, err := n.call(ctx, request{Op: opNAT, NAT: &nat})
	return err
}

// SetUplink sets the addresses and routes of a host's link.
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
