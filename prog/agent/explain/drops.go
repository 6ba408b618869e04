package explain

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"weft/prog/agent/live"
	"weft/prog/api"
	"weft/router/nft"
	"weft/router/policy"
)

// mostDrops is how many different drops are remembered.
const mostDrops = 256

// Drops holds the packets that policies dropped last. Packets that differ only in their client port are
// counted together. The zero value is empty and ready to use. It alone reads the kernel's log.
type Drops struct {
	// Heard, unless nil, is called with each packet, after source and destination of a reply were swapped.
	// It must not be changed once Run was called.
	Heard func(nft.Logged, time.Time)

	mu   sync.Mutex
	last map[dropKey]*dropCount
}

// dropKey identifies packets that are counted together: only their client ports may differ.
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
	packet nft.Packet // the last packet; a reply is stored with source and destination of its connection
}

// note counts a packet.
func (d *Drops) note(l nft.Logged, now time.Time) {
	p := l.Packet
	if p.Reply {
		p.Src, p.Dst, p.SrcPort, p.DstPort, p.Reply = p.Dst, p.Src, p.DstPort, p.SrcPort, false
	}
	if d.Heard != nil {
		l.Packet = p
		d.Heard(l, now)
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

// makeRoom forgets the oldest drop. The caller holds the lock.
func (d *Drops) makeRoom() {
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

// list returns the recorded drops, newest first.
func (d *Drops) list() (out []api.Drop, packets []nft.Packet) {
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

// Run records packets that the kernel drops, until ctx ends.
func (d *Drops) Run(ctx context.Context, log *slog.Logger) error {
	for ctx.Err() == nil {
		err := nft.Watch(ctx, func(l nft.Logged) { d.note(l, time.Now()) })
		if err != nil && ctx.Err() == nil {
			log.Warn("cannot read the kernel's log of dropped packets: dropped packets are counted, but cannot be shown", "err", err)
			live.Pause(ctx, time.Minute)
		}
	}
	return nil
}

// Drops explains the packets that policies dropped last on this host.
func (x *Explainer) Drops(context.Context) ([]api.Drop, error) {
	list, packets := x.cfg.Drops.list()
	k := x.cfg.Policies.Snapshot()
	for i, p := range packets {
		d := &list[i]
		direction := policy.Ingress
		if d.Direction == policy.Egress.String() {
			direction = policy.Egress
		}
		d.From, d.To = Title(k.World, p.Src), Title(k.World, p.Dst)
		d.Decision = x.evaluate(k, question{
			Direction: uint8(direction), Src: p.Src, Dst: p.Dst, Protocol: p.Protocol, SrcPort: p.SrcPort, Port: p.DstPort,
		}).Decision
	}
	if list == nil {
		list = []api.Drop{}
	}
	return list, nil
}

// Title returns the name for output of the endpoint at an address; empty if there is none.
func Title(w policy.World, addr netip.Addr) string {
	e, ok := w.At(addr)
	if !ok {
		return ""
	}
	return e.Ref()
}
