// Package unattached owns the list of Docker containers whose attachment by hand ended with their
// network namespace: `docker restart` makes a new namespace under the same id, which is not attached.
// Its goroutine asks Docker which of them run again. It is safe for concurrent use, and never
// attaches a container.
package unattached

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"weft/prog/agent/live"
	"weft/prog/api"
	"weft/prog/docker"
	"weft/router/problem"
)

// Limits of the list of ended attachments.
const (
	most    = 256            // containers
	longest = 24 * time.Hour // since the end of an attachment
)

// Containers remembers containers. The zero value remembers none.
type Containers struct {
	mu    sync.Mutex
	known map[string]*container // the remembered containers, by endpoint key
}

type container struct {
	api.Endpoint
	at    time.Time
	again bool // Docker has started the container again
}

// Note remembers an endpoint that ended, if Docker may start its container again.
func (c *Containers) Note(e api.Endpoint, now time.Time) {
	docker := len(e.ContainerID) == 64 && strings.Trim(e.ContainerID, "0123456789abcdef") == ""
	if e.Source != api.SourceAttach || !docker {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.known == nil {
		c.known = map[string]*container{}
	}
	if len(c.known) >= most {
		delete(c.known, slices.MinFunc(slices.Collect(maps.Keys(c.known)), func(a, b string) int { return c.known[a].at.Compare(c.known[b].at) }))
	}
	ref := api.EndpointRef{ContainerID: e.ContainerID, Interface: e.Interface}
	c.known[ref.Key()] = &container{at: now, Endpoint: api.Endpoint{
		ContainerID: e.ContainerID, Interface: e.Interface, Source: e.Source, Name: e.Name, Namespace: e.Namespace, Addresses: []netip.Addr{},
	}}
}

// Forget forgets an endpoint: it is attached again, or the operator has detached it.
func (c *Containers) Forget(key string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.known, key)
}

// Run asks Docker periodically until ctx ends, in its own goroutine, since Docker may hang.
func (c *Containers) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		c.look(ctx, docker.Socket, time.Now())
		live.Pause(ctx, 10*time.Second)
	}
	return nil
}

// look asks Docker which of the remembered containers run again.
func (c *Containers) look(ctx context.Context, socket string, now time.Time) {
	c.mu.Lock()
	ids := map[string]string{}
	for key, one := range c.known {
		if now.Sub(one.at) > longest {
			delete(c.known, key)
			continue
		}
		ids[key] = one.ContainerID
	}
	c.mu.Unlock()
	if len(ids) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	for key, id := range ids {
		found, err := docker.Inspect(ctx, socket, id)
		c.mu.Lock()
		if one := c.known[key]; one != nil && errors.Is(err, docker.ErrNone) {
			delete(c.known, key)
		} else if one != nil {
			one.again = err == nil && found.State.Running
		}
		c.mu.Unlock()
	}
}

// List returns the containers that run again without their attachment.
func (c *Containers) List() (out []api.Endpoint) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, key := range slices.Sorted(maps.Keys(c.known)) {
		if one := c.known[key]; one.again {
			out = append(out, one.Endpoint)
		}
	}
	return out
}

// Problems names the containers that run again without their attachment.
func (c *Containers) Problems() (out []problem.Problem) {
	for _, one := range c.List() {
		out = append(out, problem.Problem{
			Reason: problem.Address, What: fmt.Sprintf("container %s (%s) runs and is not attached any more (it was started again, or its link was deleted)", one.ContainerID[:12], one.Name),
			Effect: "its address is free", Fix: "run `weft attach` for the container again, or `weft detach` if it shall not be attached",
		})
	}
	return out
}
