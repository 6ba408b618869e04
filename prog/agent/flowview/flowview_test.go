package flowview

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"weft/mesh/peer"
	"weft/prog/agent/agenttest"
	"weft/prog/agent/policytest"
	"weft/prog/api"
	"weft/prog/conntrack"
	"weft/prog/flows"
	"weft/router/nft"
	"weft/router/policy"
)

// members is a mesh whose other members answer as told.
type members struct {
	policytest.Alone
	answers map[peer.ID]string
}

func (m members) Reachable(peer.ID) bool { return true }

func (m members) Others() (out []peer.ID) {
	for id := range m.answers {
		out = append(out, id)
	}
	return out
}

func (m members) Request(_ context.Context, to peer.ID, kind string, _ []byte) ([]byte, error) {
	if kind != requestList {
		return nil, errors.New("unknown kind of request")
	}
	return []byte(m.answers[to]), nil
}

func newView(t testing.TB) (*View, *policytest.Host) {
	h := policytest.New(t, true)
	return New(Config{
		Self: agenttest.Self, Policies: h.Enforcer, Mesh: policytest.Alone{}, View: &h.View, MarkOwnHost: func(*policy.Packet) {},
		Started: time.Unix(1000, 0), Log: slog.New(slog.DiscardHandler),
	}), h
}

// connection is the event of a TCP connection between two endpoints, by their names.
func connection(h *policytest.Host, from, to string, port uint16) conntrack.Event {
	src, dst := netip.AddrPortFrom(h.Endpoint(from).Addrs[0], 40000), netip.AddrPortFrom(h.Endpoint(to).Addrs[0], port)
	return conntrack.Event{Entry: flows.Entry{
		Original: flows.Tuple{Src: src, Dst: dst, Protocol: policy.TCP}, ReplySrc: dst, ReplyDst: src, ID: 1,
	}}
}

func list(t *testing.T, w *View, req api.FlowsRequest) api.FlowsReply {
	t.Helper()
	r, err := w.Flows(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// A flow has the names, labels and hosts of its ends and the rule that allows it, also after the endpoint
// is gone.
func TestFlowsAreNamedWhenTheyBegin(t *testing.T) {
	w, h := newView(t)
	h.Write(t, map[string]string{"shop/db": policytest.Shop})
	e := connection(h, "shop/web", "shop/db", 5432)
	if !w.keep(e.Entry) {
		t.Error("a connection between endpoints is not kept, want it kept")
	}
	w.take([]conntrack.Event{e})
	first := list(t, w, api.FlowsRequest{})
	h.Attached.Set(nil)
	r := list(t, w, api.FlowsRequest{From: "shop/web", To: "shop/", Port: 5432, Protocol: "tcp", Verdict: api.FlowAllowed, Since: 60})
	if len(first.Flows) != 1 || len(r.Flows) != 1 {
		t.Fatalf("flows %+v, then %+v; want one", first, r)
	}
	f := r.Flows[0]
	if f.From.Name != "web" || f.From.Labels["app"] != "web" || !strings.HasSuffix(f.To.Peer, "(here)") || f.Policy != "shop/db" || f.Rule != "spec.ingress[0]" || f.Verdict != api.FlowAllowed || f.Nickname != "here" {
		t.Errorf("the flow is %+v, want shop/web to shop/db, allowed by the first rule of shop/db", f)
	}
	if again := list(t, w, api.FlowsRequest{After: map[string]uint64{r.Hosts[0].Peer: r.Hosts[0].Next}}); len(again.Flows) != 0 {
		t.Errorf("after the cursor there are %+v, want none", again.Flows)
	}
}

// Dropped packets are a flow with the sentence of explain. Those of audit mode are not, if their
// connection already has that verdict.
func TestDroppedPacketsHaveTheSentence(t *testing.T) {
	w, h := newView(t)
	h.Write(t, map[string]string{"shop/db": policytest.Shop})
	at := time.Now()
	drop := func(direction policy.Direction, audit bool) {
		e := connection(h, "jobs/batch", "shop/db", 5432).Entry
		w.Dropped(nft.Logged{Direction: direction, Audit: audit, Packet: nft.Packet{
			Src: e.Original.Src.Addr(), Dst: e.ReplySrc.Addr(), SrcPort: 40000, DstPort: 5432, Protocol: 6,
		}}, at)
	}
	drop(policy.Ingress, false)
	drop(policy.Ingress, false)
	r := list(t, w, api.FlowsRequest{Verdict: api.FlowDenied})
	if len(r.Flows) != 1 || r.Flows[0].SentPackets != 2 || r.Flows[0].Direction != "ingress" || r.Flows[0].Policy != "shop/db" ||
		!strings.Contains(r.Flows[0].Why, "jobs/batch is in namespace jobs, want shop") {
		t.Fatalf("flows %+v; want two packets that the namespace of shop/db does not allow", r.Flows)
	}
	h.Write(t, map[string]string{"shop/db": strings.Replace(policytest.Shop, "namespace: shop}", `namespace: shop, annotations: {weft.internal/audit: "true"}}`, 1)})
	w.take([]conntrack.Event{connection(h, "jobs/batch", "shop/db", 5432)})
	drop(policy.Ingress, true)
	r = list(t, w, api.FlowsRequest{Verdict: api.FlowAudit})
	if len(r.Flows) != 1 || r.Flows[0].Source.Port() != 40000 || r.Flows[0].Why == "" {
		t.Errorf("flows in audit mode %+v; want the connection alone, with its reason", r.Flows)
	}
}

// A bad condition is refused with its cause.
func TestConditionsAreChecked(t *testing.T) {
	w, _ := newView(t)
	for want, req := range map[string]api.FlowsRequest{
		"SCTP": {Protocol: "quic"}, "denied": {Verdict: "no"}, "negative": {Since: -1}, "control": {From: "a\x1b[2J"}, "512 bytes": {To: strings.Repeat("x", 1000)},
	} {
		_, err := w.Flows(t.Context(), req)
		if e, ok := errors.AsType[*api.Error](err); !ok || e.Code != api.CodeBadRequest || !strings.Contains(e.Message, want) {
			t.Errorf("%+v: error %v, want a bad request that mentions %q", req, err, want)
		}
	}
}

// Another host reports flows as itself only, and cannot change the terminal. A host with a wrong answer
// is listed with its error.
func TestAnswersOfOtherHostsAreNotTrusted(t *testing.T) {
	w, h := newView(t)
	liar, broken, greedy := peer.ID{7}, peer.ID{8}, peer.ID{9}
	many, err := json.Marshal(listed{Flows: make([]api.Flow, mostThere+1)})
	if err != nil {
		t.Fatal(err)
	}
	w.cfg.Mesh = members{answers: map[peer.ID]string{
		liar: `{"host":{"peer":"` + agenttest.Self.String() + `","nickname":"here","lost":3,"more":-5,"next":9},"flows":[{"peer":"other","nickname":"evil\u001b[2J","verdict":"allowed",
			"source":"[fe80::1%\u001b[2J]:5","why":"\u001b]0;x\u0007` + strings.Repeat("y", 5000) + `","from":{"name":"a\u009bb","labels":{"k\u001b":"v"}}}]}`,
		broken: "garbage", greedy: string(many),
	}}
	w.take([]conntrack.Event{connection(h, "shop/web", "shop/db", 80)})
	r := list(t, w, api.FlowsRequest{AllHosts: true})
	text, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Flows) != 2 || len(r.Hosts) != 4 || len(text) > 5000 {
		t.Fatalf("the answer is %s; want two flows of four hosts", text)
	}
	for _, f := range r.Flows {
		for _, s := range []string{f.Nickname, f.Why, f.From.Name, f.Source.String()} {
			if !peer.Printable(s) || strings.Contains(s, "%") {
				t.Errorf("the flow has the text %q, want nothing that changes a terminal", s)
			}
		}
		if f.Peer != liar.String() && f.Peer != agenttest.Self.String() {
			t.Errorf("a flow is reported by %s, want the host that answered", f.Peer)
		}
	}
	errored := 0
	for _, h := range r.Hosts {
		if h.Peer == liar.String() && (h.Lost != 3 || h.More != 0 || h.Next != 9 || h.Nickname == "here") {
			t.Errorf("the host is %+v, want its own name and its counters", h)
		}
		if h.Error != "" {
			errored++
		}
	}
	if errored != 2 {
		t.Errorf("%d hosts have an error, want two: %+v", errored, r.Hosts)
	}
}

// A member is answered with flows of this host, within a size, and only so often.
func TestMembersAreAnsweredWithinLimits(t *testing.T) {
	w, h := newView(t)
	long := strings.Repeat("l", 2000)
	h.Attached.Set(h.Attached.Get())
	attached := h.Attached.Get()
	attached[1].Labels = map[string]string{"app": long}
	h.Attached.Set(attached)
	for port := range 1500 {
		w.take([]conntrack.Event{connection(h, "shop/web", "shop/db", uint16(1000+port))})
	}
	ask := func(from peer.ID, text string) (listed, error) {
		data, err := w.Handlers()[requestList](t.Context(), from, []byte(text))
		var l listed
		if err == nil {
			err = json.Unmarshal(data, &l)
		}
		if len(data) > mostAnswer {
			t.Errorf("the answer has %d bytes, want at most %d", len(data), mostAnswer)
		}
		return l, err
	}
	for range 20 { // the first ones only name some of the flows
		w.mu.Lock()
		w.name()
		w.mu.Unlock()
	}
	l, err := ask(peer.ID{5}, `{}`)
	if err != nil || len(l.Flows) == 0 || len(l.Flows)+l.Host.More != 1500 || l.Host.Peer != agenttest.Self.String() {
		t.Errorf("%d flows, host %+v, error %v; want 1500 with those omitted", len(l.Flows), l.Host, err)
	}
	if l.Flows[len(l.Flows)-1].Destination.Port() != 2499 {
		t.Errorf("the last flow is %+v, want the newest one", l.Flows[len(l.Flows)-1])
	}
	for _, bad := range []string{"", "[]", `{"since":-1}`, `{"from":"` + long + `"}`, strings.Repeat(" ", mostRequest+1)} {
		if _, err := ask(peer.ID{4}, bad); err == nil {
			t.Errorf("the request %.40q is answered, want an error", bad)
		}
	}
	refused := 0
	for range 2 * askBurst {
		if _, err := ask(peer.ID{6}, `{"most":1}`); err != nil {
			refused++
		}
	}
	if _, err := ask(peer.ID{3}, `{"most":1}`); refused == 0 || err != nil {
		t.Errorf("%d questions of one member are refused, error for another member %v; want some, and none", refused, err)
	}
}

// Without flows nothing is remembered, and the answer says so.
func TestNoFlowsAreRememberedIfTurnedOff(t *testing.T) {
	w, _ := newView(t)
	w.cfg.Off = true
	w.Dropped(nft.Logged{}, time.Now())
	if err := w.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r := list(t, w, api.FlowsRequest{}); !r.Hosts[0].Off || len(r.Flows) != 0 || len(w.denied) != 0 {
		t.Errorf("the answer is %+v, want no flows, and that they are off", r)
	}
}

// Flows of many different kinds are evaluated some at a time, and all in the end.
func TestABurstIsNamedInParts(t *testing.T) {
	w, h := newView(t)
	for port := range 3*mostNew + 1 {
		w.take([]conntrack.Event{connection(h, "shop/web", "shop/db", uint16(1+port))})
	}
	named := []int{}
	for w.table.Waiting() > 0 {
		w.mu.Lock()
		w.name()
		w.mu.Unlock()
		named = append(named, w.table.Waiting())
	}
	if len(named) != 4 {
		t.Errorf("the flows that wait are %v, want four parts", named)
	}
}

// Lost events are in the answer.
func TestLostEventsAreReported(t *testing.T) {
	w, _ := newView(t)
	w.lose(5)
	if r := list(t, w, api.FlowsRequest{}); r.Hosts[0].Lost != 5 || !w.missed {
		t.Errorf("the host is %+v, want 5 lost events; and that the whole table is read again", r.Hosts[0])
	}
}

// No request and no answer of another host makes this host panic, and what it takes is printable.
func FuzzRemote(f *testing.F) {
	f.Add([]byte(`{"from":"shop/","after":{"x":1},"since":1e300}`))
	f.Add([]byte(`{"host":{"lost":1},"flows":[{"why":"x\u001b","source":"1.2.3.4:5","labels":null}]}`))
	w, h := newView(f)
	w.take([]conntrack.Event{connection(h, "shop/web", "shop/db", 80)})
	f.Fuzz(func(t *testing.T, data []byte) {
		w.limit = newLimit()
		_, _ = w.serve(t.Context(), peer.ID{1}, data)
		list, err := decodeAnswer(data, &api.FlowsHost{Peer: "p"}, 10)
		if err != nil {
			return
		}
		for _, one := range list {
			for _, s := range []string{one.Why, one.Policy, one.From.Name, one.To.Namespace, one.Source.String()} {
				if one.Peer != "p" || !peer.Printable(s) || len(s) > mostText {
					t.Errorf("the answer has %+v, want a printable flow of the host itself", one)
				}
			}
		}
	})
}
