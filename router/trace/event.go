package trace

import (
	"encoding/binary"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Kind is what an event reports.
type Kind uint8

// These are the kinds of events (linux/netfilter/nf_tables.h, enum nft_trace_types).
const (
	End    Kind = 1 // the end of a base chain: its policy decided
	Return Kind = 2
	Rule   Kind = 3 // a rule matched; without a handle, the end of a chain was reached
)

// Verdict is what a rule or a policy decided.
type Verdict int32

// These are verdicts (linux/netfilter.h and nf_tables.h).
const (
	Drop     Verdict = 0
	Accept   Verdict = 1
	Stolen   Verdict = 2
	Queue    Verdict = 3
	Continue Verdict = -1
	Jump     Verdict = -3
	Goto     Verdict = -4
)

// Event is one thing that the kernel did with a packet.
type Event struct {
	At      time.Duration // since the session began
	Packet  int           // the number of the packet, in the order of arrival
	Answer  bool          // the packet goes back to the source
	Family  uint8         // of the table: NFPROTO_INET, NFPROTO_IPV4 or NFPROTO_IPV6
	Table   string
	Chain   string
	Handle  uint64 // of the rule
	Kind    Kind
	Verdict Verdict
	Target  string // the chain of Jump and Goto
	In, Out int    // indexes of interfaces; 0: none
	// Network and Transport are the first bytes of the headers. Only the first event of a base chain has them.
	Network, Transport []byte

	id uint32
}

// These are the attributes of a trace message (linux/netfilter/nf_tables.h, enum nft_trace_attributes).
const (
	attrTable     = 1
	attrChain     = 2
	attrHandle    = 3
	attrType      = 4
	attrVerdict   = 5
	attrID        = 6
	attrNetwork   = 8
	attrTransport = 9
	attrIn        = 10
	attrOut       = 12
	attrPolicy    = 16

	verdictCode  = 1
	verdictChain = 2
)

// mostHeader bounds the bytes of a header that are kept.
const mostHeader = 64

// parse reads the body of a trace message. ok is false if it lacks what every event has.
func parse(body []byte) (e Event, ok bool) {
	if len(body) < 4 { // struct nfgenmsg
		return e, false
	}
	e.Family = body[0]
	e.Verdict = Continue
	attributes(body[4:], func(kind uint16, value []byte) {
		switch kind {
		case attrTable:
			e.Table = text(value)
		case attrChain:
			e.Chain = text(value)
		case attrHandle:
			e.Handle = number(value)
		case attrType:
			e.Kind = Kind(number(value))
		case attrVerdict:
			attributes(value, func(kind uint16, value []byte) {
				switch kind {
				case verdictCode:
					e.Verdict = Verdict(uint32(number(value)))
				case verdictChain:
					e.Target = text(value)
				}
			})
		case attrPolicy:
			e.Verdict = Verdict(uint32(number(value)))
		case attrID:
			e.id = uint32(number(value))
		case attrNetwork:
			e.Network = header(value)
		case attrTransport:
			e.Transport = header(value)
		case attrIn:
			e.In = int(uint32(number(value)))
		case attrOut:
			e.Out = int(uint32(number(value)))
		}
	})
	return e, e.Table != "" && e.Chain != "" && e.Kind >= End && e.Kind <= Rule
}

// attributes calls f for each whole attribute in a buffer.
func attributes(b []byte, f func(kind uint16, value []byte)) {
	for len(b) >= unix.SizeofNlAttr {
		size, kind := int(binary.NativeEndian.Uint16(b)), binary.NativeEndian.Uint16(b[2:])
		if size < unix.SizeofNlAttr || size > len(b) {
			return
		}
		f(kind&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), b[unix.SizeofNlAttr:size])
		b = b[min((size+3)&^3, len(b)):]
	}
}

// text reads a string that ends with a NUL.
func text(b []byte) string {
	s, _, _ := strings.Cut(string(b), "\x00")
	return s
}

// number reads a number in network byte order.
func number(b []byte) (n uint64) {
	for _, x := range b[:min(len(b), 8)] {
		n = n<<8 | uint64(x)
	}
	return n
}

// header copies the beginning of a header, since the buffer is used again.
func header(b []byte) []byte { return append([]byte(nil), b[:min(len(b), mostHeader)]...) }

// recorder keeps the events of one session's packets.
type recorder struct {
	table   string
	packet  Packet
	list    []Event
	packets int
	full    bool
	current map[uint32]current // by the kernel's id of a packet, which is used again
}

type current struct {
	number int
	answer bool
}

// add adds an event if it is about a packet of the session. A packet begins where the session's own table marks it.
func (r *recorder) add(e Event) {
	if e.Table == r.table && e.Kind == Rule && e.Handle != 0 {
		answer := r.packet.answeredBy(e.Network)
		hook, _, _ := e.Hook()
		known, ours := r.current[e.id]
		if ours && known.answer == answer && hook != "prerouting" && hook != "output" {
			r.keep(e, known)
			return
		}
		if r.packets >= mostPackets {
			delete(r.current, e.id)
			r.full = true
			return
		}
		if r.current == nil {
			r.current = map[uint32]current{}
		}
		r.current[e.id] = current{r.packets, answer}
		r.packets++
	}
	if c, ours := r.current[e.id]; ours {
		r.keep(e, c)
	}
}

func (r *recorder) keep(e Event, c current) {
	if len(r.list) >= mostEvents {
		r.full = true
		return
	}
	e.Packet, e.Answer = c.number, c.answer
	r.list = append(r.list, e)
}

// Hook returns the hook whose first or last chain of the session's table an event is about.
func (e Event) Hook() (hook string, last, ok bool) {
	if !strings.HasPrefix(e.Table, TablePrefix) {
		return "", false, false
	}
	where, hook, ok := strings.Cut(e.Chain, "-")
	return hook, where == "last", ok
}
