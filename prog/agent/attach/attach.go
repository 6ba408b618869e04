// Package attach owns the endpoints of this host, their addresses, and the releases that weft-cni
// queued while no agent ran.
//
// Attachments publish the endpoints after every change, sorted by key; published values are never
// changed. One operation at a time works on an endpoint; different endpoints do not wait for each
// other. Attach only returns when the kernel enforces the endpoint's policies. The goroutine of Run
// releases ended endpoints every two seconds.
package attach

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"weft/ipam"
	"weft/ipam/slot"
	"weft/prog/agent/live"
	"weft/prog/agent/settings"
	"weft/prog/agent/unattached"
	"weft/prog/agent/view"
	"weft/prog/api"
	"weft/router/endpoint"
	"weft/router/link"
)

// addressTimeout bounds how long an attachment waits for an address.
const addressTimeout = 8 * time.Second

// IPAM gives slots to keys, and frees the slots.
type IPAM interface {
	Allocate(ctx context.Context, key string, note []byte) (slot.Slot, error)
	Claim(ctx context.Context, key string, want slot.Slot, note []byte) error
	Free(ctx context.Context, key string) error
}

// Router programs the host side of endpoints.
type Router interface {
	Plug(context.Context, endpoint.Endpoint) error
	Unplug(context.Context, ...endpoint.Endpoint) error
}

// Pods has the API server's information about pods, in addition to the plugin's request. Without
// Kubernetes it is NoPods.
type Pods interface {
	// Complete replaces the labels and ports of a pod's request by those of the API server.
	Complete(context.Context, *api.AttachRequest) error
	// Current returns the labels and ports that a pod has now; false if the pod is not known.
	Current(namespace, name, uid string) (labels map[string]string, ports []api.Port, ok bool)
	// Ended reports whether the API server no longer has a pod.
	Ended(namespace, name, uid string) bool
}

// Store keeps the request of each endpoint together with its allocation.
type Store interface {
	Notes(add func(key string, s slot.Slot, note []byte) error) error
}

// Config configures Attachments.
type Config struct {
	Store    Store
	IPAM     IPAM
	Router   Router
	Pods     Pods
	Settings *settings.Settings
	View     live.Reader[*view.View]
	Watch    *link.Watch // reports changed links; nil: the reaper reads all links each time
	Log      *slog.Logger
	IPv6     bool
	// Ready reports why no endpoint can be attached yet.
	Ready func(context.Context) error
	// Isolate returns once the kernel enforces all policies for the attached endpoints.
	Isolate func() error
	// Resolver returns the content of resolv.conf for the endpoints of a namespace.
	Resolver func(namespace string) *api.Resolver
	// Short returns a name without the DNS domain.
	Short func(name string) string
	// MTU returns the MTU for the link of a new endpoint.
	MTU func() int
	// Unattached keeps containers whose attachment ended with their namespace.
	Unattached *unattached.Containers
	// Checked is called when the result of Check may have changed.
	Checked  func()
	Releases string // the folder of queued releases
}

// Attachments own the endpoints of this host.
type Attachments struct {
	live.Value[[]Endpoint]

	cfg    Config
	busy   keys // the endpoints on which operations work
	queue  queue
	strays strays
	links  link.Reading[[]string]
	failed live.Value[error] // why Attachments cannot attach yet

	mu        sync.Mutex
	endpoints map[string]*record // the endpoints by api.EndpointRef.Key
}

// record is an endpoint, and what the reaper has found out about its link.
type record struct {
	Endpoint
	missing int // the number of rounds in a row in which its link did not exist
}

// errStarting means that the endpoints of the previous agent were not checked yet.
var errStarting = errors.New("the agent is starting")

// New makes Attachments from the store; Run starts them.
func New(cfg Config) (*Attachments, error) {
	a := &Attachments{cfg: cfg, busy: keys{taken: map[string]chan struct{}{}}, queue: queue{dir: cfg.Releases}, endpoints: map[string]*record{}}
	a.failed.Set(errStarting)
	err := cfg.Store.Notes(func(key string, s slot.Slot, note []byte) error {
		e := &record{Endpoint: Endpoint{Slot: s}}
		if err := json.Unmarshal(note, &e.AttachRequest); err != nil {
			return fmt.Errorf("endpoint %s: %w", key, err)
		}
		a.endpoints[key] = e
		return nil
	})
	a.mu.Lock()
	defer a.mu.Unlock()
	a.publish()
	return a, err
}

// publish publishes the endpoints. The caller holds the lock.
func (a *Attachments) publish() {
	follow(a.endpoints, a.cfg.Pods)
	list := make([]Endpoint, 0, len(a.endpoints))
	for _, key := range slices.Sorted(maps.Keys(a.endpoints)) {
		list = append(list, a.endpoints[key].Endpoint)
	}
	a.Set(list)
}

// follow gives endpoints the labels and ports that their pods have now, and reports whether any of
// them changed. The endpoint of a pod that ended keeps its last labels and ports.
func follow(endpoints map[string]*record, pods Pods) (changed bool) {
	for _, e := range endpoints {
		labels, ports, ok := pods.Current(e.Namespace, e.Name, e.PodUID)
		if ok && (!maps.Equal(labels, e.Labels) || !slices.Equal(ports, e.Ports)) {
			e.Labels, e.Ports = labels, ports
			changed = true
		}
	}
	return changed
}

// PodsChanged publishes the endpoints with the pods' new labels. After it returns, policies of the same
// change apply to these labels.
func (a *Attachments) PodsChanged() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if follow(a.endpoints, a.cfg.Pods) {
		a.publish()
	}
}

// set adds or replaces the endpoint of a key, and publishes the endpoints; nil deletes the endpoint.
func (a *Attachments) set(key string, e *record) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if e == nil {
		delete(a.endpoints, key)
	} else {
		a.endpoints[key] = e
	}
	a.publish()
}

// get returns an endpoint; false if there is none.
func (a *Attachments) get(key string) (Endpoint, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if e := a.endpoints[key]; e != nil {
		return e.Endpoint, true
	}
	return Endpoint{}, false
}

// universe returns the ring's universe; an error while there is no ring.
func (a *Attachments) universe() (slot.Universe, error) {
	v := a.cfg.View.Get()
	if v == nil || v.Ring.IsZero() {
		return slot.Universe{}, ipam.ErrNoRing
	}
	return v.Ring.Universe, nil
}

// Attach announces an endpoint and allocates its addresses. If the runtime does not continue, it must
// call Detach.
func (a *Attachments) Attach(ctx context.Context, req api.AttachRequest) (reply api.AttachReply, err error) {
	if err := a.cfg.Ready(ctx); err != nil {
		return reply, err
	}
	if req.Source == api.SourceAttach {
		req.Name = a.cfg.Short(req.Name)
	}
	if err := validate(req); err != nil {
		return reply, err
	}
	if err := a.cfg.Pods.Complete(ctx, &req); err != nil {
		return reply, err
	}
	a.releaseQueued(ctx) // a queued release belongs to an earlier endpoint with this key
	e := &record{Endpoint: Endpoint{AttachRequest: req, MTU: a.cfg.MTU()}}
	key := e.Key()
	done, err := a.busy.begin(key)
	if err != nil {
		return reply, err
	}
	defer done()
	u, err := a.universe()
	if err != nil {
		return reply, spaceError(err)
	}
	if old, ok := a.get(key); ok {
		return reply, &api.Error{Code: api.CodeConflict, Message: fmt.Sprintf(
			"%s of container %s is attached already, as %v: detach it first", req.Interface, req.ContainerID, u.Addr4(old.Slot))}
	}
	wait, cancel := context.WithTimeout(ctx, addressTimeout)
	defer cancel()
	note, err := json.Marshal(req)
	if err != nil {
		return reply, fmt.Errorf("attach %s: %w", key, err)
	}
	if e.Slot, err = address(wait, a.cfg.IPAM, key, req.Addresses, note, u); err != nil {
		return reply, spaceError(err)
	}
	a.set(key, e)
	a.cfg.Unattached.Forget(key)
	// Isolate the endpoint now, before its link is plugged in: until then it has no packets.
	if err := a.cfg.Isolate(); err != nil {
		return reply, fmt.Errorf("isolate %s: %w", key, err)
	}
	return api.AttachReply{
		Addresses: addresses(e.Plug(u, a.cfg.IPv6)), Universe: prefixes(u, a.cfg.IPv6), MTU: e.MTU, Resolver: a.cfg.Resolver(e.Namespace),
	}, nil
}

// address gives an endpoint the addresses that it asks for, or any free one if it asks for none.
func address(ctx context.Context, from IPAM, key string, asked []netip.Addr, note []byte, u slot.Universe) (slot.Slot, error) {
	if len(asked) == 0 {
		return from.Allocate(ctx, key, note)
	}
	want, _ := u.Slot(asked[0])
	for _, addr := range asked {
		s, ok := u.Slot(addr)
		if !ok {
			return 0, &api.Error{Code: api.CodeBadRequest, Message: fmt.Sprintf("%v cannot be allocated: it is outside %v", addr, u)}
		}
		if s != want {
			return 0, &api.Error{Code: api.CodeBadRequest, Message: fmt.Sprintf(
				"%v and %v cannot be allocated together: the addresses %v and %v belong together", asked[0], addr, u.Addr4(want), u.Addr6(want))}
		}
	}
	err := from.Claim(ctx, key, want, note)
	refused, ok := errors.AsType[*ipam.ClaimError](err)
	for ok && refused.Held && ctx.Err() == nil { // other peers may still have the old name of this address, for a moment
		live.Pause(ctx, 100*time.Millisecond)
		err = from.Claim(ctx, key, want, note)
		refused, ok = errors.AsType[*ipam.ClaimError](err)
	}
	if ok {
		e := &api.Error{Code: api.CodeConflict, Message: fmt.Sprintf("%v cannot be allocated: %s", asked[0], refused.Why)}
		if refused.Later {
			e.Code = api.CodeNoSpace
		}
		return 0, e
	}
	return want, err
}

// Plug programs the host side of an endpoint that Attach has added.
func (a *Attachments) Plug(ctx context.Context, ref api.EndpointRef) error {
	key := ref.Key()
	done, err := a.busy.begin(key)
	if err != nil {
		return err
	}
	defer done()
	u, err := a.universe()
	if err != nil {
		return err
	}
	e, ok := a.get(key)
	if !ok {
		return &api.Error{Code: api.CodeNotReady, Message: "plug: no address was given to " + key + " (the agent was started meanwhile?): try again"}
	}
	if err := a.cfg.Router.Plug(ctx, e.Plug(u, a.cfg.IPv6)); err != nil {
		return fmt.Errorf("plug %s: %w", key, err)
	}
	return nil
}

// prefixes lists the destinations that containers reach through the overlay.
func prefixes(u slot.Universe, ipv6 bool) []netip.Prefix {
	out := []netip.Prefix{u.V4}
	if ipv6 {
		out = append(out, u.V6)
	}
	return out
}

func validate(req api.AttachRequest) error {
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
	case req.Source != api.SourceCNI && req.Source != api.SourceAttach:
		return &api.Error{Code: api.CodeBadRequest, Message: "attach: unknown source " + req.Source}
	}
	entry := Endpoint{AttachRequest: req}.Entry()
	if req.Source == api.SourceCNI { // a runtime cannot choose other names: names that do not fit are left out
		entry, _ = entry.Fit()
	}
	if err := entry.Check(); err != nil {
		return &api.Error{Code: api.CodeBadRequest, Message: "attach: " + err.Error()}
	}
	return nil
}

// spaceError adds the API's error code to the reason why there was no address.
func spaceError(err error) error {
	if errors.Is(err, ipam.ErrNoSpace) || errors.Is(err, ipam.ErrNoRing) || errors.Is(err, ipam.ErrBehind) || errors.Is(err, ipam.ErrLeaving) {
		return &api.Error{Code: api.CodeNoSpace, Message: err.Error()}
	}
	return err
}

// Endpoint returns one endpoint, for the CNI plugin's CHECK.
func (a *Attachments) Endpoint(_ context.Context, ref api.EndpointRef) (api.Endpoint, error) {
	e, ok := a.get(ref.Key())
	if !ok {
		return api.Endpoint{}, &api.Error{Code: api.CodeNotFound, Message: fmt.Sprintf("%s of container %s is not attached here", ref.Interface, ref.ContainerID)}
	}
	return e.describe(a.cfg.View.Get(), a.cfg.Settings.Get(), a.cfg.IPv6), nil
}

// Find returns the keys of the endpoints that an argument names: a container's id or name, or else
// the beginning of an id.
func (a *Attachments) Find(word string) ([]string, error) {
	var exact, begin []string
	for _, e := range a.Get() {
		switch {
		case word == "": // a script's variable was empty: it must not match every endpoint
		case e.ContainerID == word || strings.EqualFold(e.Name, word) || strings.EqualFold(e.Namespace+"/"+e.Name, word):
			exact = append(exact, e.Key())
		case strings.HasPrefix(e.ContainerID, word):
			begin = append(begin, e.Key())
		}
	}
	switch {
	case len(exact) > 0:
		return exact, nil
	case len(begin) > 0:
		return begin, nil
	}
	return nil, &api.Error{Code: api.CodeNotFound, Message: fmt.Sprintf("%s is not attached to this host (`weft ps` lists the attached containers)", word)}
}
