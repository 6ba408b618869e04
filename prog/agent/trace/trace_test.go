package trace

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"

	"weft/mesh/peer"
	"weft/prog/agent/agenttest"
	"weft/prog/agent/hops"
	"weft/prog/api"
	"weft/router/policy"
	"weft/router/trace"
)

var packet = trace.Packet{Protocol: policy.TCP, Src: netip.MustParseAddr("10.32.0.2"), Dst: netip.MustParseAddr("10.40.0.1"), Port: 80, ID: 64000}

// Requests for packets of others are refused before anything is sent.
func TestBadRequestsAreRefused(t *testing.T) {
	x := New(Config{Self: agenttest.Self})
	for _, bad := range []string{
		``, `{}`, `{"protocol":6,"src":"10.32.0.2","dst":"10.40.0.1"}`, `{"protocol":1,"src":"10.32.0.2","dst":"10.40.0.1","port":1}`,
		`{"protocol":6,"src":"10.32.0.2","dst":"10.32.0.2","port":1}`, `{"protocol":6,"src":"10.32.0.2","dst":"fd00::1","port":1}`,
		`{"protocol":58,"src":"10.32.0.2","dst":"10.40.0.1"}`, `{"protocol":47,"src":"10.32.0.2","dst":"10.40.0.1"}`,
		`{"protocol":6,"src":"fe80::1%eth0","dst":"fd00::1","port":1}`, strings.Repeat(" ", mostRequest+1),
	} {
		for kind, h := range x.Handlers() {
			if _, err := h(t.Context(), peer.ID{1}, []byte(bad)); err == nil {
				t.Errorf("%s of %.60s is answered, want an error", kind, bad)
			}
		}
	}
}

func FuzzAnswers(f *testing.F) {
	seed, _ := json.Marshal(hops.Part{There: []api.TraceHop{{Host: "h2", What: "\x1b[2J"}}, End: hops.EndDropped, Why: "x"})
	f.Add(seed)
	seed, _ = json.Marshal(wireOf(packet))
	f.Add(seed)
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _, _ = decodePacket(b)
		var list []api.TraceHop
		if p, err := decodePart(b, "h2"); err == nil {
			list = append(append(list, p.There...), p.Back...)
			hops.Conclude(packet, "h1", hops.Part{There: list, End: hops.EndTunnel}, &hops.Remote{Name: "h2", Part: p})
			for _, h := range list {
				if h.Host != "h2" {
					t.Errorf("a hop is of host %q, want h2", h.Host)
				}
			}
		}
		if r, err := decodeReply(b); err == nil {
			list = append(list, r.Hops...)
		}
		for _, h := range list {
			if strings.ContainsAny(h.Host+h.Stage+h.What+h.Verdict+h.Detail, "\x1b\n\r") {
				t.Errorf("the hop %+v has control characters", h)
			}
		}
	})
}
