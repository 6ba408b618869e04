package lab

import (
	"context"
	"io"
	"os"
	"os/signal"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"weft/prog/lab/node"
)

// onTerminal reports whether standard input and output are terminals.
func onTerminal() bool {
	return term.IsTerminal(int(os.Stdin.Fd())) && term.IsTerminal(int(os.Stdout.Fd()))
}

// AttachTerminal runs a command on its own controlling terminal, which is shown on the caller's
// terminal. So ctrl-C, job control and the window's size work as usual.
func (l *Lab) AttachTerminal(ctx context.Context, target string, args ...string) error {
	ours, theirs, err := pty.Open()
	if err != nil {
		return err
	}
	defer ours.Close()
	defer theirs.Close()
	resized := make(chan os.Signal, 1)
	signal.Notify(resized, unix.SIGWINCH)
	defer signal.Stop(resized)
	_ = pty.InheritSize(os.Stdin, ours)
	before, err := term.MakeRaw(int(os.Stdin.Fd())) // in raw mode the command gets ctrl-C, not this program
	if err != nil {
		return err
	}
	defer func() { _ = term.Restore(int(os.Stdin.Fd()), before) }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { // the goroutine ends with the command
		for {
			select {
			case <-resized:
				_ = pty.InheritSize(os.Stdin, ours)
			case <-ctx.Done():
				return
			}
		}
	}()
	go func() { _, _ = io.Copy(ours, os.Stdin) }() // the goroutine ends with this program: nothing else ends a read from a terminal
	shown := make(chan struct{})
	go func() { // the goroutine ends when no process has the terminal open
		defer close(shown)
		_, _ = io.Copy(os.Stdout, ours)
	}()
	err = l.node(target).Exec(ctx, node.Command{
		Argv: args, Env: os.Environ(), Stdio: [3]*os.File{theirs, theirs, theirs}, Terminal: true,
	})
	_ = theirs.Close()
	_ = ours.SetReadDeadline(time.Now().Add(200 * time.Millisecond)) // do not read forever: a daemon may keep the terminal open
	<-shown
	return l.explain(target, err)
}
