package control

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
)

// Sockets are what an agent listens on.
type Sockets struct {
	control           net.Listener
	readOnly, metrics net.Listener // nil: none
}

// Listen opens the sockets: all or none. An empty address means that there is no such socket.
func Listen(path, statusAddr, metricsAddr string) (s Sockets, err error) {
	if s.control, err = ListenSocket(path); err != nil {
		return s, err
	}
	if s.readOnly, err = listenTCP("status", statusAddr); err == nil {
		s.metrics, err = listenTCP("metrics", metricsAddr)
	}
	if err != nil {
		for _, l := range []net.Listener{s.control, s.readOnly} {
			if l != nil {
				l.Close()
			}
		}
	}
	return s, err
}

// Serve answers on the sockets until ctx ends.
func (s Sockets) Serve(ctx context.Context, front *Front) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return Serve(ctx, s.control, front.All) })
	if s.readOnly != nil {
		group.Go(func() error { return Serve(ctx, s.readOnly, front.ReadOnly) })
	}
	if s.metrics != nil {
		group.Go(func() error { return Serve(ctx, s.metrics, front.Metrics) })
	}
	return group.Wait()
}

// Serve answers on a listener until ctx ends; requests under way get a moment.
func Serve(ctx context.Context, l net.Listener, h http.Handler) error {
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
	if served := <-done; !errors.Is(served, http.ErrServerClosed) {
		return fmt.Errorf("agent: serve %v: %w", l.Addr(), served)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return nil
	}
	return err
}

// listenTCP listens at the address of a flag; nil if that is empty.
func listenTCP(flag, addr string) (net.Listener, error) {
	if addr == "" {
		return nil, nil
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("%s over HTTP: %w: choose another address with --%s-addr, or none with --%s-addr=", flag, err, flag, flag)
	}
	return l, nil
}

// ListenSocket listens on the control socket. It replaces a socket on which no agent answers.
func ListenSocket(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	if c, err := net.Dial("unix", path); err == nil {
		c.Close()
		return nil, fmt.Errorf("control socket: an agent answers on %s already: stop that agent with `weft stop`", path)
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
