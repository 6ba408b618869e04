package api

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/textproto"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// MaxBody bounds what either side reads.
const MaxBody = 16 << 20

// What can be asked; Client says what each is for.
const (
	PathReport   = "/v1/report"
	PathReady    = "/v1/ready"
	PathAttach   = "/v1/attach"
	PathPlug     = "/v1/plug"
	PathDetach   = "/v1/detach"
	PathEndpoint = "/v1/endpoint"
	PathCollect  = "/v1/collect"
	PathTargets  = "/v1/targets"
	PathExpose   = "/v1/expose"
	PathStop     = "/v1/stop"
)

// Client speaks to the agent on this host.
type Client struct {
	socket string
}

// NewClient makes a client of the agent that listens on a unix socket.
func NewClient(socket string) *Client { return &Client{socket} }

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
	return r, c.call(ctx, PathReport, nil, &r)
}

// Ready returns nil once the agent can attach containers.
func (c *Client) Ready(ctx context.Context) error {
	return c.call(ctx, PathReady, nil, nil)
}

// Attach makes an endpoint known and asks for its addresses. Its link need not exist yet.
func (c *Client) Attach(ctx context.Context, req AttachRequest) (r AttachReply, err error) {
	return r, c.call(ctx, PathAttach, req, &r)
}

// Plug asks for the host side of an endpoint that Attach made known, once its link
// exists: from then on packets pass.
func (c *Client) Plug(ctx context.Context, ref EndpointRef) error {
	return c.call(ctx, PathPlug, ref, nil)
}

// Detach ends an endpoint; one that is not there is no error.
func (c *Client) Detach(ctx context.Context, ref EndpointRef) error {
	return c.call(ctx, PathDetach, ref, nil)
}

// Endpoint finds one endpoint.
func (c *Client) Endpoint(ctx context.Context, ref EndpointRef) (e Endpoint, err error) {
	return e, c.call(ctx, PathEndpoint, ref, &e)
}

// Collect ends the endpoints that are no longer in use.
func (c *Client) Collect(ctx context.Context, req CollectRequest) error {
	return c.call(ctx, PathCollect, req, nil)
}

// Targets changes whom this peer joins.
func (c *Client) Targets(ctx context.Context, req TargetsRequest) error {
	return c.call(ctx, PathTargets, req, nil)
}

// Expose lets the underlay reach containers through this host, or stops that.
func (c *Client) Expose(ctx context.Context, on bool) error {
	return c.call(ctx, PathExpose, on, nil)
}

// Stop ends the agent; with leave, this peer also leaves the mesh for good.
func (c *Client) Stop(ctx context.Context, leave bool) error {
	return c.call(ctx, PathStop, leave, nil)
}

// call posts in, or gets if there is none, and reads the answer into out.
func (c *Client) call(ctx context.Context, path string, in, out any) error {
	request := "GET " + path + " HTTP/1.0\r\n\r\n"
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("api: %w", err)
		}
		request = fmt.Sprintf("POST %s HTTP/1.0\r\nContent-Length: %d\r\n\r\n%s", path, len(data), data)
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", c.socket)
	if err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("the agent did not answer: %w", err)
		}
		return &NotRunningError{c.socket, err}
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })() // wakes who waits for it
	status, data, err := exchange(conn, request)
	if err != nil {
		return fmt.Errorf("the agent did not answer: %w", errors.Join(ctx.Err(), err))
	}
	if status >= 300 {
		e := &Error{}
		if json.Unmarshal(data, e) != nil || e.Message == "" {
			return &Error{CodeInternal, fmt.Sprintf("the agent answered HTTP status %d", status)}
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

// exchange is HTTP/1.0 (RFC 1945), one request on a connection, which is all that the
// socket needs: net/http would cost every pod's start half a millisecond.
func exchange(conn io.ReadWriter, request string) (status int, body []byte, err error) {
	if _, err := io.WriteString(conn, request); err != nil {
		return 0, nil, err
	}
	from := bufio.NewReader(io.LimitReader(conn, MaxBody))
	head := textproto.NewReader(from)
	line, err := head.ReadLine()
	if err != nil {
		return 0, nil, err
	}
	fields := strings.Fields(line)
	if len(fields) < 2 || !strings.HasPrefix(fields[0], "HTTP/1.") {
		return 0, nil, fmt.Errorf("it does not speak HTTP: %.60q", line)
	}
	if status, err = strconv.Atoi(fields[1]); err != nil {
		return 0, nil, fmt.Errorf("it does not speak HTTP: %.60q", line)
	}
	header, err := head.ReadMIMEHeader()
	if err != nil {
		return 0, nil, err
	}
	if body, err = io.ReadAll(from); err != nil {
		return 0, nil, err
	}
	if length := header.Get("Content-Length"); length != "" && length != strconv.Itoa(len(body)) {
		return 0, nil, fmt.Errorf("the answer broke off after %d of %s bytes", len(body), length)
	}
	return status, body, nil
}
