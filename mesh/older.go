package mesh

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/hashicorp/go-msgpack/v2/codec"
	"github.com/hashicorp/memberlist"
)

// An agent of a version before sessions sends memberlist's own messages, sealed with a key of the secret.
// When it joins, it is answered in that form with an error, which its status shows beside the target. When
// this host joins it, this host also greets it in that form: its status then shows that this host uses a
// newer protocol.

const (
	olderJoin    = 6  // memberlist's type of a push/pull
	olderSealed  = 10 // memberlist's type of an encrypted message
	olderError   = 13 // memberlist's type of an error
	olderVersion = 1  // memberlist's encryption version without padding
	maxOlder     = 10 << 20
)

// tooOld is what an older agent is told.
const tooOld = "this host was refused: it runs an older version of Weft: upgrade it, see \"Upgrading\" in site/docs/install.md"

// tellOlder answers an agent of an older version. The caller closes the stream.
func (m *Mesh) tellOlder(c net.Conn) {
	_ = c.SetDeadline(time.Now().Add(streamTimeout)) // if this fails, so does the write
	answer := sealOlder(m.cfg.GossipKey, tooOld)
	if answer == nil {
		return
	}
	read := make(chan struct{})
	go func() { // it may read nothing before it has sent all
		defer close(read)
		_, _ = io.Copy(io.Discard, io.LimitReader(c, maxOlder))
	}()
	if _, err := c.Write(answer); err == nil {
		<-read // closing a connection that has unread data discards what was sent
	}
}

// greetOlder greets an agent of an older version, which refuses this host and says why. The caller closes the
// stream.
func (m *Mesh) greetOlder(c net.Conn) {
	at := m.transport.Advertised()
	if own, err := netip.ParseAddrPort(c.LocalAddr().String()); err == nil { // the address that the agent has refused already
		at = netip.AddrPortFrom(own.Addr().Unmap().WithZone(""), at.Port())
	}
	greeting := joinMessage(m.name, at, encode(helloWire{Version: Version}))
	if sealed := sealMessage(m.cfg.GossipKey, greeting); sealed != nil {
		if _, err := c.Write(sealed); err == nil {
			_, _ = io.Copy(io.Discard, io.LimitReader(c, maxOlder)) // it sends its own state before it reads
		}
	}
}

// sealOlder returns an error of memberlist, encrypted as older versions do; nil without a valid key.
func sealOlder(key []byte, text string) []byte {
	// The message is a MessagePack map with one string of 16-bit length.
	plain := append([]byte{olderError, 0x81, 0xa5}, "Error\xda"...)
	return sealMessage(key, append(binary.BigEndian.AppendUint16(plain, uint16(len(text))), text...))
}

// joinMessage returns the push/pull of a joining host that only knows itself.
func joinMessage(name string, at netip.AddrPort, meta []byte) []byte {
	out := []byte{olderJoin}
	var handle codec.MsgpackHandle
	for _, v := range []any{
		struct {
			Nodes, UserStateLen int
			Join                bool
		}{Nodes: 1, Join: true},
		struct {
			Name        string
			Addr        []byte
			Port        uint16
			Meta        []byte
			Incarnation uint32
			State       int
			Vsn         []byte
		}{Name: name, Addr: at.Addr().AsSlice(), Port: at.Port(), Meta: meta, Incarnation: 1, Vsn: []byte{
			memberlist.ProtocolVersionMin, memberlist.ProtocolVersionMax, memberlist.ProtocolVersion2Compatible, 0, 0, 0,
		}},
	} {
		var part []byte
		if err := codec.NewEncoderBytes(&part, &handle).Encode(v); err != nil {
			panic(err) // the types are fixed
		}
		out = append(out, part...)
	}
	return out
}

// sealMessage returns a message of memberlist, encrypted as older versions do; nil without a valid key.
func sealMessage(key, plain []byte) []byte {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil
	}
	head := binary.BigEndian.AppendUint32([]byte{olderSealed}, uint32(1+aead.NonceSize()+len(plain)+aead.Overhead()))
	nonce := make([]byte, aead.NonceSize())
	_, _ = rand.Read(nonce) // crypto/rand.Read never fails
	out := append(append(append([]byte(nil), head...), olderVersion), nonce...)
	return aead.Seal(out, nonce, plain, head)
}
