package cli

import (
	"bytes"
	"net/netip"
	"testing"
	"time"

	"weft/prog/api"
)

func TestConnectionsAreAlignedUnderAHeader(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	at := now.Add(-95 * time.Second)
	var out bytes.Buffer
	connectionsAt(&out, []api.Connection{
		{
			Outbound: true, Address: netip.MustParseAddrPort("192.0.2.2:6784"), State: api.ConnDirect, Handshake: &at, MTU: 1420, RoundTrip: new(0.0004), Loss: new(0.0),
			Received: 999, ReceivedRate: 999.6, Sent: 99_940, SentRate: 1.5e6, Info: "encrypted   kernel    3cced98783461972(h2) mtu=1420",
		},
		{Address: netip.MustParseAddrPort("[2001:db8::3]:6784"), State: api.ConnOneWay, MTU: 1280, RoundTrip: new(0.2468), Loss: new(0.5), Sent: 3e15, Info: "x"},
		{Address: netip.MustParseAddrPort("192.0.2.4:6784"), State: api.ConnFailed, Info: "h4 is in another ring"},
	}, now)
	golden(t, "status-connections", out.String())
	out.Reset()
	if connectionsAt(&out, nil, now); out.Len() != 0 {
		t.Errorf("without connections the output is %q, want none", out.String())
	}
}

func TestConnectionsAreCountedByState(t *testing.T) {
	var list []api.Connection
	for _, s := range []string{api.ConnSilent, api.ConnFailed, api.ConnDirect, api.ConnOneWay, api.ConnBlocked, api.ConnPending, api.ConnDirect, api.ConnRelayed} {
		list = append(list, api.Connection{State: s})
	}
	const want = "8 (2 direct, 1 relayed, 1 pending, 1 blocked, 1 one-way, 1 silent, 1 failed)"
	if got := countConnections(list); got != want || inState(list, api.ConnDirect) != 2 {
		t.Errorf("the connections are %s, %d of them direct; want %s, 2 of them direct", got, inState(list, api.ConnDirect), want)
	}
	if got := countConnections(nil); got != "0" {
		t.Errorf("without connections the count is %q, want 0", got)
	}
}
