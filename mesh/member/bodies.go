package member

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"net/netip"

	"weft/mesh/peer"
)

// These are the kinds of the documents of this package. They are never deleted: a revoked token and an
// ended ban are new versions.
const (
	KindToken = "token" // Name: TokenID.Name
	KindJoin  = "join"  // Name: JoinName
	KindBan   = "ban"   // Name: BanName
)

// These bounds limit the documents.
const (
	MaxName   = 64
	MaxReason = 256
	MaxUses   = 1 << 20
	MaxTTL    = 366 * 24 * 3600 // seconds

	maxBody = 2048    // leaves room for fields of newer versions
	maxTime = 1 << 40 // the year 36812: sums of times cannot overflow
)

// TokenBody is the body of a token's document.
type TokenBody struct {
	Created     int64  `cbor:"1,keyasint"` // Unix seconds, by the writer's clock
	TTL         int64  `cbor:"2,keyasint"` // seconds from Created, 1 to MaxTTL
	Uses        uint32 `cbor:"3,keyasint"` // how many hosts it admits, 1 to MaxUses
	Name        string `cbor:"4,keyasint,omitempty"`
	Rights      Rights `cbor:"5,keyasint,omitempty"` // what the hosts that it admits may do: 0 or Admits
	Revoked     bool   `cbor:"6,keyasint,omitempty"`
	Certificate []byte `cbor:"7,keyasint"` // of the writer
}

// JoinBody is the body of a document that says which host a token admitted. Name: JoinName.
type JoinBody struct {
	Token       TokenID           `cbor:"1,keyasint"`
	Peer        ed25519.PublicKey `cbor:"2,keyasint"` // the identity key of the admitted host
	Nickname    string            `cbor:"3,keyasint,omitempty"`
	From        netip.AddrPort    `cbor:"4,keyasint"` // the source of its request
	At          int64             `cbor:"5,keyasint"` // Unix seconds, by the writer's clock
	Certificate []byte            `cbor:"6,keyasint"` // of the writer, which admitted the host
}

// BanBody is the body of a document that bans a member, or ends its ban.
type BanBody struct {
	Banned      bool   `cbor:"1,keyasint,omitempty"`
	Reason      string `cbor:"2,keyasint,omitempty"`
	At          int64  `cbor:"3,keyasint"` // Unix seconds, by the writer's clock
	Certificate []byte `cbor:"4,keyasint"` // of the writer
}

// JoinName returns the name of the document that says that a token admitted a host.
func JoinName(token TokenID, host peer.ID) string { return token.Name() + "/" + host.String() }

// byHolder ends the name of a ban that a holder of the secret wrote. A member with only the admitting right
// cannot write a document of this name, so it cannot end such a ban.
const byHolder = "/holder"

// BanName returns the name of the document by which a member with some rights bans a peer, or ends its ban.
func BanName(id peer.ID, writer Rights) string {
	if writer.Has(Holder) {
		return id.String() + byHolder
	}
	return id.String()
}

// Expires returns the time from which the token admits no host.
func (b TokenBody) Expires() int64 { return b.Created + b.TTL }

func (b TokenBody) check() error {
	switch {
	case b.TTL < 1 || b.TTL > MaxTTL:
		return fmt.Errorf("token: lifetime of %d s: want 1 s to %d days", b.TTL, MaxTTL/(24*3600))
	case b.Uses < 1 || b.Uses > MaxUses:
		return fmt.Errorf("token: %d uses: want 1 to %d", b.Uses, MaxUses)
	case b.Rights != 0 && b.Rights != Admits:
		return fmt.Errorf("token: no token can give a host the rights of a %v", b.Rights)
	}
	if err := checkText("token: name", b.Name, MaxName); err != nil {
		return err
	}
	return checkWritten("token", b.Created, b.Certificate)
}

func (b JoinBody) check() error {
	from := b.From.Addr()
	switch {
	case b.Token.IsZero():
		return errors.New("join: no token")
	case len(b.Peer) != ed25519.PublicKeySize:
		return errors.New("join: no identity key")
	case !b.From.IsValid() || from.Zone() != "" || from.Is4In6():
		return fmt.Errorf("join: invalid source %v", b.From)
	}
	if err := checkText("join: nickname", b.Nickname, peer.MaxNickname); err != nil {
		return err
	}
	return checkWritten("join", b.At, b.Certificate)
}

func (b BanBody) check() error {
	if err := checkText("ban: reason", b.Reason, MaxReason); err != nil {
		return err
	}
	return checkWritten("ban", b.At, b.Certificate)
}

func checkText(what, text string, longest int) error {
	if len(text) > longest || !peer.Printable(text) {
		return fmt.Errorf("%s %.300q: want at most %d bytes of UTF-8, without control characters", what, text, longest)
	}
	return nil
}

func checkWritten(what string, at int64, certificate []byte) error {
	if at < 0 || at > maxTime {
		return fmt.Errorf("%s: invalid time %d", what, at)
	}
	if _, err := DecodeCertificate(certificate); err != nil {
		return fmt.Errorf("%s: its writer's %w", what, err)
	}
	return nil
}

// Encode encodes b for DecodeTokenBody.
func (b TokenBody) Encode() ([]byte, error) { return encode(b) }

// Encode encodes b for DecodeJoinBody. A zone in From is dropped, since it means nothing on other hosts.
func (b JoinBody) Encode() ([]byte, error) {
	b.From = netip.AddrPortFrom(b.From.Addr().Unmap().WithZone(""), b.From.Port())
	return encode(b)
}

// Encode encodes b for DecodeBanBody.
func (b BanBody) Encode() ([]byte, error) { return encode(b) }

// DecodeTokenBody decodes the body of a token's document. It does not verify the writer's certificate.
func DecodeTokenBody(data []byte) (TokenBody, error) { return decode[TokenBody](KindToken, data) }

// DecodeJoinBody decodes the body of a join's document. It does not verify the writer's certificate.
func DecodeJoinBody(data []byte) (JoinBody, error) { return decode[JoinBody](KindJoin, data) }

// DecodeBanBody decodes the body of a ban's document. It does not verify the writer's certificate.
func DecodeBanBody(data []byte) (BanBody, error) { return decode[BanBody](KindBan, data) }

type body interface{ check() error }

func encode(b body) ([]byte, error) {
	if err := b.check(); err != nil {
		return nil, err
	}
	return must(encoding.Marshal(b)), nil
}

func decode[B body](kind string, data []byte) (b B, err error) {
	var zero B
	if len(data) > maxBody {
		return zero, fmt.Errorf("%s: refused: it has %d bytes, at most %d are allowed", kind, len(data), maxBody)
	}
	if err := decoding.Unmarshal(data, &b); err != nil {
		return zero, fmt.Errorf("%s: decoding: %w", kind, err)
	}
	if err := b.check(); err != nil {
		return zero, err
	}
	return b, nil
}
