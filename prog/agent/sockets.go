package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

// serve answers on a listener until ctx ends; requests under way get a moment.
func serve(ctx context.Context, l net.Listener, h http.Handler) error {
	server := http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	select {
	case err := <-done:
		return fmt.Errorf("agent: serve %v: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	err := server.Shutdown(grace)
	<-done
	if errors.Is(err, context.DeadlineExceeded) {
		return nil
	}
	return err
}

// listenStatus listens for the read-only status; nil if there shall be none.
func (a *Agent) listenStatus() (net.Listener, error) {
	if a.opts.StatusAddr == "" {
		return nil, nil
	}
	l, err := net.Listen("tcp", a.opts.StatusAddr)
	if err != nil {
		return nil, fmt.Errorf("status over HTTP: %w: choose another address with --status-addr, or none with --status-addr=", err)
	}
	return l, nil
}

// listenSocket listens on the control socket. A socket that nobody answers on is a
// dead agent's and replaced.
func listenSocket(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	if c, err := net.Dial("unix", path); err == nil {
		c.Close()
		return nil, fmt.Errorf("control socket: an agent answers on %s already: stop it with `weft stop`", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, fmt.Errorf("control socket: %w", err)
	}
	return l, nil
}
