package link

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Watch counts the changes of any program to the links, addresses, routes and permanent neighbour
// entries of this host. A caller that has read these objects can see that they have not changed,
// without reading them again. A Watch is safe for concurrent use.
type Watch struct {
	mu      sync.Mutex
	fd      int
	version uint64
	since   time.Time // when version last changed
	buf     [1 << 16]byte
}

// maxUnnoticed is the longest time for which a change that the kernel does not announce goes
// unnoticed.
const maxUnnoticed = 30 * time.Second

// OpenWatch starts a Watch in the network namespace of the calling thread.
func OpenWatch() (*Watch, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("opening a netlink socket to watch links: %w", err)
	}
	groups := 0
	for _, g := range []int{
		unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE,
	} {
		groups |= 1 << (g - 1)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: uint32(groups)}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("subscribing to changes of links and routes: %w", err)
	}
	return &Watch{fd: fd, version: 1, since: time.Now()}, nil
}

// Close closes the netlink socket.
func (w *Watch) Close() { _ = unix.Close(w.fd) }

// Version returns a number that grows when something may have changed. A nil Watch returns 0. Call
// it before you read the objects.
func (w *Watch) Version() uint64 {
	if w == nil {
		return 0
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	changed := time.Since(w.since) >= maxUnnoticed
	for {
		n, _, err := unix.Recvfrom(w.fd, w.buf[:], 0)
		if errors.Is(err, unix.EAGAIN) {
			break
		}
		// An error means that the socket's buffer overflowed, and announcements are lost.
		changed = changed || err != nil || announces(w.buf[:n])
		if err != nil && !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if changed {
		w.version++
		w.since = time.Now()
	}
	return w.version
}

// announces reports whether netlink messages announce anything other than a neighbour that the
// kernel resolved or probes. The deletion of any neighbour counts, because the message does not say
// whether it was permanent.
func announces(messages []byte) bool {
	const header, state = unix.SizeofNlMsghdr, unix.SizeofNlMsghdr + 8 // struct nlmsghdr comes first, then ndm_state of struct ndmsg
	for len(messages) >= header {
		size := int(binary.NativeEndian.Uint32(messages))
		if size < header || size > len(messages) {
			return true
		}
		found := binary.NativeEndian.Uint16(messages[4:]) == unix.RTM_NEWNEIGH &&
			size >= state+2 && binary.NativeEndian.Uint16(messages[state:])&unix.NUD_PERMANENT == 0
		if !found {
			return true
		}
		messages = messages[min(len(messages), (size+3)&^3):]
	}
	return false
}
