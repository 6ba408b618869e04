// Package wg configures this host's WireGuard device: the device of the kernel if the kernel has
// WireGuard, otherwise the device of `weft datapath`. The package uses wgctrl for both, so that
// there is one code path.
//
// Apply compares the device with the plan and changes only the differences: it never touches
// tunnels that have not changed. A Device must be used by one goroutine at a time; Observe may be
// called at any time. The package never logs keys.
package wg

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"weft/mesh/topology"
	"weft/router/link"
)

// These are the kinds of device.
const (
	Kernel    = "kernel"
	Userspace = "userspace"
)

// Config is the desired state of the device.
type Config struct {
	PrivateKey [32]byte
	Port       uint16
	Tunnels    []topology.Tunnel
}

// String describes the configuration without its keys, so that they never reach logs.
func (c Config) String() string {
	return fmt.Sprintf("WireGuard on port %d with %d tunnels", c.Port, len(c.Tunnels))
}

// GoString is the same as String, so that %#v shows no keys either.
func (c Config) GoString() string { return c.String() }

// Device is this host's WireGuard device.
type Device struct {
	start    func(context.Context) error // starts the userspace process
	client   *wgctrl.Client
	planned  map[wgtypes.Key]plan
	received map[wgtypes.Key]reception
}

// reception is how many bytes were received from a peer, and when that number last grew.
type reception struct {
	bytes int64
	at    time.Time
}

// New returns a Device. start starts the userspace process, and returns when the process answers.
func New(start func(context.Context) error) *Device {
	return &Device{start: start, planned: map[wgtypes.Key]plan{}, received: map[wgtypes.Key]reception{}}
}

// Ensure makes the device if it does not exist.
func (d *Device) Ensure(ctx context.Context) error {
	if err := d.connect(); err != nil {
		return err
	}
	_, err := d.client.Device(link.Device)
	if err == nil {
		return nil
	}
	if !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("wireguard: reading device %s: %w", link.Device, err)
	}
	// The last plan does not apply to a new device.
	d.planned, d.received = map[wgtypes.Key]plan{}, map[wgtypes.Key]reception{}
	err = addKernelDevice()
	if err == nil {
		// The client was made before the module was loaded, so it has not found the kernel's
		// WireGuard.
		d.client.Close()
		d.client = nil
		return nil
	}
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EEXIST) { // the kernel has no WireGuard; or Weft's TUN device is left without its process
		return d.start(ctx)
	}
	return err
}

func (d *Device) connect() error {
	if d.client != nil {
		return nil
	}
	c, err := wgctrl.New()
	if err != nil {
		return fmt.Errorf("wireguard: opening a client: %w", err)
	}
	d.client = c
	return nil
}

func addKernelDevice() error {
	h, err := link.Handle()
	if err != nil {
		return err
	}
	defer h.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = link.Device
	if err := h.LinkAdd(&netlink.Wireguard{LinkAttrs: attrs}); err != nil {
		return fmt.Errorf("wireguard: making device %s: %w", link.Device, link.Explain(err))
	}
	return nil
}

// Apply makes the device match a configuration. Ensure must have been called.
func (d *Device) Apply(c Config) error {
	if err := d.connect(); err != nil {
		return err
	}
	dev, err := d.client.Device(link.Device)
	if err != nil {
		return fmt.Errorf("wireguard: reading device %s: %w", link.Device, err)
	}
	have, received, now := map[wgtypes.Key]devicePeer{}, map[wgtypes.Key]reception{}, time.Now()
	for _, p := range dev.Peers {
		r, known := d.received[p.PublicKey]
		if !known || p.ReceiveBytes != r.bytes {
			r = reception{p.ReceiveBytes, now}
		}
		received[p.PublicKey] = r
		l := devicePeer{psk: p.PresharedKey, keepalive: p.PersistentKeepaliveInterval, handshake: p.LastHandshakeTime, received: r.at}
		if p.Endpoint != nil {
			l.endpoint = unmap(p.Endpoint.AddrPort())
		}
		for _, n := range p.AllowedIPs {
			addr, _ := netip.AddrFromSlice(n.IP)
			ones, _ := n.Mask.Size()
			l.allowed = append(l.allowed, netip.PrefixFrom(addr.Unmap(), ones))
		}
		have[p.PublicKey] = l
	}
	peers, next := diff(have, c.Tunnels, d.planned, now)
	cfg := wgtypes.Config{Peers: peers}
	changed := len(peers) > 0
	if key := wgtypes.Key(c.PrivateKey); dev.PrivateKey != clamp(key) {
		cfg.PrivateKey, changed = &key, true
	}
	if port := int(c.Port); dev.ListenPort != port {
		if err := free(port); err != nil {
			return err
		}
		cfg.ListenPort, changed = &port, true
	}
	if changed {
		if err := d.client.ConfigureDevice(link.Device, cfg); err != nil {
			return fmt.Errorf("wireguard: configuring device %s: %w", link.Device, err)
		}
	}
	d.planned, d.received = next, received
	return nil
}

// Disarm removes the private key and all peers from the device, if it exists.
func (d *Device) Disarm() error {
	if err := d.connect(); err != nil {
		return err
	}
	err := d.client.ConfigureDevice(link.Device, wgtypes.Config{PrivateKey: &wgtypes.Key{}, ReplacePeers: true})
	if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("wireguard: removing the key from device %s: %w: another host may use the same key; `weft reset --force` removes the device", link.Device, err)
	}
	return nil
}

// free returns an error if the port is in use. Apply checks this first, since the userspace device
// accepts any port while it is coming up, and fails later without an error.
func free(port int) error {
	for _, network := range []string{"udp4", "udp6"} {
		c, err := net.ListenUDP(network, &net.UDPAddr{Port: port})
		if errors.Is(err, unix.EADDRINUSE) {
			return fmt.Errorf("wireguard: UDP port %d is in use by another program, so there are no tunnels: stop that program, or choose another port with --wireguard-port", port)
		}
		if err == nil {
			c.Close()
		}
	}
	return nil
}

// clamp returns a private key in the form in which WireGuard stores it (RFC 7748, section 5).
func clamp(k wgtypes.Key) wgtypes.Key {
	k[0] &= 248
	k[31] = k[31]&127 | 64
	return k
}

func unmap(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

// Observed is the actual state of the device.
type Observed struct {
	Kind  string
	Peers map[[32]byte]Peer // key: the peer's public key
}

// Peer is the actual state of one tunnel.
type Peer struct {
	Endpoint       netip.AddrPort
	Handshake      time.Time // zero: there was no handshake yet
	Received, Sent int64     // bytes
}

// Observe reads the device through its own client, so that it may be called at any time.
func Observe() (Observed, error) {
	client, err := wgctrl.New()
	if err != nil {
		return Observed{}, fmt.Errorf("wireguard: opening a client: %w", err)
	}
	defer client.Close()
	dev, err := client.Device(link.Device)
	if err != nil {
		return Observed{}, fmt.Errorf("wireguard: reading device %s: %w", link.Device, err)
	}
	o := Observed{Kind: Userspace, Peers: map[[32]byte]Peer{}}
	if dev.Type == wgtypes.LinuxKernel {
		o.Kind = Kernel
	}
	for _, p := range dev.Peers {
		seen := Peer{Handshake: p.LastHandshakeTime, Received: p.ReceiveBytes, Sent: p.TransmitBytes}
		if p.Endpoint != nil {
			seen.Endpoint = unmap(p.Endpoint.AddrPort())
		}
		if seen.Handshake.Unix() <= 0 {
			seen.Handshake = time.Time{}
		}
		o.Peers[p.PublicKey] = seen
	}
	return o, nil
}
