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

// keepalive keeps NAT mappings and the handshake alive, so that `weft status` tells
// the truth about tunnels that carry nothing right now.
const keepalive = 25 * time.Second

// live is a peer as the device has it.
type live struct {
	psk       wgtypes.Key
	endpoint  netip.AddrPort
	allowed   []netip.Prefix
	keepalive time.Duration
	handshake time.Time // the last one
	heard     time.Time // when it was last seen to have sent anything; zero: not known
}

// plan is what was planned last for a peer.
type plan struct {
	endpoint netip.AddrPort   // the last one that was not held back, see moved
	record   []netip.AddrPort // where its record said that it listens
}

// sessionLife is how long a session lasts without another handshake (WireGuard's
// REJECT_AFTER_TIME). With a keepalive, a peer whose last is older does not answer.
const sessionLife = 180 * time.Second

// silence is how long a peer that gossip has lost must be without a handshake before it
// is not called any more. One whose data path is alive has a handshake every 2 minutes.
const silence = 5 * time.Minute

// interval is the keepalive for a tunnel. A peer that is silent for long gets none:
// each would be 18 handshakes that nobody answers, and a buffer that waits meanwhile.
// Traffic still calls it, and its own handshake brings the keepalive back.
func interval(t topology.Tunnel, old live, now time.Time) time.Duration {
	if t.Reach == topology.Lost && now.Sub(old.handshake) > silence {
		return 0
	}
	return keepalive
}

// quiet is how long a peer with a session sends nothing before its endpoint is doubted: the
// interval of its keepalives, and time for one to be late.
const quiet = keepalive + 10*time.Second

// alive reports whether packets come from a peer: the endpoint that the device has works.
func (l live) alive(now time.Time) bool {
	return now.Sub(l.handshake) <= sessionLife && (l.heard.IsZero() || now.Sub(l.heard) <= quiet)
}

// uncalled reports whether a peer that gossip reaches has no session. Then it is called
// again: a handshake that was lost, or that crossed the other's, can leave both sides
// waiting for the next keepalive. WireGuard itself sends one in 5 s at most.
func uncalled(t topology.Tunnel, old live, now time.Time) bool {
	return t.Reach == topology.Reached && now.Sub(old.handshake) > sessionLife
}

// diff is the smallest change from what a device has to what is planned. It never
// replaces a list of peers or of allowed IPs, which would lose packets:
//
//   - a prefix that has a new owner is added there, which moves it;
//   - a prefix that nobody shall have any more is moved to a peer that is made for
//     that and removed at once: WireGuard before Linux 6.16 cannot take one away from
//     a peer, and wgctrl cannot say it;
//   - unless a wider one that is planned covers it: then it goes to that one's owner,
//     where it is redundant. In the sink it would take live packets with it;
//   - an endpoint that works is left alone, and what WireGuard learned by roaming is newer
//     than what a record said before (see moved).
//
// The changes are to be applied in order. planned is the last plan for each peer; diff
// returns its next value.
func diff(have map[wgtypes.Key]live, want []topology.Tunnel, planned map[wgtypes.Key]plan, now time.Time) ([]wgtypes.PeerConfig, map[wgtypes.Key]plan) {
	var changes []wgtypes.PeerConfig
	next := map[wgtypes.Key]plan{}
	owner := map[netip.Prefix]wgtypes.Key{} // the first that claims one, so that two never take turns
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
		next[key] = plan{t.Endpoint, t.Record}
		switch {
		case !t.Endpoint.IsValid():
		case !exists || moved(old, t, last, now):
			c.Endpoint = net.UDPAddrFromAddrPort(t.Endpoint)
		case old.endpoint != t.Endpoint: // held back, until the one that it has does not work any more
			next[key] = plan{last.endpoint, t.Record}
		}
		every := interval(t, old, now)
		if old.keepalive != every {
			c.PersistentKeepaliveInterval = &every
		} else if exists && uncalled(t, old, now) { // to turn the keepalive on sends one at once
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

// moved reports whether an existing peer's endpoint is to be written. One from which packets
// come is not replaced by a guess, only when the peer itself, in its record, says that it is
// there no more. One that is silent is replaced when the plan changed; after a restart of the
// agent, when the last plan is not known, always.
func moved(old live, t topology.Tunnel, last plan, now time.Time) bool {
	switch {
	case !old.endpoint.IsValid():
		return true
	case old.endpoint == t.Endpoint:
		return false
	case slices.Contains(last.record, old.endpoint) && !slices.Contains(t.Record, old.endpoint):
		return true
	}
	return !old.alive(now) && last.endpoint != t.Endpoint
}

// surplus removes what nobody shall have: prefixes first, then peers.
func surplus(have map[wgtypes.Key]live, keep map[wgtypes.Key]plan, owner map[netip.Prefix]wgtypes.Key) []wgtypes.PeerConfig {
	var moves, gone []wgtypes.PeerConfig
	var stray []net.IPNet
	for key, old := range have {
		if _, ok := keep[key]; !ok {
			gone = append(gone, wgtypes.PeerConfig{PublicKey: key, Remove: true})
			continue
		}
		for _, p := range old.allowed {
			switch to, covered := covering(owner, p); {
			case !covered:
				stray = append(stray, *link.IPNet(p))
			case to != key && owner[p] == (wgtypes.Key{}):
				moves = append(moves, wgtypes.PeerConfig{PublicKey: to, UpdateOnly: true, AllowedIPs: []net.IPNet{*link.IPNet(p)}})
			}
		}
	}
	if len(stray) > 0 {
		moves = append(moves, wgtypes.PeerConfig{PublicKey: sink, AllowedIPs: stray}, wgtypes.PeerConfig{PublicKey: sink, Remove: true})
	}
	return append(moves, gone...)
}

// covering is the owner of the longest planned prefix that p lies in.
func covering(owner map[netip.Prefix]wgtypes.Key, p netip.Prefix) (wgtypes.Key, bool) {
	for bits := p.Bits(); bits >= 0; bits-- {
		if key, ok := owner[netip.PrefixFrom(p.Addr(), bits).Masked()]; ok {
			return key, true
		}
	}
	return wgtypes.Key{}, false
}

// sink is the public key of nobody: the peer to which prefixes are moved to be removed with it.
var sink = wgtypes.Key{0: 'w', 1: 'e', 2: 'f', 3: 't', 31: 1}
