// Package trace sends one packet through this host's kernel, and records what nftables does with it and with its
// answer. An endpoint's packet enters at the host's end of the endpoint's link, so that the kernel treats it as if the
// container had sent it.
//
// A Session owns a table of its own, which marks only its packet and the answers; no other table is changed. The table
// ends with the session, and with the process if the kernel knows owners (5.12 and later). A Session owns one
// goroutine and is safe for concurrent use. It never enters a container's namespace.
package trace

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"weft/router/policy"
)

// Packet is the packet to send.
type Packet struct {
	Protocol policy.Protocol
	Src, Dst netip.Addr
	Port     uint16 // of the destination; 0 for ICMP
	ID       uint16 // the source port, or the identifier of an echo request
}

const (
	mostEvents  = 1000
	mostPackets = 16 // a server repeats an answer that nobody acknowledges
)

// Session records what happens to a packet on this host.
type Session struct {
	packet  Packet
	table   *table
	events  *netlink.Conn
	begun   time.Time
	changed chan struct{}
	ended   chan struct{}

	mu      sync.Mutex
	record  recorder
	missing bool // the kernel dropped events
}

// ErrUnsupported means that the kernel cannot trace packets.
var ErrUnsupported = errors.New("this kernel cannot trace packets in nftables (it needs nf_tables with `meta nftrace`, Linux 4.6 or later): load the module nf_tables, or use a kernel that has it")

// Open begins to record a packet, which is not sent yet, and its answers.
func Open(p Packet) (*Session, error) {
	events, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, fmt.Errorf("trace: opening netlink: %w", err)
	}
	_ = events.SetReadBuffer(4 << 20) // a limit: without root the kernel's own applies
	if err := events.JoinGroup(unix.NFNLGRP_NFTRACE); err != nil {
		events.Close()
		return nil, fmt.Errorf("trace: %w (%w)", ErrUnsupported, err)
	}
	t, err := makeTable(p)
	if err != nil {
		events.Close()
		return nil, err
	}
	s := &Session{
		packet: p, table: t, events: events, begun: time.Now(), changed: make(chan struct{}, 1), ended: make(chan struct{}),
		record: recorder{table: t.name(), packet: p},
	}
	go s.run()
	return s, nil
}

// run records events until the session is closed.
func (s *Session) run() {
	defer close(s.ended)
	for {
		messages, err := s.events.Receive()
		at := time.Since(s.begun)
		s.mu.Lock()
		for _, m := range messages {
			if m.Header.Type == unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_TRACE {
				if e, ok := parse(m.Data); ok {
					e.At = at
					s.record.add(e)
				}
			}
		}
		lost := errors.Is(err, unix.ENOBUFS)
		s.missing = s.missing || lost
		s.mu.Unlock()
		if err != nil && !lost {
			return
		}
		select {
		case s.changed <- struct{}{}:
		default:
		}
	}
}

// Changed receives after new events.
func (s *Session) Changed() <-chan struct{} { return s.changed }

// Events returns what happened so far, in order, and whether some events are missing.
func (s *Session) Events() (list []Event, missing bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Event(nil), s.record.list...), s.missing || s.record.full
}

// Since returns the time since the session began.
func (s *Session) Since() time.Duration { return time.Since(s.begun) }

// Close ends the session and removes its table.
func (s *Session) Close() error {
	_ = s.events.SetReadDeadline(time.Unix(1, 0))
	<-s.ended
	return errors.Join(s.events.Close(), s.table.remove())
}

// Clean removes what a process that was killed has left: tables of kernels without owners, and links.
func Clean() error {
	conn, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return fmt.Errorf("trace: opening netlink: %w", err)
	}
	defer func() { _ = conn.CloseLasting() }()
	return errors.Join(cleanTables(conn), cleanLinks())
}
