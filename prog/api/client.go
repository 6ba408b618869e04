package api

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/textproto"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// MaxBody limits the size of requests and answers.
const MaxBody = 16 << 20

// The paths of requests; Client documents each.
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
	PathRemove   = "/v1/rmpeer"
	PathUsage    = "/v1/usage"
	PathNames    = "/v1/names"
	PathAddName  = "/v1/names/add"
	PathDropName = "/v1/names/remove"
	PathLookup   = "/v1/names/lookup"
)

// Client sends requests to the agent on this host. It is safe for concurrent use.
type Client struct {
	socket   string
	patience time.Duration
	until    time.Time // deadline of all calls together; zero: each call has the time limit patience of its own
}

// NewClient returns a client of the agent that listens on a unix socket.
func NewClient(socket string) *Client { return &Client{socket: socket, patience: patience} }

// Within returns a client whose calls together may take the given time, instead of 30 s each.
func (c *Client) Within(patience time.Duration) *Client {
	return &Client{c.socket, patience, time.Now().Add(patience)}
}

// NotRunningError means that no process listens on the socket.
type NotRunningError struct {
	Socket string
	Err    error
}

func (e *NotRunningError) Error() string {
	if errors.Is(e.Err, syscall.EACCES) {
		return "no access to " + e.Socket + ": run this as root"
	}
	fix := "start it with `weft launch`"
	if os.Getenv("KUBERNETES_SERVICE_HOST") != "" { // in a pod, Kubernetes starts the agent
		fix = "see why its pod does not run (kubectl -n weft get pods -o wide, and kubectl -n weft logs)"
	}
	return "the Weft agent is not running on this host (nothing answers on " + e.Socket + "): " + fix
}

func (e *NotRunningError) Unwrap() error { return e.Err }

// SilentError means that an agent runs, but did not answer in time.
type SilentError struct {
	Socket string
	After  time.Duration
}

func (e *SilentError) Error() string {
	return fmt.Sprintf("the Weft agent on this host did not answer within %v (on %s): it hangs or was stopped, or the host is overloaded. Look at its process (pgrep -af 'weft agent'); if it does not recover, end it with kill -9 and start it again: containers stay connected",
		e.After, e.Socket)
}

// Report returns the agent's whole state.
func (c *Client) Report(ctx context.Context) (r Report, err error) {
	return r, c.call(ctx, PathReport, nil, &r)
}

// Ready returns nil if the agent can attach containers, and the reason otherwise.
func (c *Client) Ready(ctx context.Context) error {
	return c.call(ctx, PathReady, nil, nil)
}

// StartAttach announces an endpoint and requests its addresses. The returned function waits for them.
// The endpoint's link need not exist yet.
func (c *Client) StartAttach(ctx context.Context, req AttachRequest) (wait func() (AttachReply, error)) {
	answer := c.start(ctx, PathAttach, req)
	return func() (r AttachReply, err error) { return r, answer(&r) }
}

// StartPlug connects an announced endpoint, whose link must exist, to the network. When the returned
// function returns nil, packets pass.
func (c *Client) StartPlug(ctx context.Context, ref EndpointRef) (wait func() error) {
	answer := c.start(ctx, PathPlug, ref)
	return func() error { return answer(nil) }
}

// Detach removes an endpoint. An unknown endpoint is no error.
func (c *Client) Detach(ctx context.Context, ref EndpointRef) error {
	return c.call(ctx, PathDetach, ref, nil)
}

// Endpoint returns one endpoint.
func (c *Client) Endpoint(ctx context.Context, ref EndpointRef) (e Endpoint, err error) {
	return e, c.call(ctx, PathEndpoint, ref, &e)
}

// Collect detaches the endpoints that are no longer in use.
func (c *Client) Collect(ctx context.Context, req CollectRequest) error {
	return c.call(ctx, PathCollect, req, nil)
}

// Targets changes the hosts that this peer joins.
func (c *Client) Targets(ctx context.Context, req TargetsRequest) error {
	return c.call(ctx, PathTargets, req, nil)
}

// Expose lets the underlay reach containers through this host, or stops that.
func (c *Client) Expose(ctx context.Context, req ExposeRequest) error {
	return c.call(ctx, PathExpose, req, nil)
}

// Names lists all names in the DNS domain.
func (c *Client) Names(ctx context.Context) (r []Name, err error) {
	return r, c.call(ctx, PathNames, nil, &r)
}

// AddName adds a name for a container here, for this host, or for an address outside the network.
func (c *Client) AddName(ctx context.Context, req NameRequest) error {
	return c.call(ctx, PathAddName, req, nil)
}

// RemoveName removes a name that AddName added, or a container's own name.
func (c *Client) RemoveName(ctx context.Context, req NameRequest) error {
	return c.call(ctx, PathDropName, req, nil)
}

// Lookup returns the reachable addresses of a name, or the names of an address.
func (c *Client) Lookup(ctx context.Context, name string) (r []Name, err error) {
	return r, c.call(ctx, PathLookup, LookupRequest{name}, &r)
}

// Stop stops the agent; with StopRequest.Leave the peer also leaves the mesh.
func (c *Client) Stop(ctx context.Context, req StopRequest) (r StopReply, err error) {
	return r, c.call(ctx, PathStop, req, &r)
}

// RemovePeer takes over the addresses of a peer that is gone for good.
func (c *Client) RemovePeer(ctx context.Context, req RemovePeerRequest) (r RemovePeerReply, err error) {
	return r, c.call(ctx, PathRemove, req, &r)
}

// Usage asks all peers with addresses how many they use. It omits peers that do not answer soon.
func (c *Client) Usage(ctx context.Context) (r map[string]Usage, err error) {
	return r, c.call(ctx, PathUsage, nil, &r)
}

// call sends a POST with in, or a GET if in is nil, and decodes the answer into out.
func (c *Client) call(ctx context.Context, path string, in, out any) error {
	return c.start(ctx, path, in)(out)
}

// patience is the default time limit of an answer. It is set as the socket's own timeout, since a
// timer or a poller would keep a second thread of the CNI plugin busy.
const patience = 30 * time.Second

// start sends a request and returns at once. The caller later reads the answer on the same thread:
// the CNI plugin runs for milliseconds, and waking another thread would take longer than it saves.
func (c *Client) start(ctx context.Context, path string, in any) (answer func(out any) error) {
	conn, err := c.send(ctx, path, in)
	if err != nil {
		return func(any) error { return err }
	}
	fd := int(conn.Fd())
	stop := context.AfterFunc(ctx, func() { _ = syscall.Shutdown(fd, syscall.SHUT_RDWR) }) // wakes the reader
	return func(out any) error {
		defer conn.Close()
		defer stop()
		status, data, err := receive(conn)
		if err != nil {
			return c.silent(fmt.Errorf("the agent did not answer: %w", errors.Join(ctx.Err(), err)))
		}
		return decode(status, data, out)
	}
}

func (c *Client) send(ctx context.Context, path string, in any) (*os.File, error) {
	request := "GET " + path + " HTTP/1.0\r\n\r\n"
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return nil, fmt.Errorf("api: %w", err)
		}
		request = fmt.Sprintf("POST %s HTTP/1.0\r\nContent-Length: %d\r\n\r\n%s", path, len(data), data)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	conn, err := c.dial()
	if err != nil {
		if silent, ok := errors.AsType[*SilentError](c.silent(err)); ok { // the agent's queue of connections is full
			return nil, silent
		}
		return nil, &NotRunningError{c.socket, err}
	}
	if _, err := conn.WriteString(request); err != nil {
		return nil, errors.Join(c.silent(fmt.Errorf("the agent did not read the request: %w", err)), conn.Close())
	}
	return conn, nil
}

// silent returns a SilentError if err is the socket's timeout, and err otherwise.
func (c *Client) silent(err error) error {
	if errors.Is(err, syscall.EAGAIN) {
		return &SilentError{c.socket, c.patience}
	}
	return err
}

// dial connects with a blocking socket.
func (c *Client) dial() (*os.File, error) {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	left := c.patience
	if !c.until.IsZero() {
		left = max(time.Until(c.until), 100*time.Millisecond) // 0 would mean no timeout
	}
	limit := syscall.NsecToTimeval(left.Nanoseconds())
	for _, option := range []int{syscall.SO_RCVTIMEO, syscall.SO_SNDTIMEO} {
		if err = syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, option, &limit); err != nil {
			break
		}
	}
	if err == nil {
		err = syscall.Connect(fd, &syscall.SockaddrUnix{Name: c.socket})
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("connect: %w", err), syscall.Close(fd))
	}
	return os.NewFile(uintptr(fd), c.socket), nil
}

func decode(status int, data []byte, out any) error {
	if status >= 300 {
		e := &Error{}
		if json.Unmarshal(data, e) != nil || e.Message == "" {
			if status == 404 {
				return &Error{CodeInternal, "the running agent does not know this request: it is older than this program: start the agent again"}
			}
			return &Error{CodeInternal, fmt.Sprintf("the agent answered HTTP status %d", status)}
		}
		return e
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(data, out); err != nil {
		where := ""
		if wrong, ok := errors.AsType[*json.UnmarshalTypeError](err); ok && wrong.Field != "" {
			where = " (" + wrong.Field + ")"
		}
		return fmt.Errorf("the agent's answer is not understood%s: the agent may have another version than this command; restart it with this version (`weft stop`, then `weft launch`): containers stay connected", where)
	}
	return nil
}

// receive reads an HTTP/1.0 answer (RFC 1945), with one request per connection, which is all that the
// socket needs. Importing net/http would add half a millisecond to every pod's start.
func receive(conn io.Reader) (status int, body []byte, err error) {
	from := bufio.NewReader(io.LimitReader(conn, MaxBody))
	head := textproto.NewReader(from)
	line, err := head.ReadLine()
	if err != nil {
		return 0, nil, err
	}
	fields := strings.Fields(line)
	if len(fields) < 2 || !strings.HasPrefix(fields[0], "HTTP/1.") {
		return 0, nil, fmt.Errorf("its answer is not HTTP: %.60q", line)
	}
	if status, err = strconv.Atoi(fields[1]); err != nil {
		return 0, nil, fmt.Errorf("its answer is not HTTP: %.60q", line)
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
