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

// bind is the library's way to the network, which minds what this host's routes say.
//
// The library hands the kernel up to 64 packets as one, to be cut apart there (UDP_SEGMENT).
// Where one of them is larger than the path's MTU, the kernel refuses them all: with EMSGSIZE,
// before Linux 6.14 with EINVAL. Of packets that come one by one it makes fragments. So what was
// refused is sent again one by one, and from then on each packet that is larger than the path's MTU
// goes alone, until something changes about this host's links and routes, or a while is over.
//
// The library sends from the address and the link that a peer's packet came in by, until a route
// changes; but it hears of routes only with a bind of its own type. So bind does what the kernel's
// WireGuard does: it leaves that link when it is not the route's any more.
type bind struct {
	*conn.StdNetBind
	log    *slog.Logger
	routes *netlink.Handle
	watch  *link.Watch
	start  time.Time
	asked  atomic.Int64  // when the watch was, since start
	latest atomic.Uint64 // its version then

	mu    sync.RWMutex
	paths map[netip.AddrPort]path
}

// path is what is known of the way to an address.
type path struct {
	version uint64 // of the links and routes
	carries int    // the largest packet, less IP and UDP, that may go with others; 0: any
	left    int32  // the link that is not the way any more; 0: none
}

const (
	// watchEvery bounds how often the watch is asked, which is a system call.
	watchEvery = 100 * time.Millisecond
	// maxPaths bounds what is known: addresses come from the network, also forged ones.
	maxPaths = 1 << 16
)

func newBind(log *slog.Logger) (*bind, error) {
	watch, err := link.OpenWatch()
	if err != nil {
		return nil, fmt.Errorf("datapath: %w", err)
	}
	routes, err := link.Handle()
	if err != nil {
		watch.Close()
		return nil, fmt.Errorf("datapath: %w", err)
	}
	b := &bind{
		StdNetBind: conn.NewStdNetBind().(*conn.StdNetBind), log: log, routes: routes, watch: watch,
		start: time.Now(), paths: map[netip.AddrPort]path{},
	}
	b.latest.Store(watch.Version())
	return b, nil
}

// release ends what newBind opened; Close only closes the port, for a while.
func (b *bind) release() {
	b.routes.Close()
	b.watch.Close()
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
	now := b.look(e)
	if errors.Is(err, unix.EINVAL) {
		now.left = e.SrcIfidx() // the source may be gone
	}
	tooLarge := errors.Is(err, unix.EMSGSIZE) || errors.Is(err, unix.EINVAL)
	if tooLarge && now.left == p.left && apart(packets, now.carries) == nil {
		now.carries = 1 // the route says that all fit, and is wrong
	}
	b.keep(e, now)
	if !tooLarge && now.left == p.left || now == p { // nothing is left to be tried
		return err
	}
	b.log.Warn("the kernel refuses packets: they are sent again, each that is too large for the path alone",
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
	return b.StdNetBind.Send(packets, e)
}

// apart is packets such that none of more than a size is sent together with others; nil if
// there is no such packet. The library joins packets where the first has room for the next.
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

// path is what is known of the way to a peer, looked up again after each change.
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
		p = path{version: version} // until the kernel refuses something
		b.keep(e, p)
	case p.version != version:
		p = b.look(e)
	}
	return p
}

// look asks the kernel for the way to a peer.
func (b *bind) look(e *conn.StdNetEndpoint) path {
	p := path{version: b.latest.Load()}
	to := e.DstIP().Unmap()
	way, err := link.WayTo(b.routes, to, e.SrcIP())
	if by := e.SrcIfidx(); by != 0 && (err != nil || way.Link != int(by)) {
		p.left = by
		way, err = link.WayTo(b.routes, to, netip.Addr{})
	}
	if err == nil {
		p.carries = max(1, way.MTU-headers(to))
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

// headers are those of IP and UDP.
func headers(to netip.Addr) int {
	if to.Is4() {
		return 20 + 8
	}
	return 40 + 8
}
