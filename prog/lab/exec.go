package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"weft/prog/lab/node"
)

// CommandError is the error of a command that ran in the lab and failed.
type CommandError = node.CommandError

// Exec runs a command on a host ("h1"), in a container ("h1/c1") or in the bridge's namespace
// ("underlay"), and returns its stdout. stdin may be nil. If the command fails, the error is a
// *CommandError with its stderr.
func (l *Lab) Exec(ctx context.Context, target string, stdin io.Reader, args ...string) (string, error) {
	p, err := l.startProcess(ctx, target, stdin, args...)
	if err != nil {
		return "", err
	}
	return p.Wait()
}

// Attach runs a command with the caller's own file descriptors, so that terminals work. It passes
// signals on.
func (l *Lab) Attach(ctx context.Context, target string, stdio [3]*os.File, signals <-chan os.Signal, args ...string) error {
	err := l.node(target).Exec(ctx, node.Command{Argv: args, Env: os.Environ(), Stdio: stdio, Signals: signals})
	return l.explain(target, err)
}

// explain adds the target to an error of a node, which only names the node's socket.
func (l *Lab) explain(target string, err error) error {
	if !errors.Is(err, node.ErrDown) {
		return err
	}
	return fmt.Errorf("lab: %s does not run (%w): see weft lab status; weft lab reboot HOST starts a host", target, err)
}

// Background starts a command and returns when ready appears in its stderr. The command ends with
// ctx.
func (l *Lab) Background(ctx context.Context, target, ready string, args ...string) (*Process, error) {
	p, err := l.startProcess(ctx, target, nil, args...)
	if err != nil {
		return nil, err
	}
	for !strings.Contains(p.stderr.String(), ready) {
		select {
		case err := <-p.done:
			p.done <- err // Wait returns this error
			_, err = p.Wait()
			return nil, fmt.Errorf("lab: %s ended before it was %s: %w", strings.Join(args, " "), ready, err)
		case <-time.After(5 * time.Millisecond):
		}
	}
	return p, nil
}

// Process is a command that runs in the lab, with captured output.
type Process struct {
	argv           []string
	stdout, stderr *collector
	signals        chan os.Signal
	done           chan error
	cancel         context.CancelFunc
}

func (l *Lab) startProcess(ctx context.Context, target string, stdin io.Reader, args ...string) (*Process, error) {
	in, feed, err := input(stdin)
	if err != nil {
		return nil, err
	}
	stdout, outW, err := newCollector()
	if err != nil {
		_ = in.Close()
		return nil, err
	}
	stderr, errW, err := newCollector()
	if err != nil {
		_, _ = in.Close(), outW.Close()
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	p := &Process{
		argv: args, stdout: stdout, stderr: stderr, cancel: cancel,
		signals: make(chan os.Signal, 1), done: make(chan error, 1),
	}
	go func() { // the goroutine ends with the command
		err := l.node(target).Exec(ctx, node.Command{
			Argv: args, Env: os.Environ(), Stdio: [3]*os.File{in, outW, errW}, Signals: p.signals,
		})
		for _, f := range []*os.File{in, outW, errW} {
			_ = f.Close()
		}
		feed()
		p.done <- l.explain(target, err)
	}()
	return p, nil
}

// Signal sends a signal to the command's process group, if it still runs.
func (p *Process) Signal(sig unix.Signal) {
	select {
	case p.signals <- sig:
	default: // drop the signal: another signal is being sent
	}
}

// Wait waits for the command's end and returns its stdout. Call it only once.
func (p *Process) Wait() (string, error) {
	err := <-p.done
	p.cancel()
	stdout, stderr := p.stdout.finish(), p.stderr.finish()
	if exit, ok := errors.AsType[*CommandError](err); ok {
		exit.Stderr = strings.TrimSpace(exit.Stderr + "\n" + stderr)
	}
	return stdout, err
}

// input turns a reader into a file descriptor. The returned function stops copying.
func input(r io.Reader) (*os.File, func(), error) {
	if r == nil {
		f, err := os.Open(os.DevNull)
		return f, func() {}, err
	}
	pr, pw, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	go func() { // the goroutine ends with the reader, or when the command stops reading
		_, _ = io.Copy(pw, r)
		_ = pw.Close()
	}()
	return pr, func() { _ = pw.Close() }, nil
}

// collector reads one output of a command. A daemon that the command started may keep the descriptor
// open, so collector stops shortly after the command's end.
type collector struct {
	r    *os.File
	done chan struct{}
	mu   sync.Mutex
	buf  bytes.Buffer
}

func newCollector() (*collector, *os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	c := &collector{r: r, done: make(chan struct{})}
	go func() { // the goroutine ends with finish
		defer close(c.done)
		_, _ = io.Copy(c, r)
	}()
	return c, w, nil
}

// Write implements io.Writer.
func (c *collector) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.buf.Write(p)
}

// String returns the output that the collector has read so far.
func (c *collector) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.buf.String()
}

func (c *collector) finish() string {
	_ = c.r.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	<-c.done
	c.drain()
	_ = c.r.Close()
	return c.String()
}

// drain reads what is available, without waiting. On a busy machine, the time limit may pass before
// the first byte is read.
func (c *collector) drain() {
	_ = c.r.SetReadDeadline(time.Time{})
	raw, err := c.r.SyscallConn()
	if err != nil {
		return
	}
	buf := make([]byte, 1<<16)
	_ = raw.Read(func(fd uintptr) bool {
		for {
			n, err := unix.Read(int(fd), buf)
			if n <= 0 || err != nil {
				return true
			}
			_, _ = c.Write(buf[:n])
		}
	})
}
