package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"weft/ipam"
	"weft/ipam/slot"
	"weft/prog/api"
	"weft/router/endpoint"
)

// attachTimeout bounds how long an attachment waits for an address.
const attachTimeout = 8 * time.Second

// Sources of endpoints: who takes care of their end.
const (
	SourceCNI    = "cni"    // the container runtime, by DEL or GC
	SourceAttach = "attach" // `weft detach`, or the end of the namespace
)

// endpointRecord is an endpoint. The store keeps the request with its allocation.
type endpointRecord struct {
	api.AttachRequest
	Slot slot.Slot

	mtu     int // what the container was told; 0: by an earlier agent
	missing int // rounds in which its link was not there
}

func (e *endpointRecord) ref() api.EndpointRef {
	return api.EndpointRef{ContainerID: e.ContainerID, Interface: e.Interface}
}

// plug is the host side of an endpoint.
func (a *Agent) plug(e *endpointRecord, snap ipam.Snapshot) endpoint.Endpoint {
	u := snap.Ring.Universe
	mac, _ := net.ParseMAC(e.MAC) // checked when it was attached
	p := endpoint.Endpoint{HostLink: e.HostLink, ContainerMAC: mac, Addr4: u.Addr4(e.Slot), MTU: e.mtu}
	if a.ipv6 {
		p.Addr6 = u.Addr6(e.Slot)
	}
	return p
}

func (a *Agent) loadEndpoints() error {
	return a.store.Notes(func(key string, s slot.Slot, note []byte) error {
		e := &endpointRecord{Slot: s}
		if err := json.Unmarshal(note, &e.AttachRequest); err != nil {
			return fmt.Errorf("endpoint %s: %w", key, err)
		}
		a.setEndpoint(key, e)
		return nil
	})
}

// setEndpoint makes an endpoint known; nil forgets it.
func (a *Agent) setEndpoint(key string, e *endpointRecord) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.changes++; e == nil {
		delete(a.endpoints, key)
	} else {
		a.endpoints[key] = e
	}
}

// Attach makes an endpoint known and gives it an address. If nothing more comes of
// it, Detach is what ends it, as any other.
func (a *Agent) Attach(ctx context.Context, req api.AttachRequest) (reply api.AttachReply, err error) {
	if err := a.Ready(ctx); err != nil {
		return reply, err
	}
	if req.Source == SourceAttach {
		req.Name = a.short(req.Name)
	}
	if err := validAttach(req); err != nil {
		return reply, err
	}
	if err := a.askPod(ctx, &req); err != nil {
		return reply, err
	}
	a.releaseQueued(ctx) // a release that is still queued is of an earlier life of this endpoint
	e := &endpointRecord{AttachRequest: req, mtu: int(a.mtu.Load())}
	key := e.ref().Key()
	done, err := a.begin(key)
	if err != nil {
		return reply, err
	}
	defer done()
	snap, err := a.ipam.Snapshot(ctx)
	if err != nil {
		return reply, err
	}
	if old := a.endpoint(key); old != nil {
		return reply, &api.Error{Code: api.CodeConflict, Message: fmt.Sprintf(
			"%s of container %s is attached already, as %v: detach it first", req.Interface, req.ContainerID, snap.Ring.Universe.Addr4(old.Slot))}
	}
	wait, cancel := context.WithTimeout(ctx, attachTimeout)
	defer cancel()
	note, err := json.Marshal(req)
	if err != nil {
		return reply, fmt.Errorf("attach %s: %w", key, err)
	}
	if e.Slot, err = a.address(wait, key, req.Addresses, note, snap); err != nil {
		return reply, spaceError(err)
	}
	a.setEndpoint(key, e)
	a.ended.forget(key)
	// Before the endpoint can send or get a packet: its link is not plugged in yet.
	if err := a.enforce(); err != nil {
		return reply, fmt.Errorf("isolate %s: %w", key, err)
	}
	a.rename()
	return api.AttachReply{
		Addresses: addresses(a.plug(e, snap)), Universe: a.universe(snap), MTU: e.mtu, Resolver: a.resolver(e.Namespace),
	}, nil
}

// address gives an endpoint the addresses that it asks for, or any.
func (a *Agent) address(ctx context.Context, key string, asked []netip.Addr, note []byte, snap ipam.Snapshot) (slot.Slot, error) {
	if len(asked) == 0 {
		return a.ipam.Allocate(ctx, key, note)
	}
	u := snap.Ring.Universe
	want, _ := u.Slot(asked[0])
	for _, addr := range asked {
		s, ok := u.Slot(addr)
		if !ok {
			return 0, &api.Error{Code: api.CodeBadRequest, Message: fmt.Sprintf("%v cannot be given: it is outside %v", addr, u)}
		}
		if s != want {
			return 0, &api.Error{Code: api.CodeBadRequest, Message: fmt.Sprintf(
				"%v and %v cannot be given together: with %v goes %v", asked[0], addr, u.Addr4(want), u.Addr6(want))}
		}
	}
	err := a.ipam.Claim(ctx, key, want, note)
	refused, ok := errors.AsType[*ipam.ClaimError](err)
	for ok && refused.Held && ctx.Err() == nil { // it takes moments until all others have dropped its old name
		sleep(ctx, 100*time.Millisecond)
		err = a.ipam.Claim(ctx, key, want, note)
		refused, ok = errors.AsType[*ipam.ClaimError](err)
	}
	if ok {
		e := &api.Error{Code: api.CodeConflict, Message: fmt.Sprintf("%v cannot be given: %s", asked[0], refused.Why)}
		if refused.Later {
			e.Code = api.CodeNoSpace
		}
		return 0, e
	}
	return want, err
}

// Plug programs the host side of an endpoint that Attach made known.
func (a *Agent) Plug(ctx context.Context, ref api.EndpointRef) error {
	key := ref.Key()
	done, err := a.begin(key)
	if err != nil {
		return err
	}
	defer done()
	snap, err := a.ipam.Snapshot(ctx)
	if err != nil {
		return err
	}
	e := a.endpoint(key)
	if e == nil {
		return &api.Error{Code: api.CodeNotReady, Message: "plug: no address was given to " + key + " (the agent was started meanwhile?): try again"}
	}
	if err := a.router.Plug(ctx, a.plug(e, snap)); err != nil {
		return fmt.Errorf("plug %s: %w", key, err)
	}
	return nil
}

// universe is the prefixes that containers reach through the overlay.
func (a *Agent) universe(snap ipam.Snapshot) []netip.Prefix {
	out := []netip.Prefix{snap.Ring.Universe.V4}
	if a.ipv6 {
		out = append(out, snap.Ring.Universe.V6)
	}
	return out
}

func addresses(p endpoint.Endpoint) []netip.Addr {
	out := []netip.Addr{p.Addr4}
	if p.Addr6.IsValid() {
		out = append(out, p.Addr6)
	}
	return out
}

func validAttach(req api.AttachRequest) error {
	_, macErr := net.ParseMAC(req.MAC)
	ifaceErr := endpoint.CheckInterface(req.Interface)
	switch {
	case req.ContainerID == "":
		return &api.Error{Code: api.CodeBadRequest, Message: "attach: the container's id is missing"}
	case ifaceErr != nil:
		return &api.Error{Code: api.CodeBadRequest, Message: "attach: " + ifaceErr.Error()}
	case req.HostLink != endpoint.HostLink(req.ContainerID, req.Interface):
		return &api.Error{Code: api.CodeBadRequest, Message: "attach: the host link does not have the endpoint's name"}
	case macErr != nil:
		return &api.Error{Code: api.CodeBadRequest, Message: fmt.Sprintf("attach: %q is no MAC address", req.MAC)}
	case req.Source != SourceCNI && req.Source != SourceAttach:
		return &api.Error{Code: api.CodeBadRequest, Message: "attach: unknown source " + req.Source}
	}
	entry := (&endpointRecord{AttachRequest: req}).entry()
	if req.Source == SourceCNI { // nobody is there to say it in another way: what does not fit is left out
		entry, _ = entry.Fit()
	}
	if err := entry.Check(); err != nil {
		return &api.Error{Code: api.CodeBadRequest, Message: "attach: " + err.Error()}
	}
	return nil
}

// spaceError gives the reason why there was no address its code.
func spaceError(err error) error {
	if errors.Is(err, ipam.ErrNoSpace) || errors.Is(err, ipam.ErrNoRing) || errors.Is(err, ipam.ErrBehind) || errors.Is(err, ipam.ErrLeaving) {
		return &api.Error{Code: api.CodeNoSpace, Message: err.Error()}
	}
	return err
}

func (a *Agent) endpoint(key string) *endpointRecord {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.endpoints[key]
}

// Detach ends an endpoint, once nobody else is at it.
func (a *Agent) Detach(ctx context.Context, ref api.EndpointRef) error {
	done, err := a.turn(ctx, ref.Key())
	if err != nil {
		return err
	}
	defer done()
	a.ended.forget(ref.Key())
	return a.end(ctx, ref.Key())
}

// detachIdle ends an endpoint that nobody asked to end, unless somebody is at it.
func (a *Agent) detachIdle(ctx context.Context, ref api.EndpointRef) error {
	done, err := a.begin(ref.Key())
	if err != nil {
		return err
	}
	defer done()
	e := a.endpoint(ref.Key())
	if err := a.end(ctx, ref.Key()); err != nil || e == nil {
		return err
	}
	a.ended.note(e, time.Now())
	return nil
}

// end ends an endpoint that the caller has taken: first its link, then its routes, last its
// address, so that nobody else is given an address that is still in use.
func (a *Agent) end(ctx context.Context, key string) error {
	e := a.endpoint(key)
	if e == nil {
		return nil
	}
	snap, err := a.ipam.Snapshot(ctx)
	if err != nil {
		return err
	}
	if err := endpoint.Remove(e.HostLink); err != nil {
		return err
	}
	if err := a.router.Unplug(ctx, a.plug(e, snap)); err != nil {
		return err
	}
	if err := a.ipam.Free(ctx, key); err != nil {
		return err
	}
	a.setEndpoint(key, nil)
	a.repolice()
	a.rename()
	return a.forgetNames(key)
}

// Endpoint finds one endpoint.
func (a *Agent) Endpoint(ctx context.Context, ref api.EndpointRef) (api.Endpoint, error) {
	snap, err := a.ipam.Snapshot(ctx)
	if err != nil {
		return api.Endpoint{}, err
	}
	e := a.endpoint(ref.Key())
	if e == nil {
		return api.Endpoint{}, &api.Error{Code: api.CodeNotFound, Message: fmt.Sprintf("%s of container %s is not attached here", ref.Interface, ref.ContainerID)}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.describe(e, snap), nil
}

// describe is an endpoint as people see it. The caller holds the lock.
func (a *Agent) describe(e *endpointRecord, snap ipam.Snapshot) api.Endpoint {
	_, lost := snap.Lost[e.ref().Key()]
	return api.Endpoint{
		Lost: lost, ContainerID: e.ContainerID, Interface: e.Interface, Source: e.Source, Network: e.Network,
		Name: e.Name, Namespace: e.Namespace, HostLink: e.HostLink, MAC: e.MAC,
		Addresses: addresses(a.plug(e, snap)), Labels: e.Labels, Ports: e.Ports, Aliases: a.settings.aliases(e.ref().Key()),
		Withdrawn: slices.Contains(a.settings.Withdrawn, e.ref().Key()),
	}
}

// Collect ends the endpoints of a network that the runtime no longer knows.
func (a *Agent) Collect(ctx context.Context, req api.CollectRequest) error {
	return a.detachWhere(ctx, func(e *endpointRecord) bool {
		return e.Source == SourceCNI && e.Network == req.Network && !slices.Contains(req.Valid, e.ref())
	})
}

// detachWhere detaches every endpoint that a condition holds for, but for those that
// somebody else is attaching or detaching right now.
func (a *Agent) detachWhere(ctx context.Context, gone func(*endpointRecord) bool) error {
	a.mu.Lock()
	var those []*endpointRecord
	for _, e := range a.endpoints {
		if gone(e) {
			those = append(those, e)
		}
	}
	a.mu.Unlock()
	var errs []error
	for _, e := range those {
		ref := e.ref()
		err := a.detachIdle(ctx, ref)
		if busy, ok := errors.AsType[*api.Error](err); ok && busy.Code == api.CodeNotReady {
			continue
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("detach %s: %w", ref.Key(), err))
		} else {
			a.log.Info("endpoint is gone, its address is free again", "endpoint", ref.Key())
		}
	}
	return errors.Join(errs...)
}

// releaseVanished frees, at the start, what was lost with the host's namespaces
// while no agent ran. An address that cannot be freed now is no reason not to start.
func (a *Agent) releaseVanished(ctx context.Context) {
	present, err := endpoint.List()
	if err == nil {
		err = a.detachWhere(ctx, func(e *endpointRecord) bool { return !slices.Contains(present, e.HostLink) })
	}
	a.releaseQueued(ctx)
	if err != nil && ctx.Err() == nil {
		a.log.Warn("cannot free all that is gone", "err", err)
	}
}
