package session

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"weft/mesh/peer"
)

// Transport is memberlist's NodeAwareTransport. Shutdown ends it.
type Transport struct {
	cfg      Config
	identity identity
	table    table
	routes   routes
	door     door
	passes   passes
	stranger pace // dials to the senders of packets under unknown keys
	lookups  pace // calls of Knows

	packets chan *memberlist.Packet
	streams chan net.Conn
	done    chan struct{}
	end     sync.Once

	mu      sync.Mutex
	waiting map[string]*waiting // by run
	// advertised is the result of FinalAdvertiseAddr.
	advertised netip.AddrPort
}

// waiting holds packets for a run that has no session yet.
type waiting struct {
	to      memberlist.Address
	packets []late
	dialing bool
	pace    pace
}

// late is a packet that waits, and since when.
type late struct {
	content []byte
	since   time.Time
}

const (
	maxWaiting   = 8   // packets per run
	manyWaiting  = 64  // runs, before those without a packet are dropped
	packetQueue  = 256 // packets that memberlist has not taken yet
	dialInterval = time.Second
	// lookupInterval bounds what packets of strangers cost.
	lookupInterval = 10 * time.Millisecond
)

var _ memberlist.NodeAwareTransport = (*Transport)(nil)

// New returns a Transport that receives at once.
func New(cfg Config) (*Transport, error) {
	cfg.complete()
	id, err := newIdentity(cfg.Identity)
	if err != nil {
		return nil, err
	}
	t := &Transport{
		cfg: cfg, identity: id, routes: routes{best: cfg.Best, others: cfg.Addresses, inside: cfg.Inside},
		table:   table{byIndex: map[uint32]*keys{}, byRun: map[string][]*keys{}},
		packets: make(chan *memberlist.Packet, packetQueue), streams: make(chan net.Conn), done: make(chan struct{}),
		waiting: map[string]*waiting{},
	}
	go t.receiveStreams()
	go t.receivePackets()
	return t, nil
}

// FinalAdvertiseAddr returns the address that the network gives this host.
func (t *Transport) FinalAdvertiseAddr(ip string, port int) (net.IP, int, error) {
	addr, port, err := t.cfg.Network.FinalAdvertiseAddr(ip, port)
	if a, ok := netip.AddrFromSlice(addr); ok && err == nil {
		t.mu.Lock()
		t.advertised = netip.AddrPortFrom(a.Unmap(), uint16(port))
		t.mu.Unlock()
	}
	return addr, port, err
}

// Advertised returns the address that memberlist advertises; invalid before it has asked for one.
func (t *Transport) Advertised() netip.AddrPort {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.advertised
}

// PacketCh returns the channel of received packets.
func (t *Transport) PacketCh() <-chan *memberlist.Packet { return t.packets }

// StreamCh returns the channel of proven streams for memberlist.
func (t *Transport) StreamCh() <-chan net.Conn { return t.streams }

// Shutdown ends the network first, since it delivers streams until it has ended.
func (t *Transport) Shutdown() error {
	err := t.cfg.Network.Shutdown()
	t.end.Do(func() { close(t.done) })
	t.passes.end()
	t.table.dropAll(func(*keys) bool { return true })
	return err
}

func (t *Transport) receiveStreams() {
	for {
		select {
		case c := <-t.cfg.Network.StreamCh():
			go t.accept(c) // the door bounds their number, proofTimeout their life
		case <-t.done:
			return
		}
	}
}

func (t *Transport) receivePackets() {
	for {
		select {
		case p := <-t.cfg.Network.PacketCh():
			t.receivePacket(p)
		case <-t.done:
			return
		}
	}
}

func (t *Transport) receivePacket(p *memberlist.Packet) {
	if len(p.Buf) < Overhead || p.Buf[0] != packetType && p.Buf[0] != echoType {
		return
	}
	k, welcome := t.table.of(p.Buf)
	if k == nil {
		t.meet(p.From)
	}
	if !welcome {
		return
	}
	content, ok := k.open(p.Buf)
	if !ok {
		return
	}
	if p.Buf[0] == echoType {
		t.receiveEcho(k, p, content)
		return
	}
	t.routes.received(k.run, addrOf(p.From).String(), time.Now())
	if content = t.cfg.Incoming(k.from, content); content == nil {
		return
	}
	select {
	case t.packets <- &memberlist.Packet{Buf: content, From: p.From, Timestamp: p.Timestamp}:
	default: // as in a full socket buffer
	}
}

// meet dials the sender of a packet under unknown keys. Probably this agent has restarted, and the sender
// does not know yet. Anybody can send such packets, so there is at most one dial per second.
func (t *Transport) meet(from net.Addr) {
	addr := addrOf(from)
	now := time.Now()
	if !addr.IsValid() || !t.lookups.allow(now, lookupInterval) || !t.cfg.Knows(addr.Addr()) || !t.stranger.allow(now, dialInterval) {
		return
	}
	go func() {
		if s, err := t.Ask(memberlist.Address{Addr: addr.String()}, Keys, proofTimeout); err == nil {
			s.Close()
		}
	}()
}

// WriteTo sends nothing: a packet without the name of a run has no keys.
func (t *Transport) WriteTo([]byte, string) (time.Time, error) {
	return time.Time{}, errors.New("session: a packet needs the name of a run")
}

// WriteToAddress sends a packet to a run. If there is no session yet, a few packets wait for it.
func (t *Transport) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	now := time.Now()
	if a.Name == "" {
		return t.WriteTo(b, a.Addr)
	}
	t.cfg.Outgoing(a.Name, b)
	a, err := t.confine(a)
	if err != nil {
		return now, err
	}
	k := t.table.to(a.Name)
	if k == nil {
		t.wait(a, b)
		return now, nil
	}
	at, err := t.send(k, a, b)
	if errors.Is(err, errNoKeys) {
		t.table.dropAll(func(other *keys) bool { return other == k })
		t.wait(a, b)
		return now, nil
	}
	return at, err
}

// errConfined means that a peer without a tunnel may be reached by its tunnel only.
var errConfined = errors.New("session: the peer may be reached by its tunnel only, which does not work yet")

// confine returns the address inside the tunnel of a run that may be reached only there.
func (t *Transport) confine(a memberlist.Address) (memberlist.Address, error) {
	if a.Name == "" || t.cfg.Confined == nil || !t.cfg.Confined(a) {
		return a, nil
	}
	list := t.cfg.Inside(a.Name)
	if len(list) == 0 {
		return a, errConfined
	}
	a.Addr = list[0]
	return a, nil
}

// send sends a packet to a run, and looks for another address if packets may not arrive.
func (t *Transport) send(k *keys, a memberlist.Address, content []byte) (time.Time, error) {
	now := time.Now()
	packet, err := k.seal(packetType, content)
	if err != nil {
		return now, err
	}
	to, ask, retry := t.routes.send(a, now)
	t.ask(k, ask)
	if retry {
		go t.retry(a) // it ends within proofTimeout
	}
	return t.cfg.Network.WriteTo(packet, to)
}

// retry opens a stream to a run at the best address that answers, so that later ones are opened there.
func (t *Transport) retry(a memberlist.Address) {
	if s, err := t.askAt(t.routes.places(a), a, Keys, proofTimeout); err == nil {
		s.Close()
	}
}

// wait keeps a packet until there is a session, and dials the run once per second at most.
func (t *Transport) wait(a memberlist.Address, b []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	w := t.waiting[a.Name]
	if w == nil {
		for run, w := range t.waiting { // runs that ended while a few packets were still sent to them
			if len(t.waiting) >= manyWaiting && !w.dialing && len(current(w.packets, time.Now())) == 0 {
				delete(t.waiting, run)
			}
		}
		w = &waiting{}
		t.waiting[a.Name] = w
	}
	now := time.Now()
	w.to = a
	if w.packets = current(w.packets, now); len(w.packets) < maxWaiting {
		w.packets = append(w.packets, late{append([]byte(nil), b...), now})
	}
	if w.dialing || !w.pace.allow(now, dialInterval) {
		return
	}
	w.dialing = true
	go func() {
		s, err := t.Ask(a, Keys, proofTimeout)
		if err == nil {
			s.Close()
		}
		t.mu.Lock()
		w.dialing = false
		if err != nil {
			w.packets = nil
		}
		t.mu.Unlock()
	}()
}

// current leaves out the packets that have waited for longer than a dial takes. Nobody may dial again until
// the network works again, and by then what they say is no longer true.
func current(packets []late, now time.Time) []late {
	return slices.DeleteFunc(packets, func(p late) bool { return now.Sub(p.since) > proofTimeout })
}

// flush sends the packets that waited for a session with a run.
func (t *Transport) flush(run string) {
	k := t.table.to(run)
	if k == nil {
		return
	}
	t.mu.Lock()
	w := t.waiting[run]
	if w == nil {
		t.mu.Unlock()
		return
	}
	a, packets := w.to, current(w.packets, time.Now())
	w.packets = nil
	t.mu.Unlock()
	for _, p := range packets {
		_, _ = t.send(k, a, p.content) // a packet may be lost
	}
}

// DialTimeout opens a stream for memberlist to whatever run is at an address.
func (t *Transport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	return t.DialAddressTimeout(memberlist.Address{Addr: addr}, timeout)
}

// DialAddressTimeout opens a stream for memberlist to one run of a peer, at any of that peer's addresses.
func (t *Transport) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	s, err := t.Ask(a, Gossip, timeout)
	if err != nil {
		return nil, err
	}
	return t.cfg.Gossip(s), nil
}

// Way is how packets and streams to a run travel.
type Way struct {
	// Addr is the address outside the tunnel at which packets or streams reach the run; invalid: none is known.
	Addr netip.AddrPort
	// PacketsInside and StreamsInside mean that no such address answers: they go through the tunnel.
	PacketsInside, StreamsInside bool
}

// Way returns how packets and streams to a run travel at present.
func (t *Transport) Way(run string) Way {
	packet, stream := t.routes.at(run)
	w := Way{PacketsInside: packet.inside, StreamsInside: stream.inside}
	if packet.inside {
		packet = stream
	}
	if !packet.inside {
		w.Addr, _ = netip.ParseAddrPort(packet.addr) // empty before the first packet and stream
	}
	return w
}

// Forget drops all that is known of a run that has ended.
func (t *Transport) Forget(run string) {
	t.routes.forget(run)
	t.table.dropAll(func(k *keys) bool { return k.run == run })
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.waiting, run)
}

// Expel ends all sessions of a peer, and the streams that this host passes on for it. Welcome must refuse it from now on.
func (t *Transport) Expel(id peer.ID) {
	t.table.dropAll(func(k *keys) bool { return k.peer == id })
	t.passes.expel(id)
}
