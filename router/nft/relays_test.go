package nft

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"weft/mesh/path"
	"weft/router/packet"
	"weft/router/routertest"
)

// relayLab is two hosts and a relay between them, in one family:
//
//	host a eth0 ── a relay b ── eth0 host b
//
// A UDP socket on each stands for WireGuard.
type relayLab struct {
	t                         *testing.T
	a, relay, b               routertest.Namespace
	sockA, sockR, sockB       *net.UDPConn
	kernelA, kernelR, kernelB *Kernel
	addrA, addrB              netip.Addr
	ownA, ownB                netip.Addr // the relay's addresses
}

func newRelayLab(t *testing.T, family string) *relayLab {
	t.Helper()
	l := &relayLab{t: t, a: routertest.New(t), relay: routertest.New(t), b: routertest.New(t), kernelA: &Kernel{}, kernelR: &Kernel{}, kernelB: &Kernel{}}
	addr := netip.MustParseAddr
	l.addrA, l.ownA, l.addrB, l.ownB = addr("192.0.2.1"), addr("192.0.2.3"), addr("198.51.100.2"), addr("198.51.100.3")
	bits := 24
	if family == "IPv6" {
		l.addrA, l.ownA, l.addrB, l.ownB = addr("2001:db8::1"), addr("2001:db8::3"), addr("2001:db8:1::2"), addr("2001:db8:1::3")
		bits = 64
	}
	commands(t, l.relay, fmt.Sprintf(`ip link add name a type veth peer name eth0 netns %s
		ip link add name b type veth peer name eth0 netns %s
		ip link set dev a up
		ip link set dev b up
		ip addr add %v/%d dev a nodad
		ip addr add %v/%d dev b nodad
		sysctl -q -w net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1`, l.a.Path(), l.b.Path(), l.ownA, bits, l.ownB, bits))
	for ns, way := range map[routertest.Namespace][2]netip.Addr{l.a: {l.addrA, l.ownA}, l.b: {l.addrB, l.ownB}} {
		commands(t, ns, fmt.Sprintf(`ip link set eth0 up
			ip addr add %v/%d dev eth0 nodad
			ip route add default via %v`, way[0], bits, way[1]))
	}
	for ns, socket := range map[routertest.Namespace]**net.UDPConn{l.a: &l.sockA, l.relay: &l.sockR, l.b: &l.sockB} {
		ns.Do(func() {
			c, err := net.ListenUDP("udp", &net.UDPAddr{Port: 6784})
			if err != nil {
				t.Fatal(err)
			}
			*socket = c
			t.Cleanup(func() { c.Close() })
		})
	}
	for _, k := range []*Kernel{l.kernelA, l.kernelR, l.kernelB} {
		t.Cleanup(k.Close)
	}
	return l
}

// load loads the rules of all three.
func (l *relayLab) load(used bool) {
	l.t.Helper()
	from := netip.AddrPortFrom
	detour := func(own, peer, relay netip.Addr, port uint16) Relays {
		return Relays{Detours: []Detour{{Peer: from(peer, 6784), Relay: from(relay, 6784), Own: from(own, port), Used: used}}}
	}
	for _, host := range []struct {
		ns     routertest.Namespace
		kernel *Kernel
		relays Relays
	}{
		{l.a, l.kernelA, detour(l.addrA, l.addrB, l.ownA, 40001)},
		{l.b, l.kernelB, detour(l.addrB, l.addrA, l.ownB, 40002)},
		{l.relay, l.kernelR, Relays{Pairs: []Pair{l.pair()}}},
	} {
		host.ns.Do(func() {
			if err := host.kernel.Apply(build(Config{Guard: Guard{Universe: universe, Port: 6784}, Relays: host.relays})); err != nil {
				l.t.Fatal(err)
			}
		})
	}
}

// expect sends a packet and checks that a socket receives it from an address.
func (l *relayLab) expect(what string, from *net.UDPConn, to netip.AddrPort, at *net.UDPConn, source netip.AddrPort) {
	l.t.Helper()
	if _, err := from.WriteToUDPAddrPort([]byte(what), to); err != nil {
		l.t.Fatal(err)
	}
	b := make([]byte, 2000)
	_ = at.SetReadDeadline(time.Now().Add(5 * time.Second))
	n, seen, err := at.ReadFromUDPAddrPort(b)
	if err != nil || string(b[:n]) != what || netip.AddrPortFrom(seen.Addr().Unmap(), seen.Port()) != source {
		l.t.Errorf("%s: received %q from %v (%v), want it from %v", what, b[:n], seen, err, source)
	}
}

// forwarded returns what the relay has forwarded and dropped of both hosts' packets.
func (l *relayLab) forwarded() (out [2]Forwarded) {
	l.t.Helper()
	l.relay.Do(func() {
		var err error
		if out, err = l.kernelR.Forwarded(l.pair()); err != nil {
			l.t.Fatal(err)
		}
	})
	return out
}

func (l *relayLab) pair() Pair {
	from := netip.AddrPortFrom
	return Pair{{from(l.addrA, 40001), from(l.ownA, 6784)}, {from(l.addrB, 40002), from(l.ownB, 6784)}}
}

// What comes by an address that the tunnel has left looks as if it came by the one that the tunnel uses. Probes do not.
func TestLatePacketsGetTheNewAddress(t *testing.T) {
	for _, family := range []string{"IPv4", "IPv6"} {
		t.Run(family, func(t *testing.T) {
			l := newRelayLab(t, family)
			now := netip.AddrPortFrom(l.addrA.Next(), 7001)
			late := []Late{{From: netip.AddrPortFrom(l.addrA, 6784), Peer: now, Own: l.addrB.Next()}}
			l.b.Do(func() {
				if err := l.kernelB.Apply(build(Config{Guard: Guard{Universe: universe, Port: 6784}, Relays: Relays{Late: late}})); err != nil {
					t.Fatal(err)
				}
			})
			was, b := netip.AddrPortFrom(l.addrA, 6784), netip.AddrPortFrom(l.addrB, 6784)
			checksummed(t, l.a, "eth0")
			for _, data := range []string{"data", strings.Repeat("more data", 100)} {
				l.expect(data, l.sockA, b, l.sockB, now)
			}
			l.expect(string(path.Magic[:])+"probe", l.sockA, b, l.sockB, was)
			l.expect("from the relay", l.sockR, b, l.sockB, netip.AddrPortFrom(l.ownB, 6784))
		})
	}
}

// checksummed makes the kernel fill in UDP's checksums when packets leave by an interface. Virtual interfaces leave them
// to the other end, which does not check them.
func checksummed(t *testing.T, ns routertest.Namespace, dev string) {
	t.Helper()
	ns.Do(func() {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		off := struct{ cmd, value uint32 }{cmd: unix.ETHTOOL_STXCSUM}
		request := struct {
			name [unix.IFNAMSIZ]byte
			data unsafe.Pointer
			_    [16]byte
		}{data: unsafe.Pointer(&off)}
		copy(request.name[:], dev)
		if _, _, err := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request))); err != 0 {
			t.Fatal(err)
		}
	})
}

// checksums returns those of the UDP packets that arrive at a host.
func checksums(t *testing.T, ns routertest.Namespace, family string) func() []uint16 {
	t.Helper()
	proto := map[string]uint16{"IPv4": unix.ETH_P_IP, "IPv6": unix.ETH_P_IPV6}[family]
	fd := -1
	ns.Do(func() {
		var err error
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK, int(proto<<8|proto>>8)); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() { unix.Close(fd) })
	return func() (out []uint16) {
		for b := make([]byte, 2000); ; {
			n, from, err := unix.Recvfrom(fd, b, 0)
			if err != nil {
				return out
			}
			if ll, ok := from.(*unix.SockaddrLinklayer); !ok || ll.Pkttype == unix.PACKET_OUTGOING {
				continue
			}
			if sum, ok := checksum(b[:n]); ok {
				out = append(out, sum)
			}
		}
	}
}

// checksum returns the checksum of a UDP packet, itself included: 0 is right (RFC 1071).
func checksum(ip []byte) (sum uint16, isUDP bool) {
	source, header, protocol := 12, 20, ip[9]
	if ip[0]>>4 == 6 {
		source, header, protocol = 8, 40, ip[6]
	}
	middle, udp := (source+header)/2, ip[header:]
	from, _ := netip.AddrFromSlice(ip[source:middle])
	to, _ := netip.AddrFromSlice(ip[middle:header])
	return packet.Checksum(packet.PseudoHeader(from, to, protocol, len(udp)), udp), protocol == unix.IPPROTO_UDP
}

// The checksums of what a relay forwards are right on the way, whichever of the hosts and the relay fills them in. Firewalls
// drop packets with wrong ones.
func TestChecksumsOverRelaysAreRight(t *testing.T) {
	for _, family := range []string{"IPv4", "IPv6"} {
		for _, by := range []string{"the hosts", "the relay"} {
			t.Run(family+", filled in by "+by, func(t *testing.T) {
				l := newRelayLab(t, family)
				if by == "the hosts" {
					checksummed(t, l.a, "eth0")
					checksummed(t, l.b, "eth0")
				} else {
					checksummed(t, l.relay, "a")
					checksummed(t, l.relay, "b")
				}
				l.load(true)
				a, b := netip.AddrPortFrom(l.addrA, 6784), netip.AddrPortFrom(l.addrB, 6784)
				toA, toB := checksums(t, l.a, family), checksums(t, l.b, family)
				const packets = 50
				for i := range packets {
					text := strings.Repeat(string(rune('a'+i%26)), 32+i) // WireGuard's smallest packet has 32 bytes
					l.expect(text, l.sockA, b, l.sockB, a)
					l.expect(text, l.sockB, a, l.sockA, b)
				}
				for at, list := range map[string][]uint16{"a": toA(), "b": toB()} {
					if wrong := slices.DeleteFunc(slices.Clone(list), func(sum uint16) bool { return sum == 0 }); len(wrong) > 0 || len(list) != packets {
						t.Errorf("%d of %d packets arrived at %s with a wrong checksum, want none of %d: %x", len(wrong), len(list), at, packets, wrong)
					}
				}
			})
		}
	}
}

// Both hosts see each other's own address and port, whichever way packets take, also if only one of them uses the
// relay. The relay's own packets stay its own.
func TestRelaysReplaceOnlyAddresses(t *testing.T) {
	for _, family := range []string{"IPv4", "IPv6"} {
		t.Run(family, func(t *testing.T) {
			l := newRelayLab(t, family)
			a, b := netip.AddrPortFrom(l.addrA, 6784), netip.AddrPortFrom(l.addrB, 6784)
			for i, used := range []bool{false, true, false, true} {
				l.load(used)
				l.expect("from a", l.sockA, b, l.sockB, a)
				l.expect("from b", l.sockB, a, l.sockA, b)
				header := map[string]int{"IPv4": 28, "IPv6": 48}[family]
				want := uint64((i + 1) / 2 * (header + len("from a")))
				if n := l.forwarded(); n[0].Passed != want || n[1].Passed != want || n[0].Dropped != 0 {
					t.Errorf("with the relay in use %v: it has forwarded %+v, want %d bytes each way", used, n, want)
				}
			}
			l.expect("to the relay itself", l.sockA, netip.AddrPortFrom(l.ownA, 6784), l.sockR, a)
		})
	}
}

// The relay forwards nothing from a port that stands for another host, whoever sends.
func TestRelaysForwardForNobodyElse(t *testing.T) {
	l := newRelayLab(t, "IPv4")
	l.load(true)
	for _, from := range []struct {
		ns       routertest.Namespace
		own, via netip.Addr
		port     uint16
	}{{l.a, l.addrA, l.ownA, 40002}, {l.b, l.addrB, l.ownB, 40001}} {
		own := netip.AddrPortFrom(from.own, from.port)
		var stranger *net.UDPConn
		from.ns.Do(func() {
			var err error
			if stranger, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(own)); err != nil {
				t.Fatal(err)
			}
		})
		defer stranger.Close()
		l.expect("from "+own.String(), stranger, netip.AddrPortFrom(from.via, 6784), l.sockR, own)
	}
	if n := l.forwarded(); n != [2]Forwarded{} {
		t.Errorf("the relay forwarded %+v, want nothing", n)
	}
}

// A host cannot use more of a relay than the rate for its pair.
func TestRelaysLimitTheRateOfAPair(t *testing.T) {
	l := newRelayLab(t, "IPv4")
	l.load(true)
	l.expect("first", l.sockA, netip.AddrPortFrom(l.addrB, 6784), l.sockB, netip.AddrPortFrom(l.addrA, 6784)) // the neighbours know each other
	raw, err := l.sockA.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	const size = 1400 // the kernel cuts what is written into datagrams of this size, as for WireGuard
	var refused error
	err = raw.Control(func(fd uintptr) { refused = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT, size) })
	if err := errors.Join(err, refused); err != nil {
		t.Fatal(err)
	}
	start, sent := time.Now(), 0
	for b := make([]byte, 40*size); sent < 4<<30; sent += len(b) {
		if _, err := l.sockA.WriteToUDPAddrPort(b, netip.AddrPortFrom(l.addrB, 6784)); err != nil {
			t.Fatal(err)
		}
	}
	took := time.Since(start)
	n := l.forwarded()[0]
	most := (pairBurst + PairRate*(1+took.Seconds())) * (1 << 20) * 1.05
	if float64(sent) <= most {
		t.Skipf("this machine is too slow to send more than a relay forwards: %d MiB in %v", sent>>20, took)
	}
	if float64(n.Passed) > most || n.Dropped == 0 {
		t.Errorf("of %d bytes in %v the relay forwarded %d, and dropped %d; want at most %.0f", sent, took, n.Passed, n.Dropped, most)
	}
	t.Logf("of %d MiB in %v the relay forwarded %d", sent>>20, took, n.Passed>>20)
}

// Members can make two ways have the same key. The kernel takes the rules all the same.
func TestRulesOfRelaysNeverCollide(t *testing.T) {
	at := netip.MustParseAddrPort
	a, b, c, own := at("192.0.2.1:20001"), at("192.0.2.2:20001"), at("192.0.2.4:20001"), at("192.0.2.3:6784")
	detour := Detour{Peer: at("192.0.2.2:6784"), Relay: at("192.0.2.9:6784"), Own: a, Used: true}
	late := Late{From: at("192.0.2.7:6784"), Peer: at("192.0.2.8:6784"), Own: a.Addr()}
	ns := routertest.New(t)
	ns.Do(func() {
		var k Kernel
		defer k.Close()
		relays := Relays{
			Pairs:   []Pair{{{a, own}, {b, own}}, {{a, own}, {c, own}}, {{b, own}, {b, own}}},
			Detours: []Detour{detour, detour}, Late: []Late{late, late},
		}
		if err := k.Apply(build(Config{Guard: Guard{Universe: universe, Port: 6784}, Relays: relays})); err != nil {
			t.Errorf("the kernel refused rules with equal keys: %v", err)
		}
	})
}
