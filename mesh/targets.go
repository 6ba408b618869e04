package mesh

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"weft/mesh/peer"
)

// target is a host to join: one that the operator named, or one that was found on the LAN.
type target struct {
	found     bool // found on the LAN: not stored, and forgotten when it is found no more
	retry     backoff
	err       error
	connected bool
	addrs     []netip.Addr // to which the name resolved last
}

// backoff computes the time of the next attempt. The delay doubles, and is randomized so that peers
// do not try in step.
type backoff struct {
	delay time.Duration
	next  time.Time
}

const (
	firstRetry = time.Second
	maxRetry   = 30 * time.Second
)

func (b *backoff) due(now time.Time) bool { return !now.Before(b.next) }

func (b *backoff) failed(now time.Time) {
	b.delay = min(max(2*b.delay, firstRetry), maxRetry)
	b.next = now.Add(b.delay/2 + rand.N(b.delay))
}

// Target is the state of one target, for status.
type Target struct {
	Host      string
	Addrs     []netip.Addr // to which the name resolved last
	Connected bool
	Err       error // the error of the last attempt, while the target is not connected
	Found     bool  // found on the LAN, not named by the operator
}

// Targets lists all targets, sorted by name.
func (m *Mesh) Targets() []Target {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]Target, 0, len(m.targets))
	for _, host := range slices.Sorted(maps.Keys(m.targets)) {
		t := m.targets[host]
		out = append(out, Target{Host: host, Addrs: t.addrs, Connected: t.connected, Err: t.err, Found: t.found})
	}
	return out
}

// Names reports whether a target is a peer: by one of its addresses, or by its nickname.
func (t Target) Names(r peer.Record) bool {
	host := t.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	if addr, err := netip.ParseAddr(host); err == nil {
		return slices.Contains(r.Underlay, addr.Unmap())
	}
	return host == r.Nickname || slices.ContainsFunc(t.Addrs, func(a netip.Addr) bool { return slices.Contains(r.Underlay, a) })
}

// Connect adds targets, or replaces all targets.
func (m *Mesh) Connect(hosts []string, replace bool) error {
	for _, h := range hosts {
		if err := CheckTarget(h); err != nil {
			return err
		}
	}
	return m.changeTargets(func() {
		if replace {
			maps.DeleteFunc(m.targets, func(h string, t *target) bool { return !t.found && !slices.Contains(hosts, h) })
		}
		for _, h := range hosts {
			if m.targets[h] == nil {
				m.targets[h] = &target{}
			}
			m.targets[h].found = false
		}
	})
}

// Forget removes targets. Established connections to their peers stay.
func (m *Mesh) Forget(hosts []string) error {
	return m.changeTargets(func() {
		for _, h := range hosts {
			delete(m.targets, h)
		}
	})
}

func (m *Mesh) changeTargets(change func()) error {
	m.mu.Lock()
	before, named := maps.Clone(m.targets), m.named()
	change()
	err := m.cfg.Store.SaveTargets(m.named())
	if err != nil {
		m.targets = before
		for h, t := range m.targets {
			t.found = !slices.Contains(named, h)
		}
		err = fmt.Errorf("mesh: storing targets: %w", err)
	}
	m.mu.Unlock()
	m.cfg.Changed()
	return err
}

// named returns the targets that the operator named, sorted. The caller holds the lock.
func (m *Mesh) named() (out []string) {
	for h, t := range m.targets {
		if !t.found {
			out = append(out, h)
		}
	}
	slices.Sort(out)
	return out
}

// SetFound replaces the targets that were found on the LAN. They are not stored. A target that the
// operator named stays as it is.
func (m *Mesh) SetFound(hosts []string) {
	m.mu.Lock()
	maps.DeleteFunc(m.targets, func(h string, t *target) bool { return t.found && !slices.Contains(hosts, h) })
	for _, h := range hosts {
		if m.targets[h] == nil {
			m.targets[h] = &target{found: true}
		}
	}
	m.mu.Unlock()
	m.cfg.Changed()
}

// CheckTarget returns an error if s cannot be a host to join.
func CheckTarget(s string) error {
	host, port := s, "1" // a target without a port needs no check of the port
	if h, p, err := net.SplitHostPort(s); err == nil {
		host, port = h, p
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 || host == "" || strings.ContainsAny(host, " \t\n/@%[],") || strings.HasPrefix(host, "-") {
		return fmt.Errorf("target %q: want HOST or HOST:PORT, for example 192.0.2.1, node1.example or [2001:db8::1]:6783", s)
	}
	addr, err := netip.ParseAddr(host)
	switch {
	case err != nil && looksLikeAddress(host):
		return fmt.Errorf("target %q: %s is neither an IP address nor a host name: use one, for example 192.0.2.1, node1.example or 2001:db8::1", s, host)
	case err == nil && (addr.IsUnspecified() || addr.IsMulticast() || addr == netip.AddrFrom4([4]byte{255, 255, 255, 255})):
		return fmt.Errorf("target %q: this is not the address of a single host: use a unicast address", s)
	}
	return nil
}

// looksLikeAddress reports whether a string can only be meant as an address. Such a string has a
// colon, or its last label is numeric, which no top-level domain is (RFC 3696, section 2).
func looksLikeAddress(host string) bool {
	labels := strings.Split(strings.TrimSuffix(host, "."), ".")
	return strings.Contains(host, ":") || strings.Trim(labels[len(labels)-1], "0123456789") == ""
}

// rejoin joins all targets and all known peers that gossip does not reach, for ever and with
// backoff. memberlist itself does not heal a long partition. Unproven peers are joined by a
// separate call, so that any number of them cannot delay the proven peers.
func (m *Mesh) rejoin(ctx context.Context, unproven bool) error {
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	for {
		due := m.due(ctx, time.Now(), unproven)
		group := errgroup.Group{}
		group.SetLimit(8)
		for _, try := range due {
			group.Go(func() error { try(); return nil })
		}
		_ = group.Wait()
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// due returns the join attempts to make now.
func (m *Mesh) due(ctx context.Context, now time.Time, unproven bool) []func() {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []func()
	for host, t := range m.targets {
		if !unproven && t.retry.due(now) {
			out = append(out, func() { m.joinTarget(ctx, host, t) })
		}
	}
	for id, k := range m.peers {
		r := k.signed.Record
		if id == m.self || k.node != "" || !k.hasRecord() || r.State == peer.Left || !k.retry.due(now) || m.unprovenPeer(id, k) != unproven {
			continue
		}
		turn := k.turn
		out = append(out, func() { m.joinPeer(ctx, r, k, turn) })
	}
	return out
}

// unprovenPeer reports whether a peer is unproven: the peer is known only by a record, which any
// member can invent. Such a peer owns nothing, and has not proved to be alive in this run or the
// last. The caller holds the lock.
func (m *Mesh) unprovenPeer(id peer.ID, k *known) bool { return !k.met && !k.saved && !m.owns(id) }

// joinTarget resolves a target and joins it, unless a reachable peer has that address.
func (m *Mesh) joinTarget(ctx context.Context, host string, t *target) {
	addrs, err := resolve(ctx, host, m.cfg.Port)
	connected := false
	for _, a := range addrs {
		connected = connected || m.here(a.Addr())
	}
	if err == nil && !connected {
		connected, err = m.join(ctx, addrs)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	t.connected, t.err = connected, err
	if len(addrs) > 0 {
		t.addrs = nil
		for _, a := range addrs {
			t.addrs = append(t.addrs, a.Addr().Unmap())
		}
	}
	if connected {
		t.retry = backoff{next: time.Now().Add(firstRetry)} // check again later whether it is still connected
	} else {
		t.retry.failed(time.Now())
	}
}

// joinPeer joins a known peer. Another peer may answer at one of its addresses, so each attempt
// starts with another address. Those inside the tunnel come last.
func (m *Mesh) joinPeer(ctx context.Context, r peer.Record, k *known, turn int) {
	var addrs []netip.AddrPort
	m.mu.Lock()
	planned := m.planned(k)
	m.mu.Unlock()
	for i := range r.Underlay {
		if planned {
			break
		}
		addrs = append(addrs, netip.AddrPortFrom(r.Underlay[(turn+i)%len(r.Underlay)], r.Gossip))
	}
	for _, a := range m.insideOf(r.ID()) {
		addrs = append(addrs, netip.AddrPortFrom(a, r.Gossip))
	}
	_, _ = m.join(ctx, addrs)
	m.mu.Lock()
	defer m.mu.Unlock()
	k.turn = turn + 1
	k.retry.failed(time.Now())
}

// join tries addresses until one answers. A running attempt cannot be cancelled, but no other
// attempt starts after ctx has ended.
func (m *Mesh) join(ctx context.Context, addrs []netip.AddrPort) (bool, error) {
	var err error
	for _, a := range addrs {
		if ctx.Err() != nil {
			return false, ctx.Err()
		}
		var n int
		if n, err = m.list.Join([]string{a.String()}); n > 0 {
			m.noteJoined()
			return true, nil
		}
		err = explainJoin(a, err)
	}
	return false, err
}

// here reports whether an address belongs to this host or to a reachable peer.
func (m *Mesh) here(a netip.Addr) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, k := range m.peers {
		if (k.node != "" || id == m.self) && (k.addr == a || slices.Contains(k.signed.Record.Underlay, a)) {
			return true
		}
	}
	return false
}

func resolve(ctx context.Context, host string, port int) ([]netip.AddrPort, error) {
	if h, p, err := net.SplitHostPort(host); err == nil {
		n, _ := strconv.Atoi(p) // CheckTarget has found this port valid
		host, port = h, n
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		why := err.Error()
		if e, ok := errors.AsType[*net.DNSError](err); ok {
			if why = e.Err; e.IsTimeout {
				why = "no DNS server answers"
			}
		}
		return nil, fmt.Errorf("cannot resolve %s (%s): check /etc/resolv.conf, or give an IP address", host, why)
	}
	var out []netip.AddrPort
	for _, ip := range ips {
		out = append(out, netip.AddrPortFrom(ip.Unmap(), uint16(port)))
	}
	return out, nil
}
