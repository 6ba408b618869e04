package flowview

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"weft/mesh/peer"
	"weft/prog/agent/ask"
	"weft/prog/api"
	"weft/prog/flows"
	"weft/prog/words"
	"weft/router/policy"
)

const (
	// mostHere bounds the flows of one host in an answer to its operator.
	mostHere = 4000
	// mostThere bounds the flows of one host in an answer to another member.
	mostThere = 1000
	// mostInAll bounds the flows of all hosts in an answer.
	mostInAll = 8000
	// mostWord bounds the length of a condition.
	mostWord = 512
)

var verdicts = map[flows.Verdict]string{flows.Allowed: api.FlowAllowed, flows.Denied: api.FlowDenied, flows.Audit: api.FlowAudit}

// verdictOf returns a verdict by its name.
func verdictOf(name string) flows.Verdict {
	for v, known := range verdicts {
		if known == name {
			return v
		}
	}
	return flows.Unknown
}

// check reads the conditions of a request, which may come from another host.
func check(r api.FlowsRequest, now time.Time) (f flows.Filter, err error) {
	bad := func(format string, args ...any) (flows.Filter, error) {
		return f, &api.Error{Code: api.CodeBadRequest, Message: fmt.Sprintf(format, args...)}
	}
	for _, one := range []struct {
		word string
		to   *flows.Ends
	}{{r.From, &f.From}, {r.To, &f.To}} {
		if len(one.word) > mostWord || !peer.Printable(one.word) {
			return bad("a condition is longer than %s, or has control characters", words.Count(mostWord, "byte"))
		}
		*one.to = flows.ParseEnds(one.word)
	}
	switch p := strings.ToUpper(r.Protocol); p {
	case "":
	case "ICMP":
		f.Protocols = []policy.Protocol{policy.ICMP, policy.ICMPv6}
	default:
		for _, known := range []policy.Protocol{policy.TCP, policy.UDP, policy.SCTP} {
			if known.String() == p {
				f.Protocols = append(f.Protocols, known)
			}
		}
		if f.Protocols == nil {
			return bad("protocol %.20q is not TCP, UDP, SCTP or ICMP", r.Protocol)
		}
	}
	if f.Verdict = verdictOf(r.Verdict); f.Verdict == flows.Unknown && r.Verdict != "" {
		return bad("verdict %.20q is not allowed, denied or audit", r.Verdict)
	}
	if !(r.Since >= 0) { // also refuses a value that is no number
		return bad("since is negative: want seconds before now")
	}
	if r.Most < 0 {
		return bad("most is negative: want a number of flows")
	}
	const year = 365 * 24 * 3600
	if r.Since > 0 {
		f.Since = now.Add(-time.Duration(min(r.Since, year) * float64(time.Second)))
	}
	f.Port = r.Port
	return f, nil
}

// here returns the flows of this host.
func (w *View) here(f flows.Filter, after uint64, most int) (out []api.Flow, h api.FlowsHost) {
	h = w.self()
	if w.cfg.Off {
		h.Off = true
		return nil, h
	}
	w.mu.Lock()
	w.name() // so that an answer has what happened just before the question
	list, more, next := w.table.Select(after, most, f.Fits)
	h.More, h.Next, h.Lost = more, next, w.lost+w.table.Counts().Unlooked
	if w.broken != "" {
		h.Error = w.broken
	}
	w.mu.Unlock()
	for i := range list {
		out = append(out, output(&list[i], h))
	}
	return out, h
}

// self describes this host.
func (w *View) self() (h api.FlowsHost) {
	h.Peer, h.Nickname = w.cfg.Self.String(), w.nickname(w.cfg.Self)
	return h
}

func (w *View) nickname(id peer.ID) string {
	if v := w.cfg.View.Get(); v != nil {
		return v.Records[id].Nickname
	}
	return ""
}

// output returns a flow as output has it.
func output(f *flows.Flow, h api.FlowsHost) api.Flow {
	e := &f.Entry
	out := api.Flow{
		ID: f.ID, Peer: h.Peer, Nickname: h.Nickname, Start: f.Start().UTC(), Last: f.Last().UTC(), Ended: f.Ended,
		Verdict: verdicts[f.Facts.Verdict], Protocol: e.Original.Protocol.String(),
		Source: e.Original.Src, Destination: e.ReplySrc, From: outputEnd(f.Facts.From), To: outputEnd(f.Facts.To),
		SentPackets: e.Sent.Packets, SentBytes: e.Sent.Bytes, ReceivedPackets: e.Received.Packets, ReceivedBytes: e.Received.Bytes,
		Direction: f.Facts.Direction, Policy: f.Facts.Policy, Rule: f.Facts.Rule, Why: f.Facts.Why,
	}
	if e.Original.Dst != e.ReplySrc {
		out.Service = e.Original.Dst
	}
	return out
}

func outputEnd(e *flows.End) api.FlowEnd {
	return api.FlowEnd{Namespace: e.Namespace, Name: e.Name, Labels: e.Labels, Peer: e.Peer, Node: e.Node}
}

// Flows lists the flows of this host, or of all hosts.
func (w *View) Flows(ctx context.Context, req api.FlowsRequest) (r api.FlowsReply, err error) {
	f, err := check(req, time.Now())
	if err != nil {
		return r, err
	}
	most := mostHere
	if req.AllHosts {
		most = mostThere
	}
	if req.Most > 0 {
		most = min(most, req.Most)
	}
	list, h := w.here(f, req.After[w.cfg.Self.String()], most)
	r.Flows, r.Hosts = append([]api.Flow{}, list...), []api.FlowsHost{h}
	if req.AllHosts {
		w.others(ctx, req, most, &r)
	}
	slices.SortStableFunc(r.Flows, func(x, y api.Flow) int { return x.Last.Compare(y.Last) })
	if more := len(r.Flows) - mostInAll; more > 0 && req.AllHosts {
		for _, one := range r.Flows[:more] {
			i := slices.IndexFunc(r.Hosts, func(h api.FlowsHost) bool { return h.Peer == one.Peer })
			r.Hosts[i].More++
		}
		r.Flows = r.Flows[more:]
	}
	return r, nil
}

// others adds the flows of all other hosts.
func (w *View) others(ctx context.Context, req api.FlowsRequest, most int, r *api.FlowsReply) {
	payload, err := encodeRequest(req, most)
	if err != nil {
		return // unreachable: a request always has a JSON form
	}
	ask.All(ctx, w.cfg.Mesh, requestList, payload, func(id peer.ID, answer []byte, err error) {
		h := api.FlowsHost{Peer: id.String(), Nickname: w.nickname(id)}
		var theirs []api.Flow
		if err == nil {
			theirs, err = decodeAnswer(answer, &h, most)
		}
		if err != nil {
			h = api.FlowsHost{Peer: h.Peer, Nickname: h.Nickname, Error: words.Printable(err.Error(), mostText), Next: req.After[h.Peer]}
		}
		r.Hosts = append(r.Hosts, h)
		r.Flows = append(r.Flows, theirs...)
	})
	slices.SortFunc(r.Hosts[1:], func(x, y api.FlowsHost) int { return strings.Compare(x.Nickname+x.Peer, y.Nickname+y.Peer) })
}
