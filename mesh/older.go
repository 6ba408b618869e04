package mesh

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"io"
	"net"
	"time"
)

// An agent of a version before sessions sends memberlist's own messages, sealed with a key of the secret.
// It is answered in that form with an error, which it shows to its operator.

const (
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

// sealOlder returns an error of memberlist, encrypted as older versions do; nil without a valid key.
func sealOlder(key []byte, text string) []byte {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil
	}
	// The message is a MessagePack map with one string of 16-bit length.
	plain := append([]byte{olderError, 0x81, 0xa5}, "Error\xda"...)
	plain = append(binary.BigEndian.AppendUint16(plain, uint16(len(text))), text...)
	head := binary.BigEndian.AppendUint32([]byte{olderSealed}, uint32(1+aead.NonceSize()+len(plain)+aead.Overhead()))
	nonce := make([]byte, aead.NonceSize())
	_, _ = rand.Read(nonce) // crypto/rand.Read never fails
	out := append(append(append([]byte(nil), head...), olderVersion), nonce...)
	return aead.Seal(out, nonce, plain, head)
}
