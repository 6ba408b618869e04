package wg

import (
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"weft/mesh/topology"
	"weft/router/link"
)

// keepalive keeps NAT mappings and the session alive, so that `weft status` is right about tunnels
// without traffic.
const keepalive = 25 * time.Second

// devicePeer is a peer in the device's present configuration.
type devicePeer struct {
	psk       wgtypes.Key
	endpoint  netip.AddrPort
	allowed   []netip.Prefix
	keepalive time.Duration
	handshake time.Time // the time of the last handshake
	received  time.Time // when received bytes last increased; zero: not known
}

// plan is the last planned configuration of a peer.
type plan struct {
	endpoint netip.AddrPort   // the last endpoint that was not held back, see moved
	record   []netip.AddrPort // the addresses in the peer's record
	since    time.Time        // when the peer was first planned
}

// firstTurn is how long a host leaves the first handshake to the peer. WireGuard repeats a handshake every 5 s, so this
// host begins its own between two of the peer's.
const firstTurn = 2500 * time.Millisecond

// sessionLife is how long a session lasts without another handshake (WireGuard's
// REJECT_AFTER_TIME). Since keepalives cause handshakes, a peer with an older handshake does not
// answer.
const sessionLife = 180 * time.Second

// lostTimeout is how long a peer that gossip has lost must be without a handshake before its
// keepalive is turned off. A peer with a working data path has a handshake every 2 minutes.
const lostTimeout = 5 * time.Minute

// interval returns the keepalive interval for a tunnel; 0 for a peer that gossip has not reached
// for a long time. Each keepalive to such a peer would cause 18 handshake initiations without an
// answer, and occupy a buffer meanwhile. Traffic still starts a handshake, and a handshake by the
// peer turns the keepalive on again.
func interval(t topology.Tunnel, old devicePeer, now time.Time) time.Duration {
	if t.Reach == topology.Lost && now.Sub(old.handshake) > lostTimeout {
		return 0
	}
	return keepalive
}

// receiveTimeout is how long a peer with a session may send nothing before its endpoint counts as
// broken. It is the interval of keepalives, plus some time for a late keepalive.
const receiveTimeout = keepalive + 10*time.Second

// alive reports whether packets arrive from a peer, which shows that the endpoint in the device works.
func (l devicePeer) alive(now time.Time) bool {
	return now.Sub(l.handshake) <= sessionLife && (l.received.IsZero() || now.Sub(l.received) <= receiveTimeout)
}

// needsHandshake reports whether gossip reaches a peer that has no session, so that a new handshake
// must be started. Otherwise, after a handshake that was lost or that crossed the peer's handshake,
// both sides may wait for the next keepalive. WireGuard itself starts at most one handshake in 5 s. Only
// one side does so, or the handshakes would cross again.
func needsHandshake(t topology.Tunnel, old devicePeer, now time.Time) bool {
	return !t.Waits && t.Reach == topology.Reached && now.Sub(old.handshake) > sessionLife
}

// diff returns the smallest change from the device's configuration to the plan. It never replaces a
// list of peers or of allowed IPs, which would lose packets:
//
//   - a prefix with a new owner is added to that peer, which moves it;
//   - a prefix without an owner is moved to a temporary peer, the sink, which is removed at once: WireGuard before
//     Linux 6.16 cannot remove a prefix from a peer, and wgctrl has no call for it;
//   - but a prefix without an owner inside a planned prefix is moved to the owner of the planned prefix, where it is
//     redundant: moving it to the sink would drop packets that have a destination;
//   - an endpoint that works is kept. An endpoint that WireGuard learned by roaming is newer than an earlier record (see
//     moved).
//
// The changes must be applied in order. planned is the last plan for each peer; diff returns the
// next one.
func diff(have map[wgtypes.Key]devicePeer, want []topology.Tunnel, planned map[wgtypes.Key]plan, now time.Time) ([]wgtypes.PeerConfig, map[wgtypes.Key]plan) {
	var changes []wgtypes.PeerConfig
	next := map[wgtypes.Key]plan{}
	owner := map[netip.Prefix]wgtypes.Key{} // the first peer that claims a prefix, so that two claims never alternate
	for _, t := range want {
		for _, p := range t.AllowedIPs {
			if _, taken := owner[p]; !taken {
				owner[p] = t.PublicKey
			}
		}
	}
	for _, t := range want {
		key := wgtypes.Key(t.PublicKey)
		old, exists := have[key]
		last := planned[key]
		c := wgtypes.PeerConfig{PublicKey: key, UpdateOnly: exists}
		if psk := wgtypes.Key(t.PresharedKey); !exists || old.psk != psk {
			c.PresharedKey = &psk
		}
		since := last.since
		if since.IsZero() {
			since = now
		}
		next[key] = plan{t.Endpoint, t.Record, since}
		switch {
		case !t.Endpoint.IsValid():
		case !exists || moved(old, t, last, now):
			c.Endpoint = net.UDPAddrFromAddrPort(t.Endpoint)
		case old.endpoint != t.Endpoint: // held back until the device's endpoint stops working
			next[key] = plan{last.endpoint, t.Record, since}
		}
		every := interval(t, old, now)
		switch {
		case t.Waits && old.handshake.IsZero() && now.Sub(since) < firstTurn: // a keepalive would start a handshake
		case old.keepalive != every:
			c.PersistentKeepaliveInterval = &every
		case exists && needsHandshake(t, old, now): // WireGuard sends a keepalive as soon as it is turned on, which starts a handshake
			changes = append(changes, wgtypes.PeerConfig{PublicKey: key, UpdateOnly: true, PersistentKeepaliveInterval: new(time.Duration(0))})
			c.PersistentKeepaliveInterval = &every
		}
		for _, p := range t.AllowedIPs {
			if owner[p] == key && !slices.Contains(old.allowed, p) {
				c.AllowedIPs = append(c.AllowedIPs, *link.IPNet(p))
			}
		}
		if !exists || c.PresharedKey != nil || c.Endpoint != nil || c.PersistentKeepaliveInterval != nil || len(c.AllowedIPs) > 0 {
			changes = append(changes, c)
		}
	}
	return append(changes, surplus(have, next, owner)...), next
}

// moved reports whether the endpoint of an existing peer must be written. A proven endpoint always is.
// Without one, WireGuard's own choice goes on while it works: an endpoint from which
// packets arrive is replaced only when the peer's own record no longer contains it. An endpoint
// without packets is replaced when the plan has changed; after a restart of the agent, when the
// last plan is not known, always.
func moved(old devicePeer, t topology.Tunnel, last plan, now time.Time) bool {
	switch {
	case !old.endpoint.IsValid():
		return true
	case old.endpoint == t.Endpoint:
		return false
	case t.Proven: // both ends use this pair of addresses, so WireGuard does not roam back
		return true
	case slices.Contains(last.record, old.endpoint) && !slices.Contains(t.Record, old.endpoint):
		return true
	}
	return !old.alive(now) && last.endpoint != t.Endpoint
}

// surplus returns the changes that remove prefixes without an owner, and then peers that are not
// planned.
func surplus(have map[wgtypes.Key]devicePeer, keep map[wgtypes.Key]plan, owner map[netip.Prefix]wgtypes.Key) []wgtypes.PeerConfig {
	var moves, removals []wgtypes.PeerConfig
	var unowned []net.IPNet
	for key, old := range have {
		if _, ok := keep[key]; !ok {
			removals = append(removals, wgtypes.PeerConfig{PublicKey: key, Remove: true})
			continue
		}
		for _, p := range old.allowed {
			switch to, covered := covering(owner, p); {
			case !covered:
				unowned = append(unowned, *link.IPNet(p))
			case to != key && owner[p] == (wgtypes.Key{}):
				moves = append(moves, wgtypes.PeerConfig{PublicKey: to, UpdateOnly: true, AllowedIPs: []net.IPNet{*link.IPNet(p)}})
			}
		}
	}
	if len(unowned) > 0 {
		moves = append(moves, wgtypes.PeerConfig{PublicKey: sink, AllowedIPs: unowned}, wgtypes.PeerConfig{PublicKey: sink, Remove: true})
	}
	return append(moves, removals...)
}

// covering returns the owner of the longest planned prefix that contains p.
func covering(owner map[netip.Prefix]wgtypes.Key, p netip.Prefix) (wgtypes.Key, bool) {
	for bits := p.Bits(); bits >= 0; bits-- {
		if key, ok := owner[netip.PrefixFrom(p.Addr(), bits).Masked()]; ok {
			return key, true
		}
	}
	return wgtypes.Key{}, false
}

// sink is a public key that belongs to no host: diff moves prefixes to this peer and then removes
// the peer with them.
var sink = wgtypes.Key{0: 'w', 1: 'e', 2: 'f', 3: 't', 31: 1}
