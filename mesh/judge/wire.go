package judge

import (
	"encoding/binary"
	"errors"
	"hash/crc32"

	"github.com/hashicorp/go-msgpack/v2/codec"
)

// kind is the first byte of each message: memberlist's messageType (net.go of memberlist 0.7).
type kind uint8

const (
	pingMsg kind = iota
	indirectPingMsg
	ackMsg
	suspectMsg
	aliveMsg
	deadMsg
	pushPullMsg
	compoundMsg
	userMsg
	compressMsg // refused: Weft turns compression off
	encryptMsg  // refused: the transport encrypts
	nackMsg
	crcMsg // before a whole packet only
	errMsg
)

// These are the states of a node in a push/pull: memberlist's NodeStateType.
const (
	stateAlive = iota
	stateSuspect
	stateDead
	stateLeft
)

// The following types have the names and tags of memberlist's own fields, since msgpack sends both.

type ping struct {
	SeqNo      uint32
	Node       string
	SourceAddr []byte `codec:",omitempty"`
	SourcePort uint16 `codec:",omitempty"`
	SourceNode string `codec:",omitempty"`
}

type indirectPing struct {
	SeqNo      uint32
	Target     []byte
	Port       uint16
	Node       string
	Nack       bool
	SourceAddr []byte `codec:",omitempty"`
	SourcePort uint16 `codec:",omitempty"`
	SourceNode string `codec:",omitempty"`
}

type ack struct {
	SeqNo   uint32
	Payload []byte
}

type nack struct {
	SeqNo uint32
}

type failure struct {
	Error string
}

type suspect struct {
	Incarnation uint32
	Node        string
	From        string
}

type alive struct {
	Incarnation uint32
	Node        string
	Addr        []byte
	Port        uint16
	Meta        []byte
	Vsn         []uint8 // protocol: minimum, maximum, spoken; then the same of the delegate
}

type dead struct {
	Incarnation uint32
	Node        string
	From        string
}

type pushPullHeader struct {
	Nodes        int
	UserStateLen int
	Join         bool
}

type pushNodeState struct {
	Name        string
	Addr        []byte
	Port        uint16
	Meta        []byte
	Incarnation uint32
	State       int
	Vsn         []uint8
}

type userHeader struct {
	UserMsgLen int
}

// handle has memberlist's settings. No message has a time, so its setting for times does not matter.
var handle codec.MsgpackHandle

// encode appends v to dst as memberlist encodes it.
func encode(dst []byte, v any) []byte {
	var out []byte
	if err := codec.NewEncoderBytes(&out, &handle).Encode(v); err != nil {
		panic(err) // only our own types reach this
	}
	return append(dst, out...)
}

// message returns one whole message.
func message(k kind, v any) []byte { return encode([]byte{byte(k)}, v) }

// decode reads a struct from the start of data. What follows the struct is ignored, as memberlist
// does.
func decode[T any](data []byte) (v T, err error) {
	s := source{buf: data}
	return decodeFrom[T](&s)
}

// decodeFrom reads a struct from s. The codec only sees an object that is complete and bounded, so
// it allocates no more than the object's size.
func decodeFrom[T any](s *source) (v T, err error) {
	object, err := s.object()
	if err != nil {
		return v, err
	}
	err = codec.NewDecoderBytes(object, &handle).Decode(&v)
	return v, err
}

var errChecksum = errors.New("checksum does not match: the packet was damaged")

// withoutChecksum verifies and removes the checksum that memberlist puts before a packet to a node
// that speaks version 5 or later.
func withoutChecksum(packet []byte) ([]byte, error) {
	if len(packet) == 0 || kind(packet[0]) != crcMsg {
		return packet, nil
	}
	if len(packet) < 5 || crc32.ChecksumIEEE(packet[5:]) != binary.BigEndian.Uint32(packet[1:]) {
		return nil, errChecksum
	}
	return packet[5:], nil
}

// split takes a compound message apart, without its first byte. A truncated message gives the parts
// that are complete, as in memberlist.
func split(body []byte) [][]byte {
	if len(body) < 1 || len(body)-1 < 2*int(body[0]) {
		return nil
	}
	lengths, rest := body[1:1+2*int(body[0])], body[1+2*int(body[0]):]
	var parts [][]byte
	for ; len(lengths) > 0; lengths = lengths[2:] {
		n := int(binary.BigEndian.Uint16(lengths))
		if n > len(rest) {
			break
		}
		parts, rest = append(parts, rest[:n]), rest[n:]
	}
	return parts
}

// join builds a packet from messages. It leaves out those that do not fit.
func join(parts [][]byte) []byte {
	size, fit := 2, parts[:0]
	for _, p := range parts {
		if len(p) < 1<<16 && size+2+len(p) <= MaxPacket {
			size, fit = size+2+len(p), append(fit, p)
		}
	}
	switch len(fit) {
	case 0:
		return nil
	case 1:
		return fit[0]
	}
	packet := append(make([]byte, 0, size), byte(compoundMsg), byte(len(fit)))
	for _, p := range fit {
		packet = binary.BigEndian.AppendUint16(packet, uint16(len(p)))
	}
	for _, p := range fit {
		packet = append(packet, p...)
	}
	return packet
}
