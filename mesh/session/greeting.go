package session

import (
	"encoding/binary"
	"fmt"
	"io"
	"strings"

	"github.com/fxamacker/cbor/v2"

	"weft/mesh/peer"
)

// greeting is what each end of a stream says after the TLS handshake.
type greeting struct {
	Run    string `cbor:"1,keyasint,omitempty"`
	Use    Use    `cbor:"2,keyasint,omitempty"`
	Index  uint32 `cbor:"3,keyasint,omitempty"` // under which this end receives packets of the session
	Body   []byte `cbor:"4,keyasint,omitempty"`
	Refuse string `cbor:"5,keyasint,omitempty"` // why this end refuses the other; empty: it does not
}

// These bounds limit a greeting.
const (
	maxGreeting = 4 << 10
	maxRun      = 64
	maxRefuse   = 512
)

var (
	encoding = must(cbor.CoreDetEncOptions().EncMode())
	decoding = must(cbor.DecOptions{DupMapKey: cbor.DupMapKeyEnforcedAPF, MaxArrayElements: 16, MaxMapPairs: 32, MaxNestedLevels: 4}.DecMode())
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err) // only constant options and our own types reach this
	}
	return v
}

// send writes a greeting with its length in front.
func (g greeting) send(w io.Writer) error {
	g.Refuse = legible(g.Refuse)
	return WriteShort(w, must(encoding.Marshal(g)))
}

// WriteShort writes a message of less than 64 KiB, with its length in two bytes in front.
func WriteShort(w io.Writer, data []byte) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(data))), data...))
	return err
}

// ReadShort reads a message that WriteShort wrote, of at most that many bytes.
func ReadShort(r io.Reader, most uint16) ([]byte, error) {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint16(head[:])
	if size > most {
		return nil, fmt.Errorf("a message of %d bytes, at most %d are allowed", size, most)
	}
	data := make([]byte, size)
	_, err := io.ReadFull(r, data)
	return data, err
}

// legible makes a reason one that the other end accepts.
func legible(reason string) string {
	reason = strings.Map(func(c rune) rune {
		if !peer.Printable(string(c)) {
			return ' '
		}
		return c
	}, reason)
	return strings.ToValidUTF8(reason[:min(len(reason), maxRefuse)], "")
}

// receive reads a greeting.
func receive(r io.Reader) (g greeting, err error) {
	data, err := ReadShort(r, maxGreeting)
	if err != nil {
		return g, err
	}
	return decode(data)
}

func decode(data []byte) (g greeting, err error) {
	if err := decoding.Unmarshal(data, &g); err != nil {
		return g, fmt.Errorf("its greeting is unreadable: %w", err)
	}
	if len(g.Run) > maxRun || !peer.Printable(g.Run) || len(g.Refuse) > maxRefuse || !peer.Printable(g.Refuse) {
		return g, fmt.Errorf("its greeting is invalid: the run or the reason is too long, or has control characters")
	}
	return g, nil
}
