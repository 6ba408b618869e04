package lab_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"weft/prog/lab"
	"weft/prog/lab/labtest"
	"weft/prog/lab/node"
)

// socketCommand opens a UDP port and passes its descriptor through the socket that is its standard input.
func socketCommand() *cobra.Command {
	return &cobra.Command{
		Use: "socket ADDR:PORT", Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			addr, err := netip.ParseAddrPort(args[0])
			if err != nil {
				return err
			}
			conn, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(addr))
			if err != nil {
				return err
			}
			f, err := conn.File()
			if err != nil {
				return err
			}
			return unix.Sendmsg(0, []byte{0}, unix.UnixRights(int(f.Fd())), nil, 0)
		},
	}
}

// socket is a UDP socket on a host of a lab. Descriptors work outside the namespaces in which they were opened.
type socket struct {
	*net.UDPConn
	t *testing.T
}

func openSocket(t *testing.T, l *lab.Lab, host string, port int) socket {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[0])
	theirs := os.NewFile(uintptr(pair[1]), "socket pair")
	defer theirs.Close()
	err = l.Attach(t.Context(), host, [3]*os.File{theirs, os.Stderr, os.Stderr}, nil, "weft", "socket", fmt.Sprintf("0.0.0.0:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(pair[0], make([]byte, 1), oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(msgs) != 1 {
		t.Fatalf("got %d control messages, want one: %v", len(msgs), err)
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fds[0]), "udp")
	defer f.Close()
	conn, err := net.FilePacketConn(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return socket{conn.(*net.UDPConn), t}
}

func (s socket) send(to, text string) {
	s.t.Helper()
	if _, err := s.WriteToUDPAddrPort([]byte(text), netip.MustParseAddrPort(to)); err != nil {
		s.t.Fatal(err)
	}
}

// expect receives a message and returns its sender.
func (s socket) expect(text string) string {
	s.t.Helper()
	buf := make([]byte, 100)
	if err := s.SetReadDeadline(time.Now().Add(wait)); err != nil {
		s.t.Fatal(err)
	}
	n, from, err := s.ReadFromUDPAddrPort(buf)
	if err != nil || string(buf[:n]) != text {
		s.t.Fatalf("received %q, error %v; want %q", buf[:n], err, text)
	}
	return netip.AddrPortFrom(from.Addr().Unmap(), from.Port()).String()
}

// h1 and h4 are outside. h2 and h3 are behind one NAT and use the same port.
//
//	h1 .1 ── underlay ── .2 nat-h2 ─┬─ h2
//	h4 .4 ───┘                      └─ h3
func TestNATMapsAndFilters(t *testing.T) {
	for _, test := range []struct {
		kind                   node.NATKind
		oneMapping, fromAnyone bool
	}{
		{node.FullCone, true, true},
		{node.Restricted, true, false},
		{node.Symmetric, false, false},
	} {
		t.Run(string(test.kind), func(t *testing.T) {
			l := bare(t, 4, 0)
			behindNAT(t, l, test.kind)
			h1, h4 := openSocket(t, l, "h1", 1000), openSocket(t, l, "h4", 4000)
			h2, h3 := openSocket(t, l, "h2", 2000), openSocket(t, l, "h3", 2000)

			// Packets from outside arrive before the host has sent any, and must not change its mapping.
			h1.send("192.0.2.2:2000", "too early")
			h4.send("192.0.2.2:2000", "too early")
			h2.send("192.0.2.1:1000", "first")
			h2.send("192.0.2.4:4000", "second")
			to1, to4 := h1.expect("first"), h4.expect("second")
			if !strings.HasPrefix(to1, "192.0.2.2:") || (to1 == to4) != test.oneMapping {
				t.Errorf("the outer address is %s for one destination and %s for another one, want 192.0.2.2 and the same port: %v", to1, to4, test.oneMapping)
			}
			if got := to1 == "192.0.2.2:2000"; got != test.oneMapping {
				t.Errorf("the outer address is %s, want the port 2000 preserved: %v", to1, test.oneMapping)
			}
			// The second host gets a mapping of its own, for all its destinations.
			h3.send("192.0.2.4:4000", "third")
			h3.send("192.0.2.1:1000", "fourth")
			third, fourth := h4.expect("third"), h1.expect("fourth")
			if third == to4 || fourth == to1 || (third == fourth) != test.oneMapping {
				t.Errorf("the outer addresses are %s and %s for the second host, %s and %s for the first; want others, and one mapping: %v", third, fourth, to4, to1, test.oneMapping)
			}
			// Answers pass, also from a second one and to the second host.
			h1.send(to1, "answer")
			if from := h2.expect("answer"); from != "192.0.2.1:1000" {
				t.Errorf("the answer comes from %s, want 192.0.2.1:1000", from)
			}
			h4.send(third, "other answer")
			h3.expect("other answer")
			// Other ports and hosts may send to the mapping or not. A packet that passes marks the end.
			for host, port := range map[string]int{"h1": 1001, "h4": 4001} {
				other := openSocket(t, l, host, port)
				other.send(to1, "unsolicited")
				if test.fromAnyone {
					h2.send(h2.expect("unsolicited"), "welcome")
					if from := other.expect("welcome"); from != to1 {
						t.Errorf("the answer to an unsolicited packet comes from %s, want %s", from, to1)
					}
				}
			}
			h1.send(to1, "end")
			h2.expect("end")
			// Inside, the two hosts use their inner addresses. The outer address is no way in.
			h2.send("192.168.2.3:2000", "inside")
			if from := h3.expect("inside"); from != "192.168.2.2:2000" {
				t.Errorf("inside, h2 has the address %s, want 192.168.2.2:2000", from)
			}
			h3.send(to1, "hairpin")
			h3.send("192.168.2.2:2000", "direct")
			h2.expect("direct")
		})
	}
}

// behindNAT puts h2 and h3 behind one NAT.
func behindNAT(t *testing.T, l *lab.Lab, kind node.NATKind) {
	t.Helper()
	if err := l.SetNAT(t.Context(), "h2", kind, 0); err != nil {
		t.Fatal(err)
	}
	if err := l.JoinNAT(t.Context(), "h3", "h2"); err != nil {
		t.Fatal(err)
	}
}

// TCP works from inside and between hosts inside. From outside it does not, even with a route to the inner
// address.
func TestNATLetsNoConnectionsIn(t *testing.T) {
	for _, kind := range node.NATKinds {
		t.Run(string(kind), func(t *testing.T) {
			l := bare(t, 3, 0)
			reaches := func(from, to string, limit time.Duration) bool {
				ctx, cancel := context.WithTimeout(t.Context(), limit)
				defer cancel()
				_, err := l.Exec(ctx, from, nil, "weft", "probe", "tcp", "-c", "2", "-i", "10ms", to)
				return err == nil
			}
			for _, h := range l.Hosts() {
				labtest.Listen(t, l, h)
			}
			if !reaches("h1", "192.0.2.2", wait) {
				t.Fatal("without NAT, h1 does not reach h2")
			}
			behindNAT(t, l, kind)
			run(t, l, "h1", "ip", "route", "add", "192.168.2.0/24", "via", "192.0.2.2")
			for way, want := range map[string]bool{
				"h2 192.0.2.1": true, "h3 192.0.2.1": true, "h2 192.168.2.3": true, "h3 192.168.2.2": true,
				"h1 192.0.2.2": false, "h1 192.0.2.3": false, "h1 192.168.2.2": false, "h2 192.0.2.2": false,
			} {
				from, to, _ := strings.Cut(way, " ")
				limit := 300 * time.Millisecond // an open way takes a few milliseconds
				if want {
					limit = wait
				}
				if got := reaches(from, to, limit); got != want {
					t.Errorf("%s reaches %s: %v, want %v", from, to, got, want)
				}
			}
		})
	}
}

// A NAT stays when its hosts reboot, and has one kind for all of them. Without it, everything is as before.
func TestNATStaysUntilRemoved(t *testing.T) {
	l := bare(t, 3, 0)
	nat := func(want string, args ...string) {
		t.Helper()
		out, err := command(t, append([]string{"nat", "--name", labName(t)}, args...)...).CombinedOutput()
		if (err == nil) != (want == "") || !strings.Contains(string(out), want) {
			t.Errorf("weft lab nat %v: error %v, want success or a refusal with %q: %s", args, err, want, out)
		}
	}
	const same = "192.0.2.1 2001:db8::1, 192.0.2.2 2001:db8::2, 192.0.2.3 2001:db8::3"
	underlay := func() string {
		s, err := l.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var all []string
		for _, h := range s.Hosts {
			line := strings.Join(h.Underlay, " ")
			if h.NAT != nil {
				line = fmt.Sprintf("%s behind %s of %s", line, h.NAT.Kind, h.NAT.Outer)
			}
			addrs, err := l.Addrs(t.Context(), h.Name)
			if err != nil || !slices.Equal(addrs, h.Underlay) {
				t.Errorf("eth0 of %s has the addresses %v, want those of the status, %v: %v", h.Name, addrs, h.Underlay, err)
			}
			all = append(all, line)
		}
		return strings.Join(all, ", ")
	}
	reach := func(from string, to ...string) {
		t.Helper()
		run(t, l, from, append([]string{"weft", "probe", "icmp", "-c", "2", "-i", "10ms"}, to...)...)
	}
	nat("no NAT of its own", "h3", "--behind", "h2")
	nat("", "h2", "--kind", "restricted")
	nat("", "h3", "--behind", "h2")
	nat("", "h2", "--kind", "symmetric", "--udp-timeout", "1s")
	nat("behind the NAT of h2", "h3", "--kind", "restricted")
	nat("first run weft lab nat h3 --kind none", "h2", "--kind", "none")
	const inside = "192.0.2.1 2001:db8::1, 192.168.2.2 behind symmetric of 192.0.2.2, 192.168.2.3 behind symmetric of 192.0.2.2"
	if got := underlay(); got != inside {
		t.Errorf("the hosts have %s, want %s", got, inside)
	}
	for _, h := range []string{"h2", "h3"} {
		if err := l.Reboot(t.Context(), h); err != nil {
			t.Fatal(err)
		}
	}
	if got := underlay(); got != inside {
		t.Errorf("after a reboot, the hosts have %s, want %s", got, inside)
	}
	reach("h3", "192.0.2.1", "192.168.2.2")
	for _, up := range []bool{false, true} { // h1 and h3 are on two switches
		if err := l.Link(t.Context(), "h1", "h3", up); err != nil {
			t.Fatal(err)
		}
		if _, err := l.Exec(t.Context(), "h3", nil, "weft", "probe", "icmp", "-c", "1", "--timeout", "200ms", "192.0.2.1"); (err == nil) != up {
			t.Errorf("h3 reaches h1: %v, want what the link is: up %v", err, up)
		}
	}
	nat("", "h3", "--kind", "none")
	nat("", "h2", "--kind", "none")
	nat("", "h2", "--kind", "none")
	if got := underlay(); got != same {
		t.Errorf("without NAT, the hosts have %s, want %s", got, same)
	}
	reach("h1", "192.0.2.2", "2001:db8::3")
	reach("h3", "192.0.2.2", "2001:db8::1")
}

// An idle mapping ends. Then the port does not lead inside any more.
func TestNATForgetsIdleMappings(t *testing.T) {
	l := bare(t, 2, 0)
	if err := l.SetNAT(t.Context(), "h2", node.FullCone, time.Second); err != nil {
		t.Fatal(err)
	}
	h1, h2 := openSocket(t, l, "h1", 1000), openSocket(t, l, "h2", 2000)
	h2.send("192.0.2.1:1000", "hello")
	outer := h1.expect("hello")
	h1.send(outer, "answer")
	h2.expect("answer")
	// A packet of another flow needs the mapping, and does not keep it alive.
	ctx, cancel := context.WithTimeout(t.Context(), wait)
	defer cancel()
	for port := 1001; ; port++ {
		openSocket(t, l, "h1", port).send(outer, "still there?")
		if err := h2.SetReadDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if _, _, err := h2.ReadFromUDPAddrPort(make([]byte, 100)); err != nil {
			break
		}
		if ctx.Err() != nil {
			t.Fatalf("after %v, the mapping with a timeout of 1 s still lets packets in", wait)
		}
	}
	h2.send("192.0.2.1:1000", "again")
	h1.expect("again")
}
