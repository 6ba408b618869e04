package path

import (
	"cmp"
	"crypto/ecdh"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"weft/mesh/peer"
)

// world simulates hosts and the network between them, in virtual time.
type world struct {
	t       testing.TB
	now     time.Time
	random  *rand.Rand
	hosts   []*host
	byAddr  map[netip.Addr]*host
	flights []flight // sorted by time
	// link says what happens to a packet: whether it arrives, after what delay.
	link  func(from, to netip.Addr, size int) (ok bool, delay time.Duration)
	sent  int           // bytes
	quiet bool          // gossip reaches no host
	blind bool          // no host reads WireGuard's counters, as between two looks at rest
	slow  time.Duration // at most so long does it take to load rules
	look  time.Duration // between two readings of WireGuard's counters
	data  int64         // bytes of a packet of busy hosts
	pause time.Duration // between two such packets
	// each is called after each step.
	each func()
}

type host struct {
	id     peer.ID
	addrs  []netip.Addr
	public [32]byte
	key    *ecdh.PrivateKey
	*Prober
	next    time.Time
	traffic map[peer.ID]*Traffic
	busy    map[peer.ID]bool // sends data all the time
	mute    bool             // does not probe at all
	walled  bool             // its own firewall refuses to send
	down    bool             // it relays nothing
	swallow bool             // it relays probes only
	rules   rules            // in the kernel
	loading rules            // is loaded at its time
	// source returns the address from which the host sends to an address; nil: the one in the same network.
	source func(netip.Addr) netip.Addr
}

type flight struct {
	at time.Time
	to *host
	Arrival
}

// reader makes a seeded generator an io.Reader.
type reader struct{ r *rand.Rand }

func (r reader) Read(b []byte) (int, error) {
	for i := 0; i < len(b); i += 8 {
		var x [8]byte
		binary.LittleEndian.PutUint64(x[:], r.r.Uint64())
		copy(b[i:], x[:])
	}
	return len(b), nil
}

// rules are what the kernel needs of a Prober: which ports stand for peers, and between whom it forwards.
type rules struct {
	at      time.Time
	version uint64
	ports   map[uint16]bool
	pairs   []Pair
}

// load loads the rules of all hosts, which takes some time.
func (w *world) load() {
	for _, h := range w.hosts {
		if h.loading.version != h.Version() && h.loading.at.IsZero() {
			h.loading = rules{at: w.now.Add(w.loads()), version: h.Version(), pairs: h.Pairs(), ports: map[uint16]bool{}}
			for _, way := range h.Ways() {
				h.loading.ports[way.Own.Port()] = true
			}
		}
		if !h.loading.at.IsZero() && !w.now.Before(h.loading.at) {
			h.loading.at = time.Time{}
			h.rules = h.loading
		}
	}
}

func (w *world) loads() time.Duration {
	if w.slow == 0 {
		return 0
	}
	return time.Duration(w.random.Int64N(int64(w.slow)))
}

// newWorld makes n hosts with some addresses each. All links work, with a delay of 1 ms.
func newWorld(t testing.TB, n, addrs int) *world {
	w := &world{t: t, now: time.Unix(1_800_000_000, 0), random: rand.New(rand.NewPCG(1, 2)), byAddr: map[netip.Addr]*host{}, look: 250 * time.Millisecond, data: 1000, pause: 50 * time.Millisecond}
	w.link = func(netip.Addr, netip.Addr, int) (bool, time.Duration) { return true, time.Millisecond }
	for i := range n {
		h := &host{traffic: map[peer.ID]*Traffic{}, busy: map[peer.ID]bool{}}
		binary.BigEndian.PutUint64(h.id[:], w.random.Uint64())
		var seed [32]byte
		_, _ = reader{w.random}.Read(seed[:])
		h.key, _ = ecdh.X25519().NewPrivateKey(seed[:])
		h.public = [32]byte(h.key.PublicKey().Bytes())
		h.Prober = New(Config{Self: h.id, Random: reader{w.random}})
		for k := range addrs {
			h.addrs = append(h.addrs, netip.AddrFrom4([4]byte{10, byte(k), byte(i >> 8), byte(i)}))
			w.byAddr[h.addrs[k]] = h
		}
		w.hosts = append(w.hosts, h)
	}
	return w
}

const port = 6784

// key returns the key of h for probes with o.
func (w *world) key(h, o *host) Key {
	shared, err := h.key.ECDH(o.key.PublicKey())
	if err != nil {
		w.t.Fatal(err)
	}
	k, err := NewKey(shared, h.public, o.public)
	if err != nil {
		w.t.Fatal(err)
	}
	return k
}

// remotes returns all other hosts, as h knows them.
func (w *world) remotes(h *host) (out []Remote) {
	for _, o := range w.hosts {
		if o == h {
			continue
		}
		r := Remote{ID: o.id, Quiet: w.quiet, MTU: func(netip.Addr) int { return 9000 }}
		if old := h.peers[o.id]; old != nil {
			r.Key = old.Key
		} else {
			r.Key = w.key(h, o)
		}
		for _, a := range o.addrs {
			r.Addrs = append(r.Addrs, netip.AddrPortFrom(a, port))
		}
		out = append(out, r)
	}
	return out
}

// configure tells each host its peers.
func (w *world) configure(moved bool) {
	for _, h := range w.hosts {
		h.Configure(w.now, w.remotes(h), moved)
		h.next = w.now
	}
}

// send puts a datagram on the network.
func (w *world) send(h *host, s Send) {
	if h.walled {
		h.Failed(w.now, s, true)
		return
	}
	from, source := s.From, cmp.Or(s.Port, port)
	if !from.IsValid() && h.source != nil {
		from = h.source(s.To.Addr())
	}
	if !from.IsValid() { // as routes do: the address in the network of the destination
		i := int(s.To.Addr().As4()[1])
		if i >= len(h.addrs) {
			return
		}
		from = h.addrs[i]
	}
	size := max(s.Size, len(s.Payload)+28)
	w.sent += size
	to := w.byAddr[s.To.Addr()]
	if w.byAddr[from] != h || to == nil {
		return
	}
	if ok, delay := w.link(from, s.To.Addr(), size); ok {
		a := Arrival{netip.AddrPortFrom(from, source), s.To, s.Payload, size}
		for l, relayed := to.forwards(a); relayed; l, relayed = to.forwards(a) {
			ok, more := w.link(l.Own.Addr(), l.Host.Addr(), size)
			if !ok {
				return
			}
			to, a.From, a.To, delay = w.byAddr[l.Host.Addr()], l.Own, l.Host, delay+more
		}
		f := flight{w.now.Add(delay), to, a}
		i, _ := slices.BinarySearchFunc(w.flights, f, func(a, b flight) int { return cmp.Or(a.at.Compare(b.at), -1) })
		w.flights = slices.Insert(w.flights, i, f)
	}
}

// forwards returns the leg by which the kernel of a relay forwards a packet.
func (h *host) forwards(a Arrival) (Leg, bool) {
	if h.down || a.Payload[len(Magic)] != forwarded {
		return Leg{}, false
	}
	for _, p := range h.rules.pairs {
		for i, l := range p.Legs {
			if l.Host == a.From && l.Own == a.To {
				return p.Legs[1-i], true
			}
		}
	}
	return Leg{}, false
}

// run lets time pass.
func (w *world) run(d time.Duration) {
	end := w.now.Add(d)
	data, observe := w.now.Truncate(w.pause).Add(w.pause), w.now.Truncate(w.look).Add(w.look)
	for {
		next := minTime(data, observe)
		if len(w.flights) > 0 {
			next = minTime(next, w.flights[0].at)
		}
		for _, h := range w.hosts {
			next = minTime(next, h.next)
			if !h.loading.at.IsZero() {
				next = minTime(next, h.loading.at)
			}
		}
		if next.After(end) {
			w.now = end
			return
		}
		w.now = latest(w.now, next)
		for len(w.flights) > 0 && !w.flights[0].at.After(w.now) {
			f := w.flights[0]
			w.flights = w.flights[1:]
			if to := f.Arrival.To.Port(); f.to.mute || to != port && !f.to.rules.ports[to] {
				continue
			}
			if answer, ok := f.to.Receive(w.now, f.Arrival); ok {
				w.send(f.to, answer)
			}
			f.to.next = f.to.Next()
		}
		if !w.now.Before(data) {
			w.traffic()
			data = data.Add(w.pause)
		}
		if !w.now.Before(observe) {
			w.observe()
			observe = observe.Add(w.look)
		}
		for _, h := range w.hosts {
			if h.next.After(w.now) {
				continue
			}
			if !h.mute {
				for _, s := range h.Due(w.now) {
					w.send(h, s)
				}
			}
			h.next = latest(h.Next(), w.now.Add(time.Millisecond))
		}
		w.load()
		if w.each != nil {
			w.each()
		}
	}
}

// traffic moves the data of busy pairs, as WireGuard counts it.
func (w *world) traffic() {
	for _, h := range w.hosts {
		for _, o := range w.hosts {
			if !h.busy[o.id] || h.walled { // WireGuard does not count what it could not send
				continue
			}
			p, _ := h.Path(o.id)
			mine := h.count(o)
			mine.Sent += w.data
			if !p.Via.IsZero() {
				arrives, from := true, h
				for _, id := range p.Via.List() {
					relay := w.byID(id)
					there, _ := w.link(from.addrs[0], relay.addrs[0], int(w.data))
					arrives, from = arrives && there && !relay.down && !relay.swallow, relay
				}
				if on, _ := w.link(from.addrs[0], o.addrs[0], int(w.data)); arrives && on {
					o.count(h).Received += w.data
				}
			} else if p.Endpoint.IsValid() && h.addrs[p.Endpoint.Addr().As4()[1]%byte(len(h.addrs))].IsValid() {
				from := h.addrs[int(p.Endpoint.Addr().As4()[1])%len(h.addrs)]
				if ok, _ := w.link(from, p.Endpoint.Addr(), int(w.data)); ok && w.byAddr[p.Endpoint.Addr()] == o {
					o.count(h).Received += w.data
				}
			}
		}
	}
}

// observe lets all hosts read WireGuard's counters.
func (w *world) observe() {
	for _, h := range w.hosts {
		if len(h.traffic) > 0 && !h.mute && !w.blind {
			h.Observe(w.now, func(id peer.ID) (Traffic, bool) {
				t, ok := h.traffic[id]
				if !ok {
					return Traffic{}, false
				}
				return *t, true
			})
			h.next = h.Next()
		}
	}
}

func (w *world) byID(id peer.ID) *host {
	for _, h := range w.hosts {
		if h.id == id {
			return h
		}
	}
	return nil
}

func (h *host) count(o *host) *Traffic {
	t := h.traffic[o.id]
	if t == nil {
		t = &Traffic{}
		h.traffic[o.id] = t
	}
	return t
}

// path returns the path of one host to another.
func (w *world) path(from, to int) Path {
	p, ok := w.hosts[from].Path(w.hosts[to].id)
	if !ok {
		w.t.Fatalf("host %d has no path to host %d", from, to)
	}
	return p
}
