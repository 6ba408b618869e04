// Package conntrack reads the kernel's table of connections (conntrack) over netlink: events of
// connections that begin and end, the counters of single connections, and the whole table.
//
// It owns its sockets only. It reads the network namespace of the thread that opens them, and never
// changes the kernel's table. Connections that the caller does not want are skipped before anything is
// allocated for them. It needs CAP_NET_ADMIN.
package conntrack

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"weft/prog/flows"
)

const (
	// buffer is the size of the kernel's queue of events: several thousand.
	buffer = 4 << 20
	// pause is the wait after a burst, so that a flood of events costs few wake-ups.
	pause = 10 * time.Millisecond
	// burst is how many events without a wait are a burst.
	burst = 64
	// batch is how many connections are asked for in one message.
	batch = 64
	// patience bounds the wait for the kernel's answer, which comes at once.
	patience = 5 * time.Second
)

// socket is a netlink socket of netfilter.
type socket struct {
	file *os.File
	raw  syscall.RawConn
	buf  []byte
}

func open(groups uint32, receive int) (*socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("conntrack: opening a socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		return nil, errors.Join(fmt.Errorf("conntrack: subscribing to events: %w", err), unix.Close(fd))
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receive); err != nil {
		// Without the capability in the first user namespace, the system's limit applies.
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receive)
	}
	s := &socket{file: os.NewFile(uintptr(fd), "conntrack"), buf: make([]byte, 32<<10)}
	if s.raw, err = s.file.SyscallConn(); err != nil {
		return nil, errors.Join(err, s.file.Close())
	}
	return s, nil
}

// receive waits for one datagram, and returns what was received.
func (s *socket) receive() (data []byte, err error) {
	var n int
	waited := s.raw.Read(func(fd uintptr) bool {
		var from unix.Sockaddr
		n, from, err = unix.Recvfrom(int(fd), s.buf, 0)
		if kernel, ok := from.(*unix.SockaddrNetlink); err == nil && (!ok || kernel.Pid != 0) {
			n = 0 // another process sent it
		}
		return !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR)
	})
	if waited != nil {
		return nil, waited
	}
	return s.buf[:max(n, 0)], err
}

// send sends requests in one datagram.
func (s *socket) send(b []byte) (err error) {
	waited := s.raw.Write(func(fd uintptr) bool {
		err = unix.Sendto(int(fd), b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		return !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR)
	})
	return errors.Join(waited, err)
}

// drops returns how many messages the kernel could not queue so far (SO_MEMINFO, SK_MEMINFO_DROPS).
func (s *socket) drops() uint64 {
	const meminfoDrops = 8
	var info [meminfoDrops + 1]uint32
	size := uint32(unsafe.Sizeof(info))
	_ = s.raw.Control(func(fd uintptr) {
		_, _, _ = unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_MEMINFO, uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
	})
	return uint64(info[meminfoDrops])
}

// Event is one change of the kernel's table.
type Event struct {
	Ended bool
	Entry flows.Entry
}

// Sink takes events.
type Sink struct {
	// Keep decides about connections by their addresses.
	Keep func(flows.Entry) bool
	// Take takes some events; it must not keep the list.
	Take func([]Event)
	// Lost takes how many events the kernel could not deliver since the last call.
	Lost func(uint64)
}

// Events reads events of connections. Open makes one.
type Events struct{ socket *socket }

// Open subscribes to events: afterwards no event of a connection is missed without being counted.
func Open() (*Events, error) { return openEvents(buffer) }

func openEvents(size int) (*Events, error) {
	const groups = 1<<(unix.NFNLGRP_CONNTRACK_NEW-1) | 1<<(unix.NFNLGRP_CONNTRACK_DESTROY-1)
	s, err := open(groups, size)
	if err != nil {
		return nil, err
	}
	return &Events{s}, nil
}

// Close ends the subscription.
func (r *Events) Close() error { return r.socket.file.Close() }

// Run gives events to a sink until ctx ends.
func (r *Events) Run(ctx context.Context, to Sink) error {
	stop := context.AfterFunc(ctx, func() { _ = r.socket.file.SetReadDeadline(time.Unix(1, 0)) }) // wakes the reader
	defer stop()
	var list []Event
	var lost uint64
	for {
		list = list[:0]
		full := true
		for i := 0; i < burst && full; i++ {
			data, err := r.socket.receive()
			switch {
			case ctx.Err() != nil:
				return nil
			case errors.Is(err, unix.ENOBUFS):
				now := r.socket.drops()
				to.Lost(max(now-lost, 1))
				lost = now
				continue
			case err != nil && !errors.Is(err, os.ErrDeadlineExceeded):
				return fmt.Errorf("conntrack: reading events: %w", err)
			}
			messages(data, func(m message) {
				if m.kind != messageNew && m.kind != messageDelete {
					return
				}
				if e, ok := parse(m.body, to.Keep); ok {
					list = append(list, Event{m.kind == messageDelete, e})
				}
			})
			full = !r.socket.empty()
		}
		if len(list) > 0 {
			to.Take(list)
		}
		if full {
			select {
			case <-ctx.Done():
			case <-time.After(pause):
			}
		}
	}
}

// empty reports whether nothing is queued.
func (s *socket) empty() (yes bool) {
	_ = s.raw.Control(func(fd uintptr) {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		yes = err == nil && n == 0
	})
	return yes
}

// Table asks for connections. OpenTable makes one. It is not safe for concurrent use.
type Table struct {
	socket   *socket
	sequence uint32
}

// OpenTable opens a socket for questions.
func OpenTable() (*Table, error) {
	s, err := open(0, 1<<20)
	if err != nil {
		return nil, err
	}
	return &Table{socket: s}, nil
}

// Close closes the socket.
func (t *Table) Close() error { return t.socket.file.Close() }

// Read calls f for each tuple with the connection that the kernel has for it, or with found unset.
func (t *Table) Read(tuples []flows.Tuple, f func(t flows.Tuple, e flows.Entry, found bool)) error {
	for len(tuples) > 0 {
		now := tuples[:min(batch, len(tuples))]
		tuples = tuples[len(now):]
		if err := t.some(now, f); err != nil {
			return err
		}
	}
	return nil
}

// some asks for as many connections as fit into one message.
func (t *Table) some(tuples []flows.Tuple, f func(t flows.Tuple, e flows.Entry, found bool)) error {
	first := t.sequence + 1
	var b []byte
	for _, one := range tuples {
		t.sequence++
		b = request(b, one, t.sequence)
	}
	if err := t.begin(b); err != nil {
		return err
	}
	answered := make([]bool, len(tuples))
	for left := len(tuples); left > 0; {
		data, err := t.socket.receive()
		if err != nil {
			return fmt.Errorf("conntrack: reading connections: %w", err)
		}
		messages(data, func(m message) {
			i := int(m.sequence - first)
			if i < 0 || i >= len(tuples) || answered[i] {
				return
			}
			answered[i] = true
			left--
			switch m.kind {
			case messageNew:
				if e, ok := parse(m.body, func(flows.Entry) bool { return true }); ok {
					f(tuples[i], e, true)
				}
			case unix.NLMSG_ERROR:
				f(tuples[i], flows.Entry{}, false)
			}
		})
	}
	return nil
}

// begin sends a request whose answer must come in time.
func (t *Table) begin(b []byte) error {
	if err := t.socket.file.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if err := t.socket.send(b); err != nil {
		return fmt.Errorf("conntrack: asking the kernel: %w", err)
	}
	return nil
}

// All calls f for every connection that keep wants. It never holds the whole table in memory.
func (t *Table) All(ctx context.Context, keep func(flows.Entry) bool, f func(flows.Entry)) error {
	t.sequence++
	b := header(nil, unix.AF_UNSPEC, unix.NLM_F_REQUEST|unix.NLM_F_DUMP, t.sequence)
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	if err := t.begin(b); err != nil {
		return err
	}
	for done := false; !done; {
		data, err := t.socket.receive()
		if err == nil {
			err = ctx.Err()
		}
		if err == nil {
			err = t.socket.file.SetReadDeadline(time.Now().Add(patience))
		}
		if err != nil {
			return fmt.Errorf("conntrack: reading all connections: %w", err)
		}
		messages(data, func(m message) {
			if m.sequence != t.sequence {
				return
			}
			switch m.kind {
			case unix.NLMSG_DONE:
				done = true
			case unix.NLMSG_ERROR:
				done = true
				if len(m.body) >= 4 {
					if code := int32(binary.NativeEndian.Uint32(m.body)); code < 0 {
						err = fmt.Errorf("conntrack: reading all connections: %w", unix.Errno(-code))
					}
				}
			case messageNew:
				if e, ok := parse(m.body, keep); ok {
					f(e)
				}
			}
		})
		if err != nil {
			return err
		}
	}
	return nil
}
