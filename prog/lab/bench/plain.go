package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// plainMTU is the MTU that Weft uses on the lab's underlay.
const plainMTU = 1420

func plainAddr(host int) string    { return fmt.Sprintf("10.99.%d.2", host) }
func plainGateway(host int) string { return fmt.Sprintf("10.99.%d.1", host) }

// plainKey returns a private key. A benchmark needs no secrecy.
func plainKey(host int) wgtypes.Key { return wgtypes.Key(sha256.Sum256([]byte{byte(host)})) }

// plainWireGuard sets up host N of two for wireguard-go's PROGRAM by hand: with Weft's routing, but
// without firewall rules or other costs.
//
//	10.99.1.2 ── 10.99.1.1  wg0 ═══ underlay ═══ wg0  10.99.2.1 ── 10.99.2.2
//	 h1/c1           h1                                   h2          h2/c1
func plainWireGuard(ctx context.Context, args []string) error {
	program, container := args[0], args[2]
	n, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	start := exec.CommandContext(ctx, program, "wg0") // wireguard-go continues in the background
	start.Env = append(os.Environ(), "LOG_LEVEL=error")
	if err := start.Run(); err != nil {
		return fmt.Errorf("%s: %w", program, err)
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644); err != nil {
		return err
	}
	if err := plainTunnel(n, 3-n); err != nil {
		return err
	}
	return plainContainer(n, container)
}

func plainTunnel(own, other int) error {
	client, err := wgctrl.New()
	if err != nil {
		return err
	}
	defer client.Close()
	key, port := plainKey(own), 51820
	_, remote, err := net.ParseCIDR(plainAddr(other) + "/32")
	if err != nil {
		return err
	}
	err = client.ConfigureDevice("wg0", wgtypes.Config{PrivateKey: &key, ListenPort: &port, Peers: []wgtypes.PeerConfig{{
		PublicKey:  plainKey(other).PublicKey(),
		Endpoint:   &net.UDPAddr{IP: net.IPv4(192, 0, 2, byte(other)), Port: port},
		AllowedIPs: []net.IPNet{*remote},
	}}})
	if err != nil {
		return err
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	wg, err := h.LinkByName("wg0")
	if err != nil {
		return err
	}
	if err := h.LinkSetMTU(wg, plainMTU); err != nil {
		return err
	}
	if err := h.LinkSetUp(wg); err != nil {
		return err
	}
	return h.RouteAdd(&netlink.Route{Dst: remote, LinkIndex: wg.Attrs().Index, Scope: netlink.SCOPE_LINK})
}

// plainContainer creates a container's veth pair.
func plainContainer(n int, container string) error {
	ns, err := netns.GetFromPath(container)
	if err != nil {
		return err
	}
	defer ns.Close()
	host, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer host.Close()
	inside, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer inside.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = "c1", plainMTU
	if err := host.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerMTU: plainMTU, PeerNamespace: netlink.NsFd(ns)}); err != nil {
		return err
	}
	if _, err := address(host, "c1", plainGateway(n)); err != nil {
		return err
	}
	eth0, err := address(inside, "eth0", plainAddr(n))
	if err != nil {
		return err
	}
	return inside.RouteAdd(&netlink.Route{Gw: net.ParseIP(plainGateway(n)), LinkIndex: eth0})
}

// address sets a link's address in a /24, and sets it up.
func address(h *netlink.Handle, name, addr string) (index int, err error) {
	link, err := h.LinkByName(name)
	if err != nil {
		return 0, err
	}
	a, err := netlink.ParseAddr(addr + "/24")
	if err != nil {
		return 0, err
	}
	if err := h.AddrAdd(link, a); err != nil {
		return 0, err
	}
	return link.Attrs().Index, h.LinkSetUp(link)
}
