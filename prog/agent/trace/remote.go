package trace

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"weft/mesh/peer"
	"weft/prog/agent/explain"
	"weft/prog/agent/hops"
	"weft/prog/agent/view"
	"weft/prog/api"
	"weft/prog/words"
	"weft/router/policy"
	"weft/router/trace"
)

// These requests are JSON. Run: wire → api.TraceReply. Watch: wire → nothing. Collect: wire → part.
const (
	requestRun     = "trace/run"     // send a packet from an endpoint of that host
	requestWatch   = "trace/watch"   // record a packet that is about to be sent
	requestCollect = "trace/collect" // report what was recorded
)

// Bounds of what a peer sends.
const (
	mostRequest = 4 << 10
	mostAnswer  = 256 << 10
	mostHops    = 64
	mostText    = 600
)

var errTooMany = errors.New("too many traces: try again in a moment")

// wire is a packet in a request.
type wire struct {
	Protocol uint8      `json:"protocol"`
	Src      netip.Addr `json:"src"`
	Dst      netip.Addr `json:"dst"`
	Port     uint16     `json:"port,omitempty"`
	ID       uint16     `json:"id,omitempty"`
	Wait     bool       `json:"wait,omitempty"` // collect: until nothing more can happen
}

func wireOf(p trace.Packet) wire { return wire{uint8(p.Protocol), p.Src, p.Dst, p.Port, p.ID, false} }

// decodePacket reads a packet that a peer wrote.
func decodePacket(b []byte) (p trace.Packet, wait bool, err error) {
	p, w, err := decode(b)
	return p, w.Wait, err
}

func decode(b []byte) (p trace.Packet, w wire, err error) {
	if len(b) > mostRequest {
		return p, w, errors.New("the request is too long")
	}
	if err := json.Unmarshal(b, &w); err != nil {
		return p, w, fmt.Errorf("invalid request: %w", err)
	}
	p = trace.Packet{Protocol: policy.Protocol(w.Protocol), Src: w.Src.Unmap(), Dst: w.Dst.Unmap(), Port: w.Port, ID: w.ID}
	ports, is4 := false, p.Src.Is4()
	switch p.Protocol {
	case policy.TCP, policy.UDP, policy.SCTP:
		ports = true
	case policy.ICMP, policy.ICMPv6:
		if (p.Protocol == policy.ICMP) != is4 {
			return p, w, errors.New("invalid request: ICMP of another family")
		}
	default:
		return p, w, errors.New("invalid request: the protocol is not TCP, UDP, SCTP or ICMP")
	}
	if !p.Src.IsValid() || !p.Dst.IsValid() || is4 != p.Dst.Is4() || p.Src.Zone() != "" || p.Dst.Zone() != "" || p.Src == p.Dst || ports != (p.Port != 0) {
		return p, w, errors.New("invalid request: want two different addresses of one family, and a port for TCP, UDP and SCTP only")
	}
	return p, w, nil
}

// clean keeps hops of another host within bounds, and printable. The host speaks for itself only.
func clean(list []api.TraceHop, host string) []api.TraceHop {
	list = list[:min(len(list), mostHops)]
	for i := range list {
		h := &list[i]
		for _, text := range []*string{&h.Stage, &h.What, &h.Verdict, &h.Detail, &h.Host} {
			*text = words.Printable(*text, mostText)
		}
		if host != "" {
			h.Host = host
		}
	}
	return list
}

// decodePart reads what another host saw.
func decodePart(b []byte, host string) (p hops.Part, err error) {
	if len(b) > mostAnswer {
		return p, errors.New("its answer is too long")
	}
	if err := json.Unmarshal(b, &p); err != nil {
		return hops.Part{}, fmt.Errorf("its answer is not understood: %w", err)
	}
	p.There, p.Back = clean(p.There, host), clean(p.Back, host)
	for _, text := range []*string{&p.End, &p.Why, &p.BackEnd, &p.BackWhy, &p.Answer.What} {
		*text = words.Printable(*text, mostText)
	}
	return p, nil
}

// decodeReply reads the trace of another host.
func decodeReply(b []byte) (r api.TraceReply, err error) {
	if len(b) > mostAnswer {
		return r, errors.New("its answer is too long")
	}
	var got api.TraceReply
	if err := json.Unmarshal(b, &got); err != nil {
		return r, fmt.Errorf("its answer is not understood: %w", err)
	}
	r.Hops, r.RoundTrip = clean(got.Hops, ""), got.RoundTrip
	r.Result, r.Ended = words.Printable(got.Result, mostText), words.Printable(got.Ended, 2*mostText)
	for _, text := range got.Incomplete[:min(len(got.Incomplete), mostHops)] {
		r.Incomplete = append(r.Incomplete, words.Printable(text, mostText))
	}
	return r, nil
}

// watch is a packet that another host is about to send here.
type watch struct {
	session *trace.Session
	free    func()
	timer   *time.Timer
	busy    bool // a request collects it
}

// forget ends a watch. The caller holds the lock.
func (t *Tracer) forget(key string) {
	w := t.watches[key]
	if w == nil {
		return
	}
	delete(t.watches, key)
	w.timer.Stop()
	if err := w.session.Close(); err != nil {
		t.cfg.Log.Warn("cannot remove a trace: restart the agent to remove it", "err", err)
	}
	w.free()
}

// Handlers answer other peers, by the kind of request.
func (t *Tracer) Handlers() map[string]func(context.Context, peer.ID, []byte) ([]byte, error) {
	return map[string]func(context.Context, peer.ID, []byte) ([]byte, error){
		requestRun: t.serveRun, requestWatch: t.serveWatch, requestCollect: t.serveCollect,
	}
}

// owner returns the host of an address of the network.
func (t *Tracer) owner(a netip.Addr) (explain.End, error) {
	end, _, err := t.cfg.Explain.Ends(a.String(), a.String())
	return end, err
}

// serveRun sends a packet from an endpoint of this host, or from this host, for another member.
func (t *Tracer) serveRun(ctx context.Context, from peer.ID, payload []byte) ([]byte, error) {
	p, _, err := decodePacket(payload)
	if err != nil {
		return nil, err
	}
	if !t.sending.Allow(from, time.Now()) {
		return nil, errTooMany
	}
	src, dst, err := t.cfg.Explain.Ends(p.Src.String(), p.Dst.String())
	if err != nil {
		return nil, err
	}
	if src.Owner != t.cfg.Self {
		return nil, fmt.Errorf("%v is no address of this host", p.Src)
	}
	ctx, cancel := context.WithTimeout(ctx, 2*longest)
	defer cancel()
	out, err := t.here(ctx, src, dst, p)
	if err != nil {
		return nil, err
	}
	return json.Marshal(out)
}

// serveWatch records a packet between an address of the asking host and one of this host.
func (t *Tracer) serveWatch(_ context.Context, from peer.ID, payload []byte) ([]byte, error) {
	p, _, err := decodePacket(payload)
	if err != nil {
		return nil, err
	}
	src, err := t.owner(p.Src)
	if err != nil {
		return nil, err
	}
	dst, err := t.owner(p.Dst)
	if err != nil {
		return nil, err
	}
	if src.Owner != from || dst.Owner != t.cfg.Self {
		return nil, errors.New("only packets from an address of the asking host to one of this host are traced")
	}
	if !t.watching.Allow(from, time.Now()) {
		return nil, errTooMany
	}
	free, err := t.take()
	if err != nil {
		return nil, err
	}
	s, err := trace.Open(p)
	if err != nil {
		free()
		return nil, err
	}
	key := from.String() + " " + fmt.Sprint(p)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.forget(key)
	t.watches[key] = &watch{session: s, free: free, timer: time.AfterFunc(longest, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if w := t.watches[key]; w != nil && w.session == s {
			t.forget(key)
		}
	})}
	return []byte("{}"), nil
}

// serveCollect waits until nothing more can happen to a packet here, and reports what was recorded.
func (t *Tracer) serveCollect(ctx context.Context, from peer.ID, payload []byte) ([]byte, error) {
	p, wait, err := decodePacket(payload)
	if err != nil {
		return nil, err
	}
	key := from.String() + " " + fmt.Sprint(p)
	t.mu.Lock()
	w := t.watches[key]
	if w == nil || w.busy {
		t.mu.Unlock()
		return nil, errors.New("this packet is not traced here")
	}
	w.busy = true
	t.mu.Unlock()
	end := time.Now()
	if wait {
		end = end.Add(patience)
	}
	now := await(ctx, w.session, t.place(t.cfg.View.Get(), p, nil), p, end, nil, hops.Part.Done)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.watches[key] == w {
		t.forget(key)
	}
	return json.Marshal(now)
}

// ask asks the destination's host to record the packet; nil if there is none.
func (t *Tracer) ask(ctx context.Context, v *view.View, dst explain.End, p trace.Packet) *hops.Remote {
	if dst.Owner == t.cfg.Self || dst.Owner == (peer.ID{}) {
		return nil
	}
	far := &hops.Remote{Name: v.Name(dst.Owner), Path: t.path(v, dst.Owner)}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	data, err := json.Marshal(wireOf(p))
	if err == nil {
		_, err = t.cfg.Mesh.Request(ctx, dst.Owner, requestWatch, data)
	}
	if err != nil {
		far.Err = words.Printable(words.Cause(err), mostText)
	}
	return far
}

// collect asks the destination's host what it saw.
func (t *Tracer) collect(ctx context.Context, to peer.ID, p trace.Packet, far *hops.Remote, wait bool) {
	ctx, cancel := context.WithTimeout(ctx, 2*patience)
	defer cancel()
	w := wireOf(p)
	w.Wait = wait
	data, err := json.Marshal(w)
	if err == nil {
		data, err = t.cfg.Mesh.Request(ctx, to, requestCollect, data)
	}
	if err == nil {
		far.Part, err = decodePart(data, far.Name)
	}
	if err != nil {
		far.Err = words.Printable(words.Cause(err), mostText)
	}
}

// path describes the tunnel to a peer.
func (t *Tracer) path(v *view.View, id peer.ID) string {
	_, all := t.cfg.Paths(v)
	for _, c := range all {
		if c.Peer != id.String() {
			continue
		}
		var via []string
		for _, one := range c.Via {
			via = append(via, t.nameOf(v, one))
		}
		text := c.State
		if len(via) > 0 {
			text += " via " + strings.Join(via, ", ")
		}
		if c.MTU != 0 {
			text += fmt.Sprintf(", mtu=%d", c.MTU)
		}
		return text
	}
	return "unknown"
}

func (t *Tracer) nameOf(v *view.View, word string) string {
	id, err := peer.ParseID(word)
	if err != nil {
		return word
	}
	return v.Name(id)
}
