package secret

import (
	"bytes"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"strings"
)

// Armour writes a fixed number of bytes as one word that people copy: a prefix with its version, then
// the bytes and a checksum in lower-case base32 (RFC 4648). The checksum is the first bytes of the
// SHA-256 of a context and the bytes, so that a word of one kind is never read as another.
type Armour struct {
	Prefix  string // for example "weft1-"
	Context string // ends with a zero byte
	Length  int    // bytes, without the checksum
}

const checksumLen = 4

var alphabet = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// These are the errors of Armour.Decode. They contain no part of the word.
var (
	ErrPrefix   = errors.New("the word has another prefix")
	ErrChecksum = errors.New("the word was mistyped or truncated")
)

func (a Armour) checksum(payload []byte) []byte {
	sum := sha256.Sum256(append([]byte(a.Context), payload...))
	return sum[:checksumLen]
}

// Encode returns payload as a word.
func (a Armour) Encode(payload []byte) string {
	return a.Prefix + alphabet.EncodeToString(append(bytes.Clone(payload), a.checksum(payload)...))
}

// Decode returns the bytes of a word. Case and surrounding white space are ignored.
func (a Armour) Decode(word string) ([]byte, error) {
	if !a.Matches(word) {
		return nil, ErrPrefix
	}
	body := clean(word)[len(a.Prefix):]
	raw, err := alphabet.DecodeString(body)
	// Compare with the canonical encoding, since the last character has unused bits.
	if err != nil || len(raw) != a.Length+checksumLen || alphabet.EncodeToString(raw) != body {
		return nil, ErrChecksum
	}
	payload, sum := raw[:a.Length], raw[a.Length:]
	if !bytes.Equal(sum, a.checksum(payload)) {
		return nil, ErrChecksum
	}
	return payload, nil
}

// Matches reports whether a word has the prefix. It may still be mistyped.
func (a Armour) Matches(word string) bool { return strings.HasPrefix(clean(word), a.Prefix) }

func clean(word string) string { return strings.ToLower(strings.TrimSpace(word)) }
