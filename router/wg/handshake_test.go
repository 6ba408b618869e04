package wg

import (
	"bytes"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/conn/bindtest"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/tuntest"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"weft/mesh/topology"
)

// host is wireguard-go in virtual time with one peer, the other host.
//
//	host 1 ── path: delays packets, or loses them ── host 2
type host struct {
	t       *testing.T
	dev     *device.Device
	tunnel  topology.Tunnel // leads to the other host
	planned map[wgtypes.Key]plan
}

// closedPeers keeps wireguard-go's peers reachable after a test. Their finalizers would read
// channels of a synctest bubble that has ended.
var closedPeers []*device.Peer

// path delays a host's packets, and drops them while lost returns true.
type path struct {
	conn.Bind
	delay time.Duration
	lost  func() bool
}

func (p path) Send(bufs [][]byte, to conn.Endpoint) error {
	if p.lost() {
		return nil
	}
	for _, b := range bufs {
		b := bytes.Clone(b)
		time.AfterFunc(p.delay, func() { _ = p.Bind.Send([][]byte{b}, to) })
	}
	return nil
}

func newHosts(t *testing.T, delay time.Duration, lost func() bool) (hosts [2]*host) {
	t.Helper()
	var keys [2]wgtypes.Key
	for i, bind := range bindtest.NewChannelBinds() {
		key, err := wgtypes.GeneratePrivateKey()
		if err != nil {
			t.Fatal(err)
		}
		keys[i] = key
		h := &host{t: t, planned: map[wgtypes.Key]plan{}}
		h.dev = device.NewDevice(tuntest.NewChannelTUN().TUN(), path{bind, delay, lost}, device.NewLogger(device.LogLevelSilent, ""))
		h.set(fmt.Sprintf("private_key=%x\n", key[:]))
		if err := h.dev.Up(); err != nil {
			t.Fatal(err)
		}
		hosts[i] = h
	}
	for i, h := range hosts {
		h.tunnel = topology.Tunnel{
			PublicKey: keys[1-i].PublicKey(), Endpoint: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(i+1)),
			AllowedIPs: prefixes(fmt.Sprintf("10.32.%d.0/24", 1-i)),
		}
	}
	return hosts
}

// end closes both devices, and lets packets in flight arrive.
func end(hosts [2]*host) {
	for _, h := range hosts {
		if p := h.dev.LookupPeer(device.NoisePublicKey(h.tunnel.PublicKey)); p != nil {
			closedPeers = append(closedPeers, p)
		}
		h.dev.Close()
	}
	time.Sleep(time.Minute)
}

func (h *host) set(uapi string) {
	h.t.Helper()
	if err := h.dev.IpcSet(uapi); err != nil {
		h.t.Fatal(err)
	}
}

// reconcile runs one pass of the agent.
func (h *host) reconcile(reach topology.Reach) {
	h.t.Helper()
	h.tunnel.Reach = reach
	have, _ := h.read()
	var changes []wgtypes.PeerConfig
	changes, h.planned = diff(have, []topology.Tunnel{h.tunnel}, h.planned, time.Now())
	for _, c := range changes {
		text := fmt.Sprintf("public_key=%x\n", c.PublicKey[:])
		if c.PresharedKey != nil {
			text += fmt.Sprintf("preshared_key=%x\n", c.PresharedKey[:])
		}
		if c.Endpoint != nil {
			text += fmt.Sprintf("endpoint=%v\n", c.Endpoint)
		}
		if c.PersistentKeepaliveInterval != nil {
			text += fmt.Sprintf("persistent_keepalive_interval=%d\n", int(c.PersistentKeepaliveInterval.Seconds()))
		}
		for _, p := range c.AllowedIPs {
			text += fmt.Sprintf("allowed_ip=%v\n", &p)
		}
		h.set(text)
	}
}

// read reads the device as Apply does, and returns how many bytes were sent to the peer.
func (h *host) read() (have map[wgtypes.Key]devicePeer, sent int) {
	h.t.Helper()
	text, err := h.dev.IpcGet()
	if err != nil {
		h.t.Fatal(err)
	}
	have = map[wgtypes.Key]devicePeer{}
	l := devicePeer{}
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		n, _ := strconv.Atoi(value)
		switch name {
		case "persistent_keepalive_interval":
			l.keepalive = time.Duration(n) * time.Second
		case "last_handshake_time_sec":
			l.handshake = time.Unix(int64(n), 0)
		case "allowed_ip":
			l.allowed = prefixes(value)
		case "tx_bytes":
			sent = n
		}
		if name == "public_key" || len(have) > 0 {
			have[wgtypes.Key(h.tunnel.PublicKey)] = l
		}
	}
	return have, sent
}

func (h *host) hasHandshake() bool {
	have, _ := h.read()
	return have[wgtypes.Key(h.tunnel.PublicKey)].handshake.Unix() > 0
}

// waitForHandshake lets time pass until both hosts have a session. Every 2 s waitForHandshake calls
// pass, which reconciles the hosts.
func waitForHandshake(hosts [2]*host, limit time.Duration, pass func()) (took time.Duration, ok bool) {
	for ; took <= limit; took += 100 * time.Millisecond {
		synctest.Wait()
		if hosts[0].hasHandshake() && hosts[1].hasHandshake() {
			return took, true
		}
		if took%(2*time.Second) == 0 && took > 0 {
			pass()
		}
		time.Sleep(100 * time.Millisecond)
	}
	return took, false
}

func never() bool { return false }

func TestALostPeerHasASessionWithinASecondAfterItReturns(t *testing.T) {
	const idle = 20 * time.Minute
	for name, restore := range map[string]func(first, second *host){
		"gossip of the first host reaches the second": func(h, _ *host) { h.reconcile(topology.Reached) },
		"gossip of the second host reaches the first": func(_, h *host) { h.reconcile(topology.Reached) },
		"the second host sends a keepalive": func(_, h *host) {
			h.set(fmt.Sprintf("public_key=%x\npersistent_keepalive_interval=25\n", h.tunnel.PublicKey))
		},
		"gossip of both hosts reaches the other": func(a, b *host) {
			a.reconcile(topology.Reached)
			time.Sleep(10 * time.Millisecond) // without this pause handshakes would cross, see TestCrossingHandshakesAreRetriedSoon
			b.reconcile(topology.Reached)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cut := true
				hosts := newHosts(t, time.Millisecond, func() bool { return cut })
				defer end(hosts)
				for _, h := range hosts {
					h.reconcile(topology.Unsure)
				}
				time.Sleep(lostFor)
				for _, h := range hosts {
					h.reconcile(topology.Lost)
				}
				time.Sleep(3 * time.Minute) // both hosts give up handshakes in progress
				_, before := hosts[0].read()
				time.Sleep(idle)
				if _, after := hosts[0].read(); after != before || before == 0 {
					t.Errorf("%d bytes were sent to a lost peer, and %d bytes later; want the same number, above 0", before, after)
				}
				cut = false
				restore(hosts[0], hosts[1])
				if _, ok := waitForHandshake(hosts, time.Second, func() {}); !ok {
					t.Error("there was no handshake within a second, want one")
				}
				for i, h := range hosts {
					h.reconcile(topology.Lost)
					if have, _ := h.read(); have[wgtypes.Key(h.tunnel.PublicKey)].keepalive != keepalive {
						t.Errorf("host %d has no keepalive after the handshake; want one", i+1)
					}
				}
			})
		})
	}
}

// lostFor is longer than the time after which the keepalive of a lost peer is turned off.
const lostFor = lostTimeout + time.Minute

func TestAHostThatIsConfiguredLaterHasASessionAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hosts := newHosts(t, time.Millisecond, never)
		defer end(hosts)
		hosts[0].reconcile(topology.Reached)
		time.Sleep(time.Second)
		hosts[1].reconcile(topology.Reached)
		if took, ok := waitForHandshake(hosts, time.Second, func() {}); !ok {
			t.Errorf("there was no handshake within %v, want one", took)
		}
	})
}

// If both sides start their first handshake at the same time, each handshake invalidates the other.
// Each side retries after 5 s with a jitter of 0 to 333 ms. A side cancels the retry if its answer
// to the other side's handshake came later than its own initiation, by more than the jitter. The
// next handshake would then come with the keepalive, after 25 s.
func TestCrossingHandshakesAreRetriedSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hosts := newHosts(t, 400*time.Millisecond, never)
		defer end(hosts)
		hosts[0].reconcile(topology.Reached)
		hosts[1].reconcile(topology.Reached)
		took, ok := waitForHandshake(hosts, 9*time.Second, func() {
			hosts[0].reconcile(topology.Reached)
			time.Sleep(time.Second) // the agents of two hosts do not reconcile at the same time
			hosts[1].reconcile(topology.Reached)
		})
		if !ok {
			t.Errorf("there was no handshake within %v, want one", took)
		}
		t.Logf("the handshake took %v", took)
	})
}
