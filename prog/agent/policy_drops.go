package agent

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"

	"weft/prog/api"
	"weft/router/nft"
	"weft/router/policy"
)

// mostDrops is how many different drops are remembered.
const mostDrops = 256

// drops are the packets that policies dropped last, alike ones together.
type drops struct {
	mu   sync.Mutex
	last map[dropKey]*dropCount
}

// dropKey is what makes drops alike: the client's port does not.
type dropKey struct {
	direction policy.Direction
	audit     bool
	src, dst  netip.Addr
	protocol  byte
	port      uint16
}

type dropCount struct {
	last   time.Time
	count  int
	packet nft.Packet // the last one, as the side that began the connection would send it
}

// note counts a packet.
func (d *drops) note(l nft.Logged, now time.Time) {
	p := l.Packet
	if p.Reply {
		p.Src, p.Dst, p.SrcPort, p.DstPort, p.Reply = p.Dst, p.Src, p.DstPort, p.SrcPort, false
	}
	key := dropKey{l.Direction, l.Audit, p.Src, p.Dst, p.Protocol, p.DstPort}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.last == nil {
		d.last = map[dropKey]*dropCount{}
	}
	c := d.last[key]
	if c == nil {
		d.makeRoom()
		c = &dropCount{}
		d.last[key] = c
	}
	c.last, c.packet = now, p
	c.count++
}

// makeRoom forgets the oldest. The caller holds the lock.
func (d *drops) makeRoom() {
	if len(d.last) < mostDrops {
		return
	}
	var oldest dropKey
	var at time.Time
	for key, c := range d.last {
		if at.IsZero() || c.last.Before(at) {
			oldest, at = key, c.last
		}
	}
	delete(d.last, oldest)
}

// list is what is remembered, newest first.
func (d *drops) list() (out []api.Drop, packets []nft.Packet) {
	d.mu.Lock()
	defer d.mu.Unlock()
	type entry struct {
		dropKey
		dropCount
	}
	var all []entry
	for key, c := range d.last {
		all = append(all, entry{key, *c})
	}
	slices.SortFunc(all, func(x, y entry) int { return y.last.Compare(x.last) })
	for _, e := range all {
		out = append(out, api.Drop{
			Last: e.last, Count: e.count, Direction: e.direction.String(), Audit: e.audit, Protocol: policy.Protocol(e.protocol).String(),
			Source: netip.AddrPortFrom(e.packet.Src, e.packet.SrcPort), Dest: netip.AddrPortFrom(e.packet.Dst, e.packet.DstPort),
		})
		packets = append(packets, e.packet)
	}
	return out, packets
}

// watchDrops hears of what the kernel drops, until ctx ends.
func (a *Agent) watchDrops(ctx context.Context) error {
	for ctx.Err() == nil {
		err := nft.Watch(ctx, func(l nft.Logged) { a.drops.note(l, time.Now()) })
		if err != nil && ctx.Err() == nil {
			a.log.Warn("packets that policies drop are counted, but not named", "err", err)
			sleep(ctx, time.Minute)
		}
	}
	return nil
}

// watchTable reconciles at once when somebody takes away what keeps packets in, until ctx ends.
func (a *Agent) watchTable(ctx context.Context) error {
	removed := func() {
		if !a.router.Protected() {
			a.changed()
		}
	}
	for ctx.Err() == nil {
		if err := nft.Removed(ctx, removed); err != nil && ctx.Err() == nil {
			a.log.Warn("changes of nftables by others are only seen at the next look", "err", err)
			sleep(ctx, time.Minute)
		}
	}
	return nil
}

// Drops explains the packets that policies dropped last on this host.
func (a *Agent) Drops(context.Context) ([]api.Drop, error) {
	list, packets := a.drops.list()
	k := a.know()
	for i, p := range packets {
		d := &list[i]
		direction := policy.Ingress
		if d.Direction == policy.Egress.String() {
			direction = policy.Egress
		}
		d.From, d.To = name(k.world, p.Src), name(k.world, p.Dst)
		d.Decision = a.judge(k, judgeRequest{
			Direction: uint8(direction), Src: p.Src, Dst: p.Dst, Protocol: p.Protocol, SrcPort: p.SrcPort, Port: p.DstPort,
		}).Decision
	}
	if list == nil {
		list = []api.Drop{}
	}
	return list, nil
}

// name is what people call the endpoint at an address; empty if there is none.
func name(w policy.World, addr netip.Addr) string {
	e, ok := w.At(addr)
	if !ok {
		return ""
	}
	return e.Ref()
}
