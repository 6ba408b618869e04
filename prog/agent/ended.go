package agent

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

	"weft/prog/api"
	"weft/prog/docker"
)

// Bounds of what is remembered of attachments that ended.
const (
	maxEnded = 256
	endedFor = 24 * time.Hour
)

// ended remembers Docker's containers whose attachment by hand ended with their network
// namespace: `docker restart` makes a new one under the same id, which is not attached.
type ended struct {
	mu    sync.Mutex
	known map[string]*endedContainer // by endpoint key
}

type endedContainer struct {
	api.Endpoint
	at    time.Time
	again bool // Docker runs it again
}

// note remembers an endpoint that ended, if Docker may start it again.
func (d *ended) note(e *endpointRecord, now time.Time) {
	docker := len(e.ContainerID) == 64 && strings.Trim(e.ContainerID, "0123456789abcdef") == ""
	d.mu.Lock()
	defer d.mu.Unlock()
	if e.Source != SourceAttach || !docker {
		return
	}
	if d.known == nil {
		d.known = map[string]*endedContainer{}
	}
	if len(d.known) >= maxEnded {
		delete(d.known, slices.MinFunc(slices.Collect(maps.Keys(d.known)), func(a, b string) int { return d.known[a].at.Compare(d.known[b].at) }))
	}
	d.known[e.ref().Key()] = &endedContainer{at: now, Endpoint: api.Endpoint{
		ContainerID: e.ContainerID, Interface: e.Interface, Source: e.Source, Name: e.Name, Namespace: e.Namespace, Addresses: []netip.Addr{},
	}}
}

// forget ends the memory of an endpoint: it is attached again, or shall not be.
func (d *ended) forget(key string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.known, key)
}

// follow asks Docker again and again, beside the reconciler: it may hang.
func (d *ended) follow(ctx context.Context) error {
	for ctx.Err() == nil {
		d.look(ctx, docker.Socket, time.Now())
		sleep(ctx, 10*time.Second)
	}
	return nil
}

// look asks Docker which of them run again.
func (d *ended) look(ctx context.Context, socket string, now time.Time) {
	d.mu.Lock()
	ids := map[string]string{}
	for key, c := range d.known {
		if now.Sub(c.at) > endedFor {
			delete(d.known, key)
			continue
		}
		ids[key] = c.ContainerID
	}
	d.mu.Unlock()
	if len(ids) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	for key, id := range ids {
		found, err := docker.Inspect(ctx, socket, id)
		d.mu.Lock()
		if c := d.known[key]; c != nil && errors.Is(err, docker.ErrNone) {
			delete(d.known, key)
		} else if c != nil {
			c.again = err == nil && found.State.Running
		}
		d.mu.Unlock()
	}
}

// list is the containers that run again without what was attached.
func (d *ended) list() (out []api.Endpoint) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, key := range slices.Sorted(maps.Keys(d.known)) {
		if c := d.known[key]; c.again {
			out = append(out, c.Endpoint)
		}
	}
	return out
}

func (d *ended) warnings() (out []string) {
	for _, c := range d.list() {
		out = append(out, fmt.Sprintf("container %s (%s) runs and is not attached any more (it was started again, or its link was deleted): its address is free. Run `weft attach` for it again, or `weft detach` if it shall not be attached", c.ContainerID[:12], c.Name))
	}
	return out
}
