package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"syscall"
)

// maxBody bounds what either side reads.
const maxBody = 16 << 20

// Client speaks to the agent on this host.
type Client struct {
	socket string
	http   http.Client
}

// NewClient makes a client of the agent that listens on a unix socket.
func NewClient(socket string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}
	return &Client{socket: socket, http: http.Client{Transport: &http.Transport{DialContext: dial}}}
}

// NotRunningError says that nobody listens on the socket.
type NotRunningError struct {
	Socket string
	Err    error
}

func (e *NotRunningError) Error() string {
	if errors.Is(e.Err, syscall.EACCES) {
		return "no access to " + e.Socket + ": run this as root"
	}
	return "the Weft agent is not running on this host (nothing answers on " + e.Socket + "): start it with `weft launch`"
}

func (e *NotRunningError) Unwrap() error { return e.Err }

// Report asks for everything.
func (c *Client) Report(ctx context.Context) (r Report, err error) {
	return r, c.call(ctx, http.MethodGet, pathReport, nil, &r)
}

// Ready returns nil once the agent can attach containers.
func (c *Client) Ready(ctx context.Context) error {
	return c.call(ctx, http.MethodGet, pathReady, nil, nil)
}

// Attach asks for the host side of an endpoint.
func (c *Client) Attach(ctx context.Context, req AttachRequest) (r AttachReply, err error) {
	return r, c.call(ctx, http.MethodPost, pathAttach, req, &r)
}

// Detach ends an endpoint; one that is not there is no error.
func (c *Client) Detach(ctx context.Context, ref EndpointRef) error {
	return c.call(ctx, http.MethodPost, pathDetach, ref, nil)
}

// Endpoint finds one endpoint.
func (c *Client) Endpoint(ctx context.Context, ref EndpointRef) (e Endpoint, err error) {
	return e, c.call(ctx, http.MethodPost, pathEndpoint, ref, &e)
}

// Collect ends the endpoints that are no longer in use.
func (c *Client) Collect(ctx context.Context, req CollectRequest) error {
	return c.call(ctx, http.MethodPost, pathCollect, req, nil)
}

// Targets changes whom this peer joins.
func (c *Client) Targets(ctx context.Context, req TargetsRequest) error {
	return c.call(ctx, http.MethodPost, pathTargets, req, nil)
}

// Expose lets the underlay reach containers through this host, or stops that.
func (c *Client) Expose(ctx context.Context, on bool) error {
	return c.call(ctx, http.MethodPost, pathExpose, on, nil)
}

// Stop ends the agent; with leave, this peer also leaves the mesh for good.
func (c *Client) Stop(ctx context.Context, leave bool) error {
	return c.call(ctx, http.MethodPost, pathStop, leave, nil)
}

func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("api: %w", err)
		}
		body = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://weft"+path, body)
	if err != nil {
		return fmt.Errorf("api: %w", err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" && ctx.Err() == nil {
			return &NotRunningError{c.socket, err}
		}
		return fmt.Errorf("the agent did not answer: %w", err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	if err != nil {
		return fmt.Errorf("the agent's answer broke off: %w", err)
	}
	if resp.StatusCode >= 300 {
		e := &Error{}
		if json.Unmarshal(data, e) != nil || e.Message == "" {
			return &Error{CodeInternal, fmt.Sprintf("the agent answered %s", resp.Status)}
		}
		return e
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(data, out); err != nil {
		return fmt.Errorf("the agent's answer is unreadable (another version?): %w", err)
	}
	return nil
}
