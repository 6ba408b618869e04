// Package wg is the WireGuard device: the kernel's where it has one, else that of
// `weft datapath`, both through wgctrl, so that there is one code path.
//
// Apply compares the device with the plan and changes what differs, nothing else:
// tunnels that stay are never touched. A Device belongs to one goroutine.
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

// The kinds of device.
const (
	Kernel    = "kernel"
	Userspace = "userspace"
)

// Config is the device as it should be.
type Config struct {
	PrivateKey [32]byte
	Port       uint16
	Tunnels    []topology.Tunnel
}

// String keeps the keys out of logs; Format verbs use it.
func (c Config) String() string {
	return fmt.Sprintf("WireGuard on port %d with %d tunnels", c.Port, len(c.Tunnels))
}

// GoString is String: %#v shows no keys either.
func (c Config) GoString() string { return c.String() }

// Device is this host's WireGuard device.
type Device struct {
	start   func(context.Context) error // starts the userspace process
	client  *wgctrl.Client
	planned map[wgtypes.Key]plan
	heard   map[wgtypes.Key]reception
}

// reception is how much has come from a peer, and when the last of it was noticed.
type reception struct {
	bytes int64
	at    time.Time
}

// New makes a device; start runs the userspace process and returns once it answers.
func New(start func(context.Context) error) *Device {
	return &Device{start: start, planned: map[wgtypes.Key]plan{}, heard: map[wgtypes.Key]reception{}}
}

// Ensure makes the device unless it is there.
func (d *Device) Ensure(ctx context.Context) error {
	if err := d.connect(); err != nil {
		return err
	}
	_, err := d.client.Device(link.Device)
	if err == nil {
		return nil
	}
	if !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("wireguard: read device %s: %w", link.Device, err)
	}
	// A new device knows nothing of what was planned for the last one.
	d.planned, d.heard = map[wgtypes.Key]plan{}, map[wgtypes.Key]reception{}
	err = addKernelDevice()
	if err == nil {
		// The client looked for the kernel's WireGuard when it was made: before the module was loaded.
		d.client.Close()
		d.client = nil
		return nil
	}
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EEXIST) { // no WireGuard in this kernel; or our TUN device without its process
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
		return fmt.Errorf("wireguard: %w", err)
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
		return fmt.Errorf("wireguard: make device %s: %w", link.Device, link.Explain(err))
	}
	return nil
}

// Apply makes the device match. Ensure comes first.
func (d *Device) Apply(c Config) error {
	if err := d.connect(); err != nil {
		return err
	}
	dev, err := d.client.Device(link.Device)
	if err != nil {
		return fmt.Errorf("wireguard: read device %s: %w", link.Device, err)
	}
	have, heard, now := map[wgtypes.Key]live{}, map[wgtypes.Key]reception{}, time.Now()
	for _, p := range dev.Peers {
		r, known := d.heard[p.PublicKey]
		if !known || p.ReceiveBytes != r.bytes {
			r = reception{p.ReceiveBytes, now}
		}
		heard[p.PublicKey] = r
		l := live{psk: p.PresharedKey, keepalive: p.PersistentKeepaliveInterval, handshake: p.LastHandshakeTime, heard: r.at}
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
			return fmt.Errorf("wireguard: configure device %s: %w", link.Device, err)
		}
	}
	d.planned, d.heard = next, heard
	return nil
}

// Disarm takes the private key and all peers from the device, if there is one.
func (d *Device) Disarm() error {
	if err := d.connect(); err != nil {
		return err
	}
	err := d.client.ConfigureDevice(link.Device, wgtypes.Config{PrivateKey: &wgtypes.Key{}, ReplacePeers: true})
	if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("wireguard: take the key from device %s: %w: `weft reset --force` removes it", link.Device, err)
	}
	return nil
}

// free reports whether the port can be had. Asked beforehand, since the userspace
// device takes any port while it is coming up, and fails later without a word.
func free(port int) error {
	for _, network := range []string{"udp4", "udp6"} {
		c, err := net.ListenUDP(network, &net.UDPAddr{Port: port})
		if errors.Is(err, unix.EADDRINUSE) {
			return fmt.Errorf("wireguard: UDP port %d is taken by another program: stop that, or choose another with --wireguard-port", port)
		}
		if err == nil {
			c.Close()
		}
	}
	return nil
}

// clamp is a private key as WireGuard stores it (RFC 7748, section 5).
func clamp(k wgtypes.Key) wgtypes.Key {
	k[0] &= 248
	k[31] = k[31]&127 | 64
	return k
}

func unmap(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

// Observed is the device as it is.
type Observed struct {
	Kind  string
	Peers map[[32]byte]Peer // by public key
}

// Peer is one tunnel as it is.
type Peer struct {
	Endpoint       netip.AddrPort
	Handshake      time.Time // zero: none yet
	Received, Sent int64     // bytes
}

// Observe reads the device, with a client of its own: it may be called at any time.
func Observe() (Observed, error) {
	client, err := wgctrl.New()
	if err != nil {
		return Observed{}, fmt.Errorf("wireguard: %w", err)
	}
	defer client.Close()
	dev, err := client.Device(link.Device)
	if err != nil {
		return Observed{}, fmt.Errorf("wireguard: read device %s: %w", link.Device, err)
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
