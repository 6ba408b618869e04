package endpoint

import (
	"bytes"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"weft/router/packet"
	"weft/router/routertest"
)

// An endpoint without a container takes part in the network by its frames, and the kernel does not answer in its place.
func TestTheFramesOfALocalEndpointAreReadAndWritten(t *testing.T) {
	routertest.New(t).Do(func() {
		addNode(t)
		e := Endpoint{HostLink: HostLink("local", "eth0"), MTU: 1400, Addr4: netip.MustParseAddr("10.32.0.9"), Addr6: netip.MustParseAddr("fd00::9")}
		pair := PairOf(e.HostLink)
		e.ContainerMAC = pair.ContainerMAC
		if err := MakeLocal(e.HostLink); err != nil {
			t.Fatal(err)
		}
		frames, err := OpenLocal(e.HostLink, e.MTU)
		if err != nil {
			t.Fatal(err)
		}
		defer frames.Close()
		if err := Plug(e, node4, node6); err != nil {
			t.Fatal(err)
		}
		for host, addr := range map[netip.Addr]netip.Addr{node4: e.Addr4, node6: e.Addr6} {
			conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(host, 0)))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			deadline := time.Now().Add(5 * time.Second)
			if err := frames.SetReadDeadline(deadline); err != nil {
				t.Fatal(err)
			}
			if err := conn.SetReadDeadline(deadline); err != nil {
				t.Fatal(err)
			}
			if _, err := conn.WriteToUDPAddrPort([]byte("to the endpoint"), netip.AddrPortFrom(addr, 7)); err != nil {
				t.Fatal(err)
			}
			frame := receive(t, frames, "to the endpoint")
			if !bytes.Equal(frame[:6], pair.ContainerMAC) || !bytes.Equal(frame[6:12], pair.HostMAC) {
				t.Errorf("the frame has the addresses %x, want those of the pair %+v", frame[:12], pair)
			}
			body := slices.Concat([]byte{0, 7, byte(port(conn) >> 8), byte(port(conn)), 0, 9, 0, 0}, []byte("x"))
			sum := packet.Checksum(packet.PseudoHeader(addr, host, 17, len(body)), body)
			body[6], body[7] = byte(sum>>8), byte(sum)
			if _, err := frames.Write(packet.Frame(pair.HostMAC, pair.ContainerMAC, packet.IP(addr, host, 17, body))); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, 10)
			n, from, err := conn.ReadFromUDPAddrPort(got)
			if err != nil || string(got[:n]) != "x" || from.Addr().Unmap() != addr {
				t.Errorf("the host received %q from %v, error %v; want x from %v", got[:n], from, err, addr)
			}
		}
		if err := Delete(e.HostLink); err != nil {
			t.Fatal(err)
		}
		if _, err := netlink.LinkByName(localEnd(e.HostLink)); err == nil {
			t.Error("the container's end still exists")
		}
	})
}

func port(c *net.UDPConn) int { return c.LocalAddr().(*net.UDPAddr).Port }

// receive returns the next frame with a text.
func receive(t *testing.T, frames interface{ Read([]byte) (int, error) }, text string) []byte {
	t.Helper()
	buf := make([]byte, 2000)
	for {
		n, err := frames.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(buf[:n], []byte(text)) {
			return buf[:n]
		}
	}
}
