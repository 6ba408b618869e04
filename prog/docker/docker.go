// Package docker queries Docker's API for a container's id, name and process. It owns nothing, is
// safe for concurrent use, and never changes anything in Docker.
package docker

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
)

// Socket is the path of Docker's socket.
const Socket = "/var/run/docker.sock"

// ErrNone means that Docker has no such container.
var ErrNone = errors.New("docker has no such container")

// Container is the part of Docker's description of a container that Weft uses.
type Container struct {
	ID, Name string
	State    struct {
		Running bool
		Pid     int
	}
}

// Inspect looks up a container by name or id (API v1.41, GET /containers/{id}/json). If Docker does
// not answer, the error is a *url.Error.
func Inspect(ctx context.Context, socket, name string) (Container, error) {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker/containers/"+url.PathEscape(name)+"/json", nil)
	if err != nil {
		return Container{}, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return Container{}, err
	}
	defer resp.Body.Close()
	var c struct {
		Container
		Message string // the message of an error response
	}
	err = json.NewDecoder(http.MaxBytesReader(nil, resp.Body, 8<<20)).Decode(&c)
	switch {
	case resp.StatusCode == http.StatusNotFound:
		return Container{}, ErrNone
	case err != nil:
		return Container{}, fmt.Errorf("docker container %s: the answer of %s (HTTP status %d) is incomplete or one that is not Docker's: check which program listens there", name, socket, resp.StatusCode)
	case resp.StatusCode != http.StatusOK:
		return Container{}, fmt.Errorf("docker container %s: Docker says: %.300s (HTTP status %d)", name, cmp.Or(strings.Join(strings.Fields(c.Message), " "), "nothing"), resp.StatusCode)
	}
	return c.Container, nil
}
