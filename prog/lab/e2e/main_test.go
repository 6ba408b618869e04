package e2e

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/mesh/meshtest/eventually"
	"weft/prog/api"
	"weft/prog/lab"
	"weft/prog/lab/labtest"
)

const marker = "a-payload-that-nobody-may-see-"

// These are short names for the functions of labtest.
var (
	run, fails = labtest.Run, labtest.Fails
	report     = labtest.Report
	addrs      = labtest.Addrs
	listen     = labtest.Listen
	toolArgs   = labtest.Tool
)

func TestMain(m *testing.M) {
	labtest.Main(m, map[string]func([]string) error{"spoof": spoof, "rawudp": rawUDP, "sysctl": setSysctl, "garbage": garbage, "control": control, "route": addRoute, "allocate": allocate, "release": release, "get": get, "streams": streams, "disarmed": disarmed, "resolve": resolve, "await": await, "upstream": upstream, "pod": pod, "tunnels": tunnels, "knock": knock, "demand": demand, "flow": flowing, "from-all-ports": fromAllPorts, "announce": announceForged})
}

// tool runs one of this program's tools on a host or in a container.
func tool(t *testing.T, l *lab.Lab, target, name string, args ...string) error {
	t.Helper()
	_, err := l.Exec(t.Context(), target, nil, toolArgs(t, name, args...)...)
	return err
}

// spoof sends UDP packets with any source address: SRC DST COUNT.
func spoof(args []string) error {
	src, dst := netip.MustParseAddr(args[0]), netip.MustParseAddr(args[1])
	count, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	payload := bytes.Repeat([]byte(marker), 4)
	udp := make([]byte, 8, 8+len(payload))
	binary.BigEndian.PutUint16(udp, 7007)
	binary.BigEndian.PutUint16(udp[2:], 7007)
	binary.BigEndian.PutUint16(udp[4:], uint16(8+len(payload)))
	udp = append(udp, payload...)
	var packet []byte
	domain, to := unix.AF_INET, unix.Sockaddr(&unix.SockaddrInet4{Addr: [4]byte(dst.AsSlice()[:4])})
	if src.Is4() {
		packet = append([]byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0}, append(src.AsSlice(), dst.AsSlice()...)...)
		binary.BigEndian.PutUint16(packet[2:], uint16(20+len(udp)))
	} else {
		domain, to = unix.AF_INET6, &unix.SockaddrInet6{Addr: dst.As16()}
		packet = append([]byte{0x60, 0, 0, 0, 0, 0, unix.IPPROTO_UDP, 64}, append(src.AsSlice(), dst.AsSlice()...)...)
		binary.BigEndian.PutUint16(packet[4:], uint16(len(udp)))
		binary.BigEndian.PutUint16(udp[6:], 0xffff) // IPv6 requires a checksum; captures do not check it
	}
	fd, err := unix.Socket(domain, unix.SOCK_RAW, unix.IPPROTO_RAW)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for range count {
		if err := unix.Sendto(fd, append(packet, udp...), 0, to); err != nil && !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EHOSTUNREACH) {
			return err
		}
		time.Sleep(5 * time.Millisecond)
	}
	return nil
}

// rawUDP sends ordinary datagrams: DST:PORT COUNT. It is no error if the host refuses the datagrams.
func rawUDP(args []string) error {
	c, err := net.Dial("udp", args[0])
	if err != nil {
		return nil // an error such as "port unreachable" is also an answer
	}
	defer c.Close()
	count, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	for range count {
		_, _ = c.Write(bytes.Repeat([]byte(marker), 4))
		time.Sleep(5 * time.Millisecond)
	}
	return nil
}

// garbage sends random bytes to a port, over TCP and UDP: DST:PORT.
func garbage(args []string) error {
	junk := bytes.Repeat([]byte{0xff, 0, 1, 0x16, 0xa1, 0x7f}, 200)
	for i := range 50 {
		if c, err := net.Dial("udp", args[0]); err == nil {
			_, _ = c.Write(junk[i : i+20*i+1])
			c.Close()
		}
		if c, err := net.DialTimeout("tcp", args[0], time.Second); err == nil {
			_, _ = c.Write(junk[i:])
			c.Close()
		}
	}
	return nil
}

// control posts BODY to the control socket and expects a clear refusal.
func control(args []string) error {
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", api.DefaultSocket)
	}}}
	resp, err := client.Post("http://weft/v1/attach", "application/json", strings.NewReader(args[0]))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var answer api.Error
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil || resp.StatusCode != http.StatusBadRequest || answer.Code != api.CodeBadRequest {
		return fmt.Errorf("the invalid request got the status %s, answer %+v, error %w; want a refusal as a bad request", resp.Status, answer, err)
	}
	return nil
}

// get prints the content of a URL.
func get(args []string) error {
	resp, err := http.Get(args[0])
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(os.Stdout, resp.Body)
	return err
}

// setSysctl writes VALUE to PATH.
func setSysctl(args []string) error { return os.WriteFile(args[0], []byte(args[1]), 0o644) }

// established waits until every host has a tunnel to every other.
func established(t *testing.T, l *lab.Lab) {
	t.Helper()
	for _, h := range l.Hosts() {
		eventually.True(t, 20*time.Second, h+" has all its tunnels", func() bool {
			n := 0
			for _, c := range report(t, l, h).Router.Connections {
				if c.State == api.ConnDirect || c.State == "established" { // the second is of versions before probes
					n++
				}
			}
			return n == len(l.Hosts())-1
		})
	}
}

// signalAgent sends a signal to the agent of the host with this number. After STOP it waits until the agent has stopped.
func signalAgent(t *testing.T, l *lab.Lab, host int, signal string) {
	t.Helper()
	s, err := l.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	name, pid := s.Hosts[host].Name, s.Hosts[host].Agent[0]
	run(t, l, name, "sh", "-c", fmt.Sprintf("kill -%s %d", signal, pid))
	if signal != "STOP" {
		return
	}
	eventually.True(t, 5*time.Second, "all threads of the agent have stopped", func() bool {
		states := run(t, l, name, "sh", "-c", fmt.Sprintf("grep -h ^State /proc/%d/task/*/status", pid))
		return strings.Count(states, "\n") == strings.Count(states, "T (stopped)")
	})
}

// addRoute adds a route to PREFIX through GATEWAY.
func addRoute(args []string) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	_, dst, err := net.ParseCIDR(args[0])
	if err != nil {
		return err
	}
	route := &netlink.Route{Dst: dst}
	if len(args) > 1 {
		route.Gw = net.ParseIP(args[1])
	} else { // the route has no gateway: its addresses are on the link
		lo, err := h.LinkByName("eth0")
		if err != nil {
			return err
		}
		route.LinkIndex = lo.Attrs().Index
	}
	return h.RouteAdd(route)
}
