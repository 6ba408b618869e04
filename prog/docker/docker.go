// Package docker asks Docker the one thing that Weft wants to know of it: what a container is.
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

// Socket is where Docker answers.
const Socket = "/var/run/docker.sock"

// ErrNone says that Docker has no such container.
var ErrNone = errors.New("docker has no such container")

// Container is what Docker says of one.
type Container struct {
	ID, Name string
	State    struct {
		Running bool
		Pid     int
	}
}

// Inspect finds a container by its name or id (API v1.41, GET /containers/{id}/json). Where Docker
// does not answer, the error is a *url.Error.
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
		Message string // of an error
	}
	err = json.NewDecoder(http.MaxBytesReader(nil, resp.Body, 8<<20)).Decode(&c)
	switch {
	case resp.StatusCode == http.StatusNotFound:
		return Container{}, ErrNone
	case err != nil:
		return Container{}, fmt.Errorf("docker container %s: %s gives an answer (HTTP status %d) that is not Docker's, or breaks off: see what listens there", name, socket, resp.StatusCode)
	case resp.StatusCode != http.StatusOK:
		return Container{}, fmt.Errorf("docker container %s: Docker says: %.300s (HTTP status %d)", name, cmp.Or(strings.Join(strings.Fields(c.Message), " "), "nothing"), resp.StatusCode)
	}
	return c.Container, nil
}
