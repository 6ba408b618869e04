package measure

import (
	"context"
	"errors"
	"net/netip"
	"slices"

	"weft/mesh/topology"
)

// watch reads WireGuard's counters until it is time to open the sockets again: data that arrives still proves
// that a peer is alive.
func (m *Measure) watch(ctx context.Context) {
	ctx, stop := context.WithTimeout(ctx, again)
	defer stop()
	m.mu.Lock()
	m.prober.Blind()
	m.mu.Unlock()
	m.loop(ctx, nowhere{})
}

// nowhere stands for sockets that cannot be opened.
type nowhere struct{ Conn }

var errNowhere = errors.New("there is no socket for probes")

func (nowhere) Send(netip.AddrPort, netip.AddrPort, []byte, int) error { return errNowhere }

// endpointFirst returns the addresses of a peer's record, first the one that the tunnel uses.
func endpointFirst(t topology.Tunnel) []netip.AddrPort {
	i := slices.Index(t.Record, t.Endpoint)
	if i <= 0 {
		return t.Record
	}
	return slices.Concat([]netip.AddrPort{t.Endpoint}, t.Record[:i], t.Record[i+1:])
}
