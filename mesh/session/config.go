package session

import (
	"crypto/ed25519"
	"net"
	"net/netip"

	"github.com/hashicorp/memberlist"
)

// Config configures a Transport. All functions are called from several goroutines. Those after Welcome may be
// nil, and Knows: then nothing is known, packets and streams pass as they are, and nobody is told.
type Config struct {
	Identity ed25519.PrivateKey
	Run      string               // the name of this run; it begins with the id of Identity
	Network  memberlist.Transport // carries streams and packets; the Transport ends it
	// Addresses returns the addresses in the record of a run's peer, as HOST:PORT.
	Addresses func(run string) []string
	// Best returns the address, as HOST:PORT, at which a run's peer is reached best; empty: unknown. It is
	// called for each packet.
	Best func(run string) string
	// Inside returns the addresses of a run's peer inside the tunnel to it, as HOST:PORT. They are used if no
	// other address answers.
	Inside func(run string) []string
	// Confined reports whether a run's peer may be reached inside the tunnel only. The address is memberlist's. It may
	// be nil: then nobody is.
	Confined func(memberlist.Address) bool
	// Knows reports whether a peer has an address. This host dials nobody else because of a packet: whoever
	// it dials sees its certificate.
	Knows func(netip.Addr) bool
	// Find returns the address of a run of another member, to which this host passes the streams of members that ask
	// for it. It may be nil: then this host passes none on.
	Find func(run string) (memberlist.Address, bool)
	// Show returns what this host shows to the other end of a stream with this use.
	Show func(Use) []byte
	// Welcome refuses the other end of a stream; nil: it is welcome. The other end is told the error.
	Welcome func(Peer, Use) error
	// Gossip prepares a stream for memberlist.
	Gossip func(*Stream) net.Conn
	// Serve takes a stream that another host opened for another use than Gossip and Keys, and closes it.
	// A stream of the use Admit counts among those of strangers until Serve returns.
	Serve func(*Stream)
	// Incoming returns what memberlist may see of a packet, or nil.
	Incoming func(from Peer, content []byte) []byte
	// Outgoing is called with each packet that memberlist sends to a run.
	Outgoing func(run string, content []byte)
	// Older tells an agent of a version before sessions that it is refused. The caller closes the stream.
	Older func(net.Conn)
	// OlderThere does the same on a stream that this end opened for that; nil: nobody tells it. The caller
	// closes the stream.
	OlderThere func(net.Conn)
	// Moved is called when packets to a run, which were not answered, are sent to another address from now on:
	// some may be lost. It must not block.
	Moved func(run string)
	// Refused is called for each host that was refused.
	Refused func(addr, reason string)
}

// complete replaces the functions that are nil by ones that do nothing.
func (c *Config) complete() {
	if c.Knows == nil {
		c.Knows = func(netip.Addr) bool { return false }
	}
	if c.Gossip == nil {
		c.Gossip = func(s *Stream) net.Conn { return s }
	}
	if c.Serve == nil {
		c.Serve = func(s *Stream) { s.Close() }
	}
	if c.Incoming == nil {
		c.Incoming = func(_ Peer, content []byte) []byte { return content }
	}
	if c.Outgoing == nil {
		c.Outgoing = func(string, []byte) {}
	}
	if c.Older == nil {
		c.Older = func(net.Conn) {}
	}
	if c.Moved == nil {
		c.Moved = func(string) {}
	}
	if c.Refused == nil {
		c.Refused = func(string, string) {}
	}
}
