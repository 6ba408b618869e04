// Package session is the transport under memberlist. Each pair of hosts has a session between two proven
// identities: a stream is TLS 1.3 between the Ed25519 keys of two peers, and a packet is sealed under keys
// that were exported from such a stream.
//
//	dialing host                               accepting host
//	TLS 1.3, X25519MLKEM768 only: both present a self-signed certificate of their identity key
//	greeting: run, use, what it shows   ->
//	                                    <-     welcome: run, what it shows; or why it refuses
//	ready; or why it refuses            ->
//	the stream has its use; packets travel in both directions
//
// A peer that has not yet proved its identity costs some KiB, one of a bounded number of connections, and
// at most proofTimeout (door.go). The package also chooses the addresses at which a run of a peer is
// reached, outside the tunnel or, as the last resort, inside it (routes.go, echo.go).
//
// A Transport is safe for concurrent use. It knows nothing of members: its Config judges whom it talks to.
package session

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"

	"weft/mesh/peer"
)

// Use is what a stream is for.
type Use uint8

// These are the uses of a stream.
const (
	Keys    Use = 1 // nothing more: only packets were wanted
	Gossip  Use = 2 // a message of memberlist, and its answer
	Request Use = 3 // a request of the mesh, and its reply
	Admit   Use = 4 // a host asks to become a member
	Forward Use = 5 // to be passed on to another member, see over.go
)

// Peer is the other end of a session. TLS proved that it has the key.
type Peer struct {
	ID   peer.ID
	Key  ed25519.PublicKey
	Run  string         // the name of the run of its agent; it begins with ID
	Addr netip.AddrPort // the remote address of the stream
	Body []byte         // what the peer showed in its greeting or welcome
}

// Stream is a proven stream. Its first bytes follow those of the handshake.
type Stream struct {
	net.Conn
	Peer Peer
	Use  Use
	// Binding is a value that only the two ends of this stream have. A proof about it cannot be used
	// on another stream (RFC 9266).
	Binding []byte
}

// Refusal is the reason why the other end, or this one, refused a session.
type Refusal struct {
	Reason string
	Ours   bool // whether this end refused
}

func (e *Refusal) Error() string {
	if e.Ours {
		return "this host refused it: " + e.Reason
	}
	return "was refused: " + e.Reason
}

// OlderError reports that the other end is an agent of a version before sessions.
type OlderError struct{}

func (OlderError) Error() string {
	return "it runs an older version of Weft: upgrade that host, see \"Upgrading\" in site/docs/install.md"
}

var (
	errItself = errors.New("this address is of this host itself")
	errOther  = errors.New("another host, or a later run of the agent, answers at this address")
)

// identity is this host's certificate and the configuration of TLS.
type identity struct {
	cert tls.Certificate
}

func newIdentity(key ed25519.PrivateKey) (identity, error) {
	allowHybrid()
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return identity{}, fmt.Errorf("session: making the certificate of this host: %w", err)
	}
	return identity{tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}}, nil
}

// allowHybrid undoes a GODEBUG that turns off the hybrid key exchange: without it no handshake succeeds.
var allowHybrid = sync.OnceFunc(func() {
	if debug := os.Getenv("GODEBUG"); strings.Contains(debug, "mlkem") {
		_ = os.Setenv("GODEBUG", debug+",tlsmlkem=1,tlssecpmlkem=1") // the last entry wins
	}
})

func (i identity) config() *tls.Config {
	return &tls.Config{
		Certificates: []tls.Certificate{i.cert}, MinVersion: tls.VersionTLS13, CurvePreferences: []tls.CurveID{tls.X25519MLKEM768},
		NextProtos: []string{protocol}, SessionTicketsDisabled: true,
		ClientAuth:         tls.RequireAnyClientCert,
		InsecureSkipVerify: true, // the identity in the certificate is verified below and by the caller; there is no authority
		VerifyConnection: func(s tls.ConnectionState) error {
			_, err := keyOf(s)
			return err
		},
	}
}

// protocol is negotiated by ALPN (RFC 7301), so that another protocol of a later version can share the port.
const protocol = "weft/2"

// keyOf returns the identity key at the other end. TLS has verified that the other end has its private key.
func keyOf(s tls.ConnectionState) (ed25519.PublicKey, error) {
	if s.NegotiatedProtocol != protocol || len(s.PeerCertificates) != 1 {
		return nil, errors.New("it is another program, or it runs a version of Weft that this one does not know")
	}
	key, ok := s.PeerCertificates[0].PublicKey.(ed25519.PublicKey)
	if !ok || len(key) != ed25519.PublicKeySize {
		return nil, errors.New("its certificate has no Ed25519 key")
	}
	return key, nil
}

// exported returns secret bytes that both ends of a stream derive from it (RFC 8446, section 7.5).
func exported(s tls.ConnectionState, label string, size int) ([]byte, error) {
	out, err := s.ExportKeyingMaterial(label, nil, size)
	if err != nil {
		return nil, fmt.Errorf("session: exporting keys: %w", err)
	}
	return out, nil
}

// conn is a proven stream's connection. Close ends it at once, without TLS's close_notify: all messages
// carry their length, so a truncated one is noticed, and Close never waits for the other end.
type conn struct {
	*tls.Conn
	raw net.Conn
}

func (c conn) Close() error { return c.raw.Close() }
