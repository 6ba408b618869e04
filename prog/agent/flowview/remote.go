package flowview

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"weft/mesh/peer"
	"weft/prog/agent/ask"
	"weft/prog/api"
	"weft/prog/words"
)

// requestList asks a member for its flows: api.FlowsRequest → listed, as JSON.
const requestList = "flows/list"

const (
	mostRequest = 64 << 10 // bytes of a request: the cursors of a thousand hosts
	mostAnswer  = 1 << 20  // bytes of an answer, so that other members can pass it on
	mostText    = 600      // bytes of a text that another host sent
	mostLabels  = 64       // labels of an end that another host sent

	// A member may ask this often; a command that follows flows asks once a second.
	askRate  = 4 * time.Second / 16
	askBurst = 16
)

// listed is the answer of one host.
type listed struct {
	Host  api.FlowsHost `json:"host"`
	Flows []api.Flow    `json:"flows"`
}

func newLimit() *ask.Limit { return &ask.Limit{Every: askRate, Burst: askBurst} }

// Handlers answer other members, by the kind of request.
func (w *View) Handlers() map[string]func(context.Context, peer.ID, []byte) ([]byte, error) {
	return map[string]func(context.Context, peer.ID, []byte) ([]byte, error){requestList: w.serve}
}

// serve answers a member with the flows of this host alone.
func (w *View) serve(_ context.Context, from peer.ID, payload []byte) ([]byte, error) {
	if !w.limit.Allow(from, time.Now()) {
		return nil, errors.New("too many questions about flows: try again in a moment")
	}
	req, err := decodeRequest(payload)
	if err != nil {
		return nil, err
	}
	f, err := check(req, time.Now())
	if err != nil {
		return nil, err
	}
	most := mostThere
	if req.Most > 0 {
		most = min(most, req.Most)
	}
	list, h := w.here(f, req.After[w.cfg.Self.String()], most)
	for {
		data, err := json.Marshal(listed{h, list})
		if err != nil || len(data) <= mostAnswer {
			return data, err
		}
		omit := len(list)/2 + len(list)%2 // the newest ones are left
		list = list[omit:]
		h.More += omit
	}
}

func encodeRequest(req api.FlowsRequest, most int) ([]byte, error) {
	req.AllHosts, req.Most = false, most
	return json.Marshal(req)
}

func decodeRequest(payload []byte) (req api.FlowsRequest, err error) {
	if len(payload) > mostRequest {
		return req, errors.New("the request is too long")
	}
	if err := json.Unmarshal(payload, &req); err != nil {
		return req, fmt.Errorf("invalid request: %w", err)
	}
	return req, nil
}

// decodeAnswer reads the answer of another host, which may lie: it reports flows as itself only, and
// nothing that it says can change a terminal.
func decodeAnswer(answer []byte, h *api.FlowsHost, most int) ([]api.Flow, error) {
	if len(answer) > mostAnswer {
		return nil, errors.New("its answer is too long")
	}
	var l listed
	if err := json.Unmarshal(answer, &l); err != nil {
		return nil, fmt.Errorf("its answer is not understood: %w", err)
	}
	if len(l.Flows) > most {
		return nil, fmt.Errorf("it answered with %d flows, more than asked for", len(l.Flows))
	}
	h.Error, h.Off, h.Next, h.Lost, h.More = words.Printable(l.Host.Error, mostText), l.Host.Off, l.Host.Next, l.Host.Lost, max(0, l.Host.More)
	for i := range l.Flows {
		f := &l.Flows[i]
		f.Peer, f.Nickname = h.Peer, h.Nickname
		if now := time.Now(); f.Last.After(now) { // a time to come would push out the flows of other hosts
			f.Last = now
		}
		for _, text := range []*string{&f.Verdict, &f.Protocol, &f.Direction, &f.Policy, &f.Rule, &f.Why} {
			*text = words.Printable(*text, mostText)
		}
		cleanEnd(&f.From)
		cleanEnd(&f.To)
		f.Source, f.Destination, f.Service = withoutZone(f.Source), withoutZone(f.Destination), withoutZone(f.Service)
	}
	return l.Flows, nil
}

func cleanEnd(e *api.FlowEnd) {
	e.Namespace, e.Name, e.Peer = words.Printable(e.Namespace, mostText), words.Printable(e.Name, mostText), words.Printable(e.Peer, mostText)
	e.Labels = cleanLabels(e.Labels)
}

// cleanLabels returns labels that are printable and not too many: the same ones if they are.
func cleanLabels(labels map[string]string) map[string]string {
	clean := len(labels) <= mostLabels
	for k, v := range labels {
		clean = clean && words.Printable(k, mostText) == k && words.Printable(v, mostText) == v
	}
	if clean {
		return labels
	}
	out := map[string]string{}
	for _, k := range slices.Sorted(maps.Keys(labels))[:min(mostLabels, len(labels))] {
		out[words.Printable(k, mostText)] = words.Printable(labels[k], mostText)
	}
	return out
}

// withoutZone removes the zone of an address, which is text.
func withoutZone(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().WithZone(""), a.Port())
}
