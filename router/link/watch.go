package link

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Watch hears of every change to the links, addresses, routes and permanent neighbours of
// this host, whoever makes it: who has read them once need not read them all again to learn
// that they are as they were.
type Watch struct {
	mu      sync.Mutex
	fd      int
	version uint64
	since   time.Time // when version became what it is
	buf     [1 << 16]byte
}

// unheard is how long something that the kernel does not announce goes unnoticed.
const unheard = 30 * time.Second

// OpenWatch begins to listen in the calling thread's network namespace.
func OpenWatch() (*Watch, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("watch links: %w", err)
	}
	groups := 0
	for _, g := range []int{
		unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE,
	} {
		groups |= 1 << (g - 1)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: uint32(groups)}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("watch links: %w", err)
	}
	return &Watch{fd: fd, version: 1, since: time.Now()}, nil
}

// Close ends it.
func (w *Watch) Close() { _ = unix.Close(w.fd) }

// Version is greater than before when something may have changed since; 0 says that nobody
// watches. Ask for it before reading what it is the version of.
func (w *Watch) Version() uint64 {
	if w == nil {
		return 0
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	changed := time.Since(w.since) >= unheard
	for {
		n, _, err := unix.Recvfrom(w.fd, w.buf[:], 0)
		if errors.Is(err, unix.EAGAIN) {
			break
		}
		// An error is a buffer that ran over: some changes are unknown.
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

// announces reports whether messages of the kernel tell of anything but neighbours that it
// found, or doubts, by itself. One that goes may have been permanent: that is not told.
func announces(messages []byte) bool {
	const header, state = unix.SizeofNlMsghdr, unix.SizeofNlMsghdr + 8 // struct nlmsghdr, then ndm_state of struct ndmsg
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
