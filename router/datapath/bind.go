package datapath

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"

	"weft/router/link"
)

// bind sends and receives the UDP packets of wireguard-go. It follows this host's routes and their MTUs.
//
// wireguard-go passes the kernel up to 64 packets in one call, which the kernel segments
// (UDP_SEGMENT). If one of them is larger than the path MTU, the kernel rejects all of them, with
// EMSGSIZE, or before Linux 6.14 with EINVAL. But the kernel fragments packets that are sent one by
// one. So bind sends a rejected batch again, with each packet above the path MTU in a call of its own,
// and continues to do so until link.Watch has another version: until links or routes change, or some
// time has passed.
//
// wireguard-go sends from the address and the link where a peer's packet arrived, until a route
// changes. But it reads route changes only with a bind of its own type. So bind behaves like the
// kernel's WireGuard: when the route leads through another link, it no longer uses the old link.
type bind struct {
	*conn.StdNetBind
	ipv6   atomic.Pointer[conn.StdNetBind] // sends IPv6, see twin
	log    *slog.Logger
	routes *netlink.Handle
	watch  *link.Watch
	start  time.Time
	asked  atomic.Int64  // when watch was last read, as the time since start
	latest atomic.Uint64 // the version of watch when it was last read

	mu    sync.RWMutex
	paths map[netip.AddrPort]path
}

// path is what bind has read about the route to an address.
type path struct {
	version uint64 // the version of links and routes, see link.Watch
	carries int    // the maximum payload of packets that may be sent in one batch; 0: no limit
	left    int32  // a link that the route no longer uses; 0: none
}

const (
	// watchEvery is the minimum interval between two reads of the watch, since each read is a
	// system call.
	watchEvery = 100 * time.Millisecond
	// maxPaths limits the paths: addresses come from the network, and may be forged.
	maxPaths = 1 << 16
)

func newBind(log *slog.Logger) (*bind, error) {
	watch, err := link.OpenWatch()
	if err != nil {
		return nil, fmt.Errorf("datapath: watching links and routes: %w", err)
	}
	routes, err := link.Handle()
	if err != nil {
		watch.Close()
		return nil, fmt.Errorf("datapath: opening netlink: %w", err)
	}
	b := &bind{
		StdNetBind: conn.NewStdNetBind().(*conn.StdNetBind), log: log, routes: routes, watch: watch,
		start: time.Now(), paths: map[netip.AddrPort]path{},
	}
	b.latest.Store(watch.Version())
	return b, nil
}

// release closes the sockets that newBind opened. Close closes the port only, and wireguard-go may
// open the port again.
func (b *bind) release() {
	b.routes.Close()
	b.watch.Close()
}

// Open opens the sockets.
func (b *bind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	receive, actual, err := b.StdNetBind.Open(port)
	if err != nil {
		return nil, 0, err
	}
	b.ipv6.Store(twin(b.StdNetBind))
	if err := letFragment(b.StdNetBind); err != nil {
		_ = b.Close()
		return nil, 0, err
	}
	return receive, actual, nil
}

// Send sends packets to a peer.
func (b *bind) Send(packets [][]byte, to conn.Endpoint) error {
	e, ok := to.(*conn.StdNetEndpoint)
	if !ok {
		return conn.ErrWrongEndpointType
	}
	p := b.path(e)
	err := b.sendBy(p, packets, e)
	if disabled, ok := errors.AsType[conn.ErrUDPGSODisabled](err); err == nil || ok && disabled.RetryErr == nil {
		return err
	}
	now := b.lookUp(e)
	if errors.Is(err, unix.EINVAL) {
		now.left = e.SrcIfidx() // the source address may have been deleted from its link: send by the same link, from any of its addresses
	}
	tooLarge := errors.Is(err, unix.EMSGSIZE) || errors.Is(err, unix.EINVAL)
	if tooLarge && now.left == p.left && apart(packets, now.carries) == nil {
		now.carries = 1 // all packets fit the route's MTU, which must be wrong
	}
	b.keep(e, now)
	if !tooLarge && now.left == p.left || now == p { // no other attempt is possible
		return err
	}
	b.log.Warn("the kernel rejected a batch of packets: sending the batch again, with each packet above the path MTU by itself",
		"to", e.DstToString(), "largest", now.carries, "err", err)
	return b.sendBy(now, packets, e)
}

func (b *bind) sendBy(p path, packets [][]byte, e *conn.StdNetEndpoint) error {
	if p.left != 0 && e.SrcIfidx() == p.left {
		e = &conn.StdNetEndpoint{AddrPort: e.AddrPort}
	}
	if alone := apart(packets, p.carries); alone != nil {
		packets = alone
	}
	if by := b.ipv6.Load(); by != nil && e.DstIP().Is6() {
		return by.Send(packets, e)
	}
	return b.StdNetBind.Send(packets, e)
}

// apart returns the packets in a form in which each packet larger than size is sent by itself, or
// nil if no packet is larger. wireguard-go joins packets if the buffer of the first has room for the
// next, so apart removes that room.
func apart(packets [][]byte, size int) [][]byte {
	large := func(p []byte) bool { return len(p) > size }
	if size == 0 || !slices.ContainsFunc(packets, large) {
		return nil
	}
	out := slices.Clone(packets)
	for i, p := range out {
		if large(p) {
			out[i] = slices.Clip(p)
		}
	}
	return out
}

// path returns what bind has read about the route to a peer. It looks the route up again after each
// change of links or routes.
func (b *bind) path(e *conn.StdNetEndpoint) path {
	since := int64(time.Since(b.start))
	if last := b.asked.Load(); since-last >= int64(watchEvery) && b.asked.CompareAndSwap(last, since) {
		b.latest.Store(b.watch.Version())
	}
	version := b.latest.Load()
	b.mu.RLock()
	p, ok := b.paths[e.AddrPort]
	b.mu.RUnlock()
	switch {
	case !ok:
		p = path{version: version} // use the default path until the kernel rejects a packet
		b.keep(e, p)
	case p.version != version:
		p = b.lookUp(e)
	}
	return p
}

// lookUp asks the kernel for the route to a peer.
func (b *bind) lookUp(e *conn.StdNetEndpoint) path {
	p := path{version: b.latest.Load()}
	to := e.DstIP().Unmap()
	route, err := link.WayTo(b.routes, to, e.SrcIP())
	if by := e.SrcIfidx(); by != 0 && (err != nil || route.Link != int(by)) {
		p.left = by
		route, err = link.WayTo(b.routes, to, netip.Addr{})
	}
	if err == nil {
		p.carries = max(1, route.MTU-headers(to))
	}
	b.keep(e, p)
	return p
}

func (b *bind) keep(e *conn.StdNetEndpoint, p path) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.paths) >= maxPaths {
		clear(b.paths)
	}
	b.paths[e.AddrPort] = p
}

// headers returns the length of the IP and UDP headers.
func headers(to netip.Addr) int {
	if to.Is4() {
		return 20 + 8
	}
	return 40 + 8
}
