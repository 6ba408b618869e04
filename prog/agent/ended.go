package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"weft/prog/api"
)

// dockerSocket answers whether a container runs.
const dockerSocket = "/var/run/docker.sock"

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
		d.look(ctx, dockerSocket, time.Now())
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
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var dialer net.Dialer
		return dialer.DialContext(ctx, "unix", socket)
	}}}
	for key, id := range ids {
		again, gone := runs(ctx, &client, id)
		d.mu.Lock()
		if c := d.known[key]; c != nil && gone {
			delete(d.known, key)
		} else if c != nil {
			c.again = again
		}
		d.mu.Unlock()
	}
}

// runs reports whether Docker runs a container, or has it no more (API v1.41, GET /containers/{id}/json).
func runs(ctx context.Context, client *http.Client, id string) (runs, gone bool) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker/containers/"+url.PathEscape(id)+"/json", nil)
	if err != nil {
		return false, false
	}
	resp, err := client.Do(req)
	if err != nil {
		return false, false
	}
	defer resp.Body.Close()
	var c struct{ State struct{ Running bool } }
	runs = resp.StatusCode == http.StatusOK && json.NewDecoder(http.MaxBytesReader(nil, resp.Body, 8<<20)).Decode(&c) == nil && c.State.Running
	return runs, resp.StatusCode == http.StatusNotFound
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
