package attach

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"weft/prog/api"
	"weft/router/endpoint"
)

const (
	// period is how often the reaper looks for endpoints that ended.
	period = 2 * time.Second
	// forgotten is the number of rounds after which a pod counts as ended if it has neither a link
	// nor an object in the API server. The runtime's DEL comes sooner, unless a plugin drops it.
	forgotten = 10
	// unlinked is the number of rounds after which an endpoint without a link is reported as a problem:
	// when a container ends, the runtime's DEL arrives sooner.
	unlinked = 8
)

// Look releases endpoints that were lost with the host's namespaces while no agent ran, and finds
// strays. It must run before Run and before the first plan, since a plan may remove the routes by
// which strays are found.
func (a *Attachments) Look(ctx context.Context) {
	a.releaseVanished(ctx)
	if err := a.strays.find(func() []string { return hostLinks(a.Get()) }); err != nil {
		a.cfg.Log.Warn("cannot look for containers that are plugged in", "err", err)
	}
}

// Run releases endpoints that ended, until ctx ends.
func (a *Attachments) Run(ctx context.Context) error {
	tick := time.NewTicker(period)
	defer tick.Stop()
	for {
		v, viewed := a.cfg.View.Read()
		if v != nil && !v.Ring.IsZero() {
			a.check(errors.Join(a.strays.claim(ctx, a.cfg, v), a.queue.check()))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			a.releaseQueued(ctx)
			a.releaseEnded(ctx)
		case <-a.cfg.View.Changed(viewed):
		}
	}
}

// check stores the error because of which no container can be attached; nil if there is none.
func (a *Attachments) check(err error) {
	before := a.failed.Get()
	a.failed.Set(err)
	if (before == nil) != (err == nil) {
		a.cfg.Checked()
	}
}

// Check reports why nothing can be attached yet.
func (a *Attachments) Check() error { return a.failed.Get() }

// Detach ends an endpoint, once no other operation works on it.
func (a *Attachments) Detach(ctx context.Context, ref api.EndpointRef) error {
	done, err := a.busy.wait(ctx, ref.Key())
	if err != nil {
		return err
	}
	defer done()
	a.cfg.Unattached.Forget(ref.Key())
	return a.end(ctx, ref.Key())
}

// detachIdle ends an endpoint without a request to do so, unless an operation works on it.
func (a *Attachments) detachIdle(ctx context.Context, ref api.EndpointRef) error {
	done, err := a.busy.begin(ref.Key())
	if err != nil {
		return err
	}
	defer done()
	e, ok := a.get(ref.Key())
	if err := a.end(ctx, ref.Key()); err != nil || !ok {
		return err
	}
	a.cfg.Unattached.Note(e.describe(nil, a.cfg.Settings.Get(), false), time.Now())
	return nil
}

// end removes an endpoint. The caller has reserved its key. The address is released last, after link and
// routes, so that no other endpoint gets an address that is still in use.
func (a *Attachments) end(ctx context.Context, key string) error {
	e, ok := a.get(key)
	if !ok {
		return nil
	}
	u, err := a.universe()
	if err != nil {
		return err
	}
	if err := endpoint.Remove(e.HostLink); err != nil {
		return err
	}
	if err := a.cfg.Router.Unplug(ctx, e.Plug(u, a.cfg.IPv6)); err != nil {
		return err
	}
	if err := a.cfg.IPAM.Free(ctx, key); err != nil {
		return err
	}
	a.set(key, nil)
	return a.cfg.Settings.Forget(key)
}

// Collect does CNI GC: it ends endpoints of a network that the runtime does not list as valid.
func (a *Attachments) Collect(ctx context.Context, req api.CollectRequest) error {
	return a.detachWhere(ctx, func(e *record) bool {
		return e.Source == api.SourceCNI && e.Network == req.Network && !slices.Contains(req.Valid, e.ref())
	})
}

// DetachAll ends all endpoints.
func (a *Attachments) DetachAll(ctx context.Context) error {
	return a.detachWhere(ctx, func(*record) bool { return true })
}

// detachWhere ends each endpoint for which gone returns true, except endpoints on which another
// operation works.
func (a *Attachments) detachWhere(ctx context.Context, gone func(*record) bool) error {
	a.mu.Lock()
	var those []api.EndpointRef
	for _, e := range a.endpoints {
		if gone(e) {
			those = append(those, e.ref())
		}
	}
	a.mu.Unlock()
	var errs []error
	for _, ref := range those {
		err := a.detachIdle(ctx, ref)
		if busy, ok := errors.AsType[*api.Error](err); ok && busy.Code == api.CodeNotReady {
			continue
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("detach %s: %w", ref.Key(), err))
		} else {
			a.cfg.Log.Info("endpoint is gone, its address is free again", "endpoint", ref.Key())
		}
	}
	return errors.Join(errs...)
}

// releaseVanished releases endpoints whose links vanished with the host's namespaces while no agent ran.
// An address that cannot be released now is only logged.
func (a *Attachments) releaseVanished(ctx context.Context) {
	present, err := endpoint.List()
	if err == nil {
		err = a.detachWhere(ctx, func(e *record) bool { return !slices.Contains(present, e.HostLink) })
	}
	a.releaseQueued(ctx)
	if err != nil && ctx.Err() == nil {
		a.cfg.Log.Warn("cannot free the addresses of all endpoints that ended", "err", err)
	}
}

// releaseQueued does the releases that weft-cni queued.
func (a *Attachments) releaseQueued(ctx context.Context) { a.queue.do(ctx, a.cfg.Log, a.detachIdle) }

// releaseEnded ends the endpoints of processes that ended without `weft detach`: their namespace is
// gone, and the link with it. It waits for a second round, since a link may just be moving.
func (a *Attachments) releaseEnded(ctx context.Context) {
	present, err := a.links.Get(a.cfg.Watch, endpoint.List)
	if err != nil {
		a.cfg.Log.Warn("cannot list links", "err", err)
		return
	}
	err = a.detachWhere(ctx, func(e *record) bool {
		if slices.Contains(present, e.HostLink) {
			e.missing = 0
			return false
		}
		e.missing++
		return e.missing >= 2 && e.Source == api.SourceAttach ||
			e.missing >= forgotten && a.cfg.Pods.Ended(e.Namespace, e.Name, e.PodUID)
	})
	if err = errors.Join(err, a.strays.release(ctx, a.cfg, present)); err != nil && ctx.Err() == nil {
		a.cfg.Log.Warn("cannot release endpoints that ended", "err", err)
	}
}

// hostLinks lists the links of all endpoints.
func hostLinks(endpoints []Endpoint) (links []string) {
	for _, e := range endpoints {
		links = append(links, e.HostLink)
	}
	return links
}
