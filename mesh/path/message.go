package path

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"net/netip"
	"time"
)

// Magic is how each probe begins. WireGuard's messages begin with 1 to 4, and both kinds of WireGuard
// silently drop others. The fourth byte says whether a relay forwards the probe, as it forwards WireGuard's packets
// from the same port, or whether the probe is for the relay itself.
var Magic = [3]byte{'w', 'e', 'f'}

const forwarded, toRelay = 't', 'r'

// ForRelays is how probes for a relay itself begin.
var ForRelays = [4]byte{Magic[0], Magic[1], Magic[2], toRelay}

// A probe on the wire:
//
//	 3 bytes  Magic
//	 1        forwarded or toRelay
//	 8        mark: tells the receiver whose key opens the probe
//	12        nonce, random
//	54        the body, sealed with AES-256-GCM
//	16        the seal's tag
//	 n        padding of a probe that measures the MTU; it is not part of the message
const (
	markSize  = 8
	nonceSize = 12
	bodySize  = 1 + 1 + 8 + 8 + 2 + 2 + 4 + 2 + 16 + 2 + reserved
	tagSize   = 16
	reserved  = 8 // bytes of the body that later versions may use

	// messageSize is the size of a probe without padding.
	messageSize = head + nonceSize + bodySize + tagSize

	// head is the size of what travels in the clear, without the nonce.
	head = len(Magic) + 1 + markSize
)

// kind tells questions from answers.
type kind uint8

const (
	question   kind = 1
	answer     kind = 2
	register   kind = 3 // asks a relay to forward to a peer what comes from this port
	registered kind = 4 // answers it
	invite     kind = 5 // a relay asks a host to register for a peer
)

// Flags of a probe.
const (
	flagChosen  uint8 = 1 << iota // a question: the sender's tunnel uses this pair of addresses
	flagDeaf                      // a question: the sender's last questions were not answered
	flagRefused                   // the sender does not relay
	flagInvited                   // a registration: the sender was asked for it
	flagBoth                      // a registration: the sender has both address families; its answer: it should use the other one

	aheadShift = 6 // a message to or from a relay: its upper bits are route.ahead
)

// message is the content of a probe. Fields that a version does not know stay zero.
type message struct {
	kind  kind
	flags uint8
	id    uint64 // of the question; an answer repeats it
	stamp int64  // the sender's clock in nanoseconds: a replayed probe has an old one
	size  uint16 // of a padded question: the size of its IP packet
	mtu   uint16 // the path MTU that the sender has measured; 0: none
	rtt   time.Duration
	loss  uint16 // parts of 10,000
	// seen of an answer is where its question came from. Of a question, and of all that comes over a relay, it is where
	// other peers see the sender, if that is behind NAT.
	seen netip.AddrPort
	// These are in messages to and from relays only: what comes from the source of a registration is for the target of
	// the route. The cookie is the relay's.
	route
	cookie uint32
}

func (k kind) toRelay() bool { return k >= register && k <= invite }

// Key seals and opens the probes between this host and one peer.
type Key struct {
	out, in         cipher.AEAD
	outMark, inMark [markSize]byte
}

// NewKey derives the key for probes from the X25519 secret that two peers share by their WireGuard keys.
// So both ends have it as soon as they know each other's record, after a restart as well.
func NewKey(shared []byte, own, other [32]byte) (Key, error) {
	var k Key
	var err error
	if k.out, k.outMark, err = derive(shared, own, other); err != nil {
		return Key{}, err
	}
	k.in, k.inMark, err = derive(shared, other, own)
	return k, err
}

// derive returns the key and the mark of one direction.
func derive(shared []byte, from, to [32]byte) (aead cipher.AEAD, mark [markSize]byte, err error) {
	info := "weft probe 1" + string(from[:]) + string(to[:])
	secret, err := hkdf.Key(sha256.New, shared, nil, info, 32+markSize)
	if err != nil {
		return nil, mark, fmt.Errorf("path: deriving a key for probes: %w", err)
	}
	copy(mark[:], secret[32:])
	block, err := aes.NewCipher(secret[:32])
	if err != nil {
		return nil, mark, fmt.Errorf("path: deriving a key for probes: %w", err)
	}
	aead, err = cipher.NewGCM(block)
	return aead, mark, err
}

// seal returns a message as it travels. Its nonce comes from random.
func (k Key) seal(m message, random io.Reader) ([]byte, error) {
	out := make([]byte, 0, messageSize)
	out = append(out, Magic[:]...)
	if m.kind.toRelay() {
		out = append(out, toRelay)
	} else {
		out = append(out, forwarded)
	}
	out = append(out, k.outMark[:]...)
	out = out[:len(out)+nonceSize]
	nonce := out[len(out)-nonceSize:]
	if _, err := io.ReadFull(random, nonce); err != nil {
		return nil, fmt.Errorf("path: reading random bytes: %w", err)
	}
	return k.out.Seal(out, nonce, m.encode(), out[:head]), nil
}

// markOf returns the mark of a probe; false if it cannot be a probe.
func markOf(b []byte) (mark [markSize]byte, ok bool) {
	if len(b) < messageSize || !bytes.HasPrefix(b, Magic[:]) {
		return mark, false
	}
	copy(mark[:], b[len(Magic)+1:])
	return mark, true
}

// open returns the message of a probe; false if the peer did not seal it.
func (k Key) open(b []byte) (message, bool) {
	if mark, ok := markOf(b); !ok || mark != k.inMark {
		return message{}, false
	}
	body, err := k.in.Open(nil, b[head:head+nonceSize], b[head+nonceSize:messageSize], b[:head])
	if err != nil {
		return message{}, false
	}
	return decode(body)
}

func (m message) encode() []byte {
	b := make([]byte, 0, bodySize)
	b = append(b, byte(m.kind), m.flags)
	b = binary.BigEndian.AppendUint64(b, m.id)
	b = binary.BigEndian.AppendUint64(b, uint64(m.stamp))
	if m.kind.toRelay() {
		b[1] |= byte(m.ahead) << aheadShift
		b = append(append(b, m.origin[:]...), m.target[:]...)
		for _, id := range m.others {
			b = append(b, id[:]...)
		}
		return binary.BigEndian.AppendUint32(b, m.cookie)
	}
	b = binary.BigEndian.AppendUint16(b, m.size)
	b = binary.BigEndian.AppendUint16(b, m.mtu)
	b = binary.BigEndian.AppendUint32(b, uint32(min(m.rtt.Microseconds(), 1<<32-1)))
	b = binary.BigEndian.AppendUint16(b, m.loss)
	seen := [16]byte{}
	if m.seen.IsValid() {
		seen = m.seen.Addr().As16()
	}
	b = binary.BigEndian.AppendUint16(append(b, seen[:]...), m.seen.Port())
	return append(b, make([]byte, reserved)...)
}

// decode reads the body of a probe.
func decode(b []byte) (m message, ok bool) {
	if len(b) < bodySize {
		return m, false
	}
	m.kind, m.flags = kind(b[0]), b[1]
	m.id, m.stamp = binary.BigEndian.Uint64(b[2:]), int64(binary.BigEndian.Uint64(b[10:]))
	if m.kind.toRelay() {
		m.ahead = int(m.flags >> aheadShift)
		m.flags &= 1<<aheadShift - 1
		copy(m.origin[:], b[18:])
		copy(m.target[:], b[26:])
		for i := range m.others {
			copy(m.others[i][:], b[34+8*i:])
		}
		m.cookie = binary.BigEndian.Uint32(b[50:])
		return m, true
	}
	m.size, m.mtu = binary.BigEndian.Uint16(b[18:]), binary.BigEndian.Uint16(b[20:])
	m.rtt, m.loss = time.Duration(binary.BigEndian.Uint32(b[22:]))*time.Microsecond, binary.BigEndian.Uint16(b[26:])
	if port := binary.BigEndian.Uint16(b[44:]); port != 0 {
		m.seen = netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[28:44])).Unmap(), port)
	}
	return m, m.kind == question || m.kind == answer
}
