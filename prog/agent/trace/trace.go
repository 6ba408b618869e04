// Package trace follows one packet through the network: from the link of a container to the one of another, and its
// answer back. It sends the packet, and joins what the kernels of both hosts report with the names of policies.
//
// A Tracer owns the traces that run at the moment, at most a few and each for some seconds. It is safe for concurrent
// use. It sends a packet only when an operator of this host or, once a second, of another host asks for it, and only
// from an address of this host. It never enters a container.
package trace

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"time"

	"weft/mesh/peer"
	"weft/prog/agent/ask"
	"weft/prog/agent/attach"
	"weft/prog/agent/explain"
	"weft/prog/agent/hops"
	"weft/prog/agent/live"
	"weft/prog/agent/view"
	"weft/prog/api"
	"weft/prog/words"
	"weft/router/endpoint"
	"weft/router/link"
	"weft/router/policy"
	"weft/router/trace"
)

const (
	patience  = 2 * time.Second // how long an answer may take
	longest   = 5 * time.Second // how long a trace may take at one host
	mostAtOne = 4               // traces at once on one host
)

// Mesh asks other peers.
type Mesh interface {
	Request(ctx context.Context, to peer.ID, kind string, payload []byte) ([]byte, error)
}

// Explainer finds the ends of a connection, and evaluates policies.
type Explainer interface {
	Ends(source, destination string) (src, dst explain.End, err error)
	Explain(context.Context, api.ExplainRequest) (api.Explanation, error)
}

// Config configures a Tracer.
type Config struct {
	Self     peer.ID
	Mesh     Mesh
	View     live.Reader[*view.View]
	Attached live.Reader[[]attach.Endpoint]
	Explain  Explainer
	// Paths describes the tunnels of this host.
	Paths func(*view.View) (kind string, tunnels []api.Connection)
	Log   *slog.Logger
}

// Tracer follows packets.
type Tracer struct {
	cfg   Config
	slots chan struct{} // has one value for each trace that runs

	sending, watching *ask.Limit

	mu      sync.Mutex
	watches map[string]*watch
}

// New makes a tracer.
func New(cfg Config) *Tracer {
	return &Tracer{cfg: cfg, slots: make(chan struct{}, mostAtOne), sending: &ask.Limit{Every: time.Second, Burst: 4}, watching: &ask.Limit{Every: time.Second / 4, Burst: 16}, watches: map[string]*watch{}}
}

// Run removes what an earlier agent has left, and ends the traces when ctx ends.
func (t *Tracer) Run(ctx context.Context) error {
	if err := trace.Clean(); err != nil {
		t.cfg.Log.Warn("cannot remove what an earlier trace has left: remove it with `weft reset`", "err", err)
	}
	<-ctx.Done()
	t.mu.Lock()
	defer t.mu.Unlock()
	for key := range t.watches {
		t.forget(key)
	}
	return nil
}

// take reserves one of the traces that may run at once.
func (t *Tracer) take() (free func(), err error) {
	select {
	case t.slots <- struct{}{}:
		return func() { <-t.slots }, nil
	default:
		return nil, &api.Error{Code: api.CodeConflict, Message: fmt.Sprintf("%d traces run on this host already: try again in a few seconds", mostAtOne)}
	}
}

// Trace sends one packet, and follows it.
func (t *Tracer) Trace(ctx context.Context, req api.TraceRequest) (out api.TraceReply, err error) {
	ctx, cancel := context.WithTimeout(ctx, 3*longest)
	defer cancel()
	src, dst, err := t.cfg.Explain.Ends(req.Source, req.Destination)
	if err != nil {
		return out, err
	}
	if src.Owner == (peer.ID{}) {
		return out, &api.Error{Code: api.CodeBadRequest, Message: req.Source + " is no container or host of this network: only these can send the packet"}
	}
	p := trace.Packet{Port: req.Port}
	if p.Src, p.Dst, err = family(src, dst, req); err != nil {
		return out, err
	}
	if p.Protocol, err = protocol(req, p.Src.Is4()); err != nil {
		return out, err
	}
	if src.Owner == t.cfg.Self {
		out, err = t.here(ctx, src, dst, p)
	} else {
		out, err = t.there(ctx, src, p)
	}
	out.Source, out.Destination, out.From, out.To, out.Port, out.Protocol = src.Party, dst.Party, p.Src, p.Dst, p.Port, p.Protocol.String()
	return out, err
}

// family chooses the addresses of the packet.
func family(src, dst explain.End, req api.TraceRequest) (from, to netip.Addr, err error) {
	for _, from := range src.Addresses {
		for _, to := range dst.Addresses {
			if from.Is4() == to.Is4() && (req.Family == 0 || (req.Family == 4) == from.Is4()) {
				if from == to {
					return from, to, &api.Error{Code: api.CodeBadRequest, Message: "source and destination are the same: its packets never leave it"}
				}
				return from, to, nil
			}
		}
	}
	which := "one family"
	if req.Family != 0 {
		which = fmt.Sprintf("IPv%d", req.Family)
	}
	return from, to, &api.Error{Code: api.CodeBadRequest, Message: fmt.Sprintf("%s and %s have no addresses of %s", req.Source, req.Destination, which)}
}

// protocol returns the protocol of the packet: ICMP without a port.
func protocol(req api.TraceRequest, is4 bool) (policy.Protocol, error) {
	all := map[string]policy.Protocol{"TCP": policy.TCP, "UDP": policy.UDP, "SCTP": policy.SCTP, "ICMP": policy.ICMP}
	name := strings.ToUpper(cmp.Or(req.Protocol, "TCP"))
	if req.Port == 0 && req.Protocol == "" {
		name = "ICMP"
	}
	p, ok := all[name]
	switch {
	case !ok:
		return 0, &api.Error{Code: api.CodeBadRequest, Message: fmt.Sprintf("protocol %q is not TCP, UDP, SCTP or ICMP", words.Printable(req.Protocol, 20))}
	case p == policy.ICMP && req.Port != 0:
		return 0, &api.Error{Code: api.CodeBadRequest, Message: "ICMP has no ports: name icmp without a port"}
	case p != policy.ICMP && req.Port == 0:
		return 0, &api.Error{Code: api.CodeBadRequest, Message: name + " needs a port, such as 80/tcp; or name icmp"}
	case p == policy.ICMP && !is4:
		return policy.ICMPv6, nil
	}
	return p, nil
}

// here sends the packet from this host.
func (t *Tracer) here(ctx context.Context, src, dst explain.End, p trace.Packet) (out api.TraceReply, err error) {
	free, err := t.take()
	if err != nil {
		return out, err
	}
	defer free()
	const firstPort = 61001 // after the ports that kernels choose for connections
	p.ID = firstPort + uint16(rand.N(65535-firstPort))
	v := t.cfg.View.Get()
	far := t.ask(ctx, v, dst, p)
	s, err := trace.Open(p)
	if err != nil {
		return out, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	sent, err := t.send(v, src, p)
	if err != nil {
		return out, err
	}
	defer func() { err = errors.Join(err, sent()) }()
	at, end := t.place(v, p, far), time.Now().Add(patience)
	near := await(ctx, s, at, p, end, nil, func(now hops.Part) bool {
		return now.Done() || far != nil && far.Err == "" && now.End == hops.EndTunnel
	})
	switch {
	case far == nil || far.Err != "":
	case near.BackEnd == "" && near.End != hops.EndTunnel: // it did not get there
		t.collect(ctx, dst.Owner, p, far, false)
		far = nil
	default:
		collected := make(chan struct{})
		go func() {
			defer close(collected)
			t.collect(ctx, dst.Owner, p, far, true)
		}()
		dropped := false
		near = await(ctx, s, at, p, end, collected, func(now hops.Part) bool {
			select {
			case <-collected:
				dropped = far.Part.End == hops.EndDropped
			default:
			}
			return now.Done() || dropped
		})
		<-collected
	}
	out = assemble(p, at.Name, near, far)
	t.explain(ctx, p, &out)
	return out, nil
}

// assemble puts together what the kernels of both hosts reported. far is nil if the packet did not get there.
func assemble(p trace.Packet, name string, near hops.Part, far *hops.Remote) (out api.TraceReply) {
	out.Hops = append([]api.TraceHop{}, near.There...)
	if far != nil && far.Err == "" {
		out.Hops = append(append(out.Hops, far.Part.There...), far.Part.Back...)
	} else if far != nil {
		out.Incomplete = append(out.Incomplete, far.Name+" does not report: "+far.Err)
	}
	out.Hops = append(out.Hops, near.Back...)
	if near.Missing {
		out.Incomplete = append(out.Incomplete, "the kernel reported more than could be recorded: hops may be missing")
	}
	out.Result, out.Ended = hops.Conclude(p, name, near, far)
	if n := len(near.Back); n > 0 && near.BackEnd != hops.EndDropped {
		out.RoundTrip = new(near.Back[n-1].At)
	}
	return out
}

// explain adds why policies decided as they did.
func (t *Tracer) explain(ctx context.Context, p trace.Packet, out *api.TraceReply) {
	name := p.Protocol.String()
	if p.Port == 0 {
		name = policy.ICMP.String()
	}
	e, err := t.cfg.Explain.Explain(ctx, api.ExplainRequest{Source: p.Src.String(), Destination: p.Dst.String(), Port: p.Port, Protocol: name})
	if err != nil || len(e.Verdicts) == 0 {
		return // the kernel's verdicts stand without it
	}
	ended := ""
	if out.Result == api.TraceDropped {
		ended = out.Ended
	}
	hops.Explain(out.Hops, e.Verdicts[0], &ended)
	out.Ended = cmp.Or(ended, out.Ended)
}

// send sends the packet: from a container's link, or from this host. done removes what that needed; the packet may be
// on its way through it for a moment.
func (t *Tracer) send(v *view.View, src explain.End, p trace.Packet) (done func() error, err error) {
	if !src.Container {
		return func() error { return nil }, trace.SendLocal(p)
	}
	n, _ := v.Ring.Universe.Slot(p.Src)
	for _, e := range t.cfg.Attached.Get() {
		if e.Slot != n {
			continue
		}
		plug := e.Plug(v.Ring.Universe, true)
		ends := trace.Ends{Host: endpoint.PairOf(plug.HostLink).HostMAC, Container: plug.ContainerMAC}
		i, err := trace.OpenInjector(plug.HostLink, ends, p.ID)
		if err != nil {
			return nil, err
		}
		if err := i.Send(p, ends); err != nil {
			return nil, errors.Join(err, i.Close())
		}
		return i.Close, nil
	}
	return nil, &api.Error{Code: api.CodeNotFound, Message: fmt.Sprintf("%v is no container of this host any longer", p.Src)}
}

// await waits until enough has happened here, or the end. wake makes it look again.
func await(ctx context.Context, s *trace.Session, at hops.Place, p trace.Packet, end time.Time, wake <-chan struct{}, enough func(hops.Part) bool) (now hops.Part) {
	late := time.After(time.Until(end))
	for {
		events, missing := s.Events()
		now = hops.Assemble(at, p, events)
		now.Missing = missing
		if enough(now) {
			return now
		}
		select {
		case <-ctx.Done():
			return now
		case <-late:
			return now
		case <-wake:
			wake = nil
		case <-s.Changed():
		}
	}
}

// place describes this host for a packet.
func (t *Tracer) place(v *view.View, p trace.Packet, far *hops.Remote) hops.Place {
	at := hops.Place{Name: v.Name(t.cfg.Self), Links: map[int]string{}, NoRoute: "unknown"}
	h, err := link.Handle()
	if err != nil {
		return at
	}
	defer h.Close()
	links, err := link.Dump(h.LinkList)
	if err != nil {
		return at
	}
	for _, l := range links {
		at.Links[l.Attrs().Index] = l.Attrs().Name
	}
	if _, err := link.WayTo(h, p.Dst, netip.Addr{}); err != nil {
		at.NoRoute = words.Cause(err)
	}
	universe := v.Ring.Universe
	for _, e := range t.cfg.Attached.Get() {
		n, ok := universe.Slot(p.Src)
		at.From = at.From || ok && n == e.Slot
		n, ok = universe.Slot(p.Dst)
		at.To = at.To || ok && n == e.Slot
	}
	if far != nil {
		at.Tunnel = " to " + far.Name + ": " + far.Path
	}
	return at
}

// there asks the source's host to send the packet.
func (t *Tracer) there(ctx context.Context, src explain.End, p trace.Packet) (out api.TraceReply, err error) {
	data, err := json.Marshal(wire{Protocol: uint8(p.Protocol), Src: p.Src, Dst: p.Dst, Port: p.Port})
	if err == nil {
		data, err = t.cfg.Mesh.Request(ctx, src.Owner, requestRun, data)
	}
	if err == nil {
		out, err = decodeReply(data)
	}
	if err != nil {
		return out, fmt.Errorf("%s, the host of the source, does not trace: %s: start its agent, or upgrade it if it is of an older version", src.Peer, words.Printable(words.Cause(err), mostText))
	}
	return out, nil
}
