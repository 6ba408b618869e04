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
	psk      wgtypes.Key
	endpoint netip.AddrPort
	allowed  []netip.Prefix
}

// diff is the smallest change from what a device has to what is planned. It never
// replaces a list of peers or of allowed IPs, which would lose packets:
//
//   - a prefix that has a new owner is added there, which moves it;
//   - a prefix that nobody shall have any more is moved to a peer that is made for
//     that and removed at once, since WireGuard before Linux 6.16 cannot take one
//     away from a peer;
//   - an endpoint is written only when the plan's differs from the last plan's: what
//     WireGuard learned by roaming is newer than what a record said before.
//
// planned maps a peer to the endpoint that was written last; diff returns its next value.
func diff(have map[wgtypes.Key]live, want []topology.Tunnel, planned map[wgtypes.Key]netip.AddrPort) ([]wgtypes.PeerConfig, map[wgtypes.Key]netip.AddrPort) {
	var changes, gone []wgtypes.PeerConfig
	next := map[wgtypes.Key]netip.AddrPort{}
	wanted := map[netip.Prefix]bool{}
	for _, t := range want {
		for _, p := range t.AllowedIPs {
			wanted[p] = true
		}
	}
	for _, t := range want {
		key := wgtypes.Key(t.PublicKey)
		next[key] = t.Endpoint
		old, exists := have[key]
		c := wgtypes.PeerConfig{PublicKey: key, UpdateOnly: exists}
		if psk := wgtypes.Key(t.PresharedKey); !exists || old.psk != psk {
			c.PresharedKey = &psk
		}
		if last, known := planned[key]; !exists || !known && !old.endpoint.IsValid() || known && last != t.Endpoint {
			c.Endpoint = net.UDPAddrFromAddrPort(t.Endpoint)
		}
		if !exists {
			interval := keepalive
			c.PersistentKeepaliveInterval = &interval
		}
		for _, p := range t.AllowedIPs {
			if !exists || !slices.Contains(old.allowed, p) {
				c.AllowedIPs = append(c.AllowedIPs, *link.IPNet(p))
			}
		}
		if !exists || c.PresharedKey != nil || c.Endpoint != nil || len(c.AllowedIPs) > 0 {
			changes = append(changes, c)
		}
	}
	var stray []net.IPNet
	for key, old := range have {
		if _, keep := next[key]; !keep {
			gone = append(gone, wgtypes.PeerConfig{PublicKey: key, Remove: true})
			continue
		}
		for _, p := range old.allowed {
			if !wanted[p] {
				stray = append(stray, *link.IPNet(p))
			}
		}
	}
	if len(stray) > 0 {
		changes = append(changes,
			wgtypes.PeerConfig{PublicKey: sink, AllowedIPs: stray},
			wgtypes.PeerConfig{PublicKey: sink, Remove: true})
	}
	return append(changes, gone...), next
}

// sink is the public key of nobody: the peer to which prefixes are moved to be removed with it.
var sink = wgtypes.Key{0: 'w', 1: 'e', 2: 'f', 3: 't', 31: 1}
