package mesh

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/hashicorp/memberlist"

	"weft/mesh/member"
	"weft/mesh/peer"
	"weft/mesh/session"
)

// A host that has a token but no certificate asks a member for one. TLS has proved its identity to the
// member, and the member's certificate has proved to the host that it belongs to the token's network. The
// host proves the token by a signature that counts on this stream only.

// Applicant is a host that proved to have a token.
type Applicant struct {
	Identity ed25519.PublicKey
	Token    member.TokenID
	Nickname string
	From     netip.AddrPort
	Clock    time.Time // what its clock says
}

// Admission is what an admitted host gets.
type Admission struct {
	Root        ed25519.PublicKey `cbor:"1,keyasint"`
	Certificate []byte            `cbor:"2,keyasint"`
	Cluster     [16]byte          `cbor:"3,keyasint"`
}

// application is what the host sends; verdict is the answer.
type application struct {
	Proof    []byte `cbor:"1,keyasint"`
	Nickname string `cbor:"2,keyasint,omitempty"`
	Clock    int64  `cbor:"3,keyasint"` // Unix seconds
}

type verdict struct {
	Admission Admission `cbor:"1,keyasint"`
	Refused   string    `cbor:"2,keyasint,omitempty"`
	Clock     int64     `cbor:"3,keyasint"` // Unix seconds
}

const maxAdmit = 4 << 10 // bytes of an application or a verdict

var errAdmitsNobody = errors.New("this host may not admit others: join at a host that holds the network's secret, or that a token with --admits admitted")

// admit answers a host that wants to become a member.
func (m *Mesh) admit(s *session.Stream) {
	defer s.Close()
	var a application
	if err := readShort(s, &a); err != nil {
		m.cfg.Log.Debug("unreadable application of a host that wants to join", "addr", s.Peer.Addr, "err", err)
		return
	}
	addr := s.Peer.Addr.Addr().String()
	v := verdict{Clock: time.Now().Unix()}
	token, err := member.VerifyProof(a.Proof, s.Binding)
	if err == nil {
		err = peer.CheckNickname(a.Nickname)
	}
	if err == nil {
		v.Admission, err = m.cfg.Admit(Applicant{s.Peer.Key, token, a.Nickname, s.Peer.Addr, time.Unix(a.Clock, 0)})
	}
	if err != nil {
		v.Refused = err.Error()
		m.reject(addr, "it was not admitted: "+v.Refused)
	}
	if err := writeShort(s, v); err != nil {
		m.cfg.Log.Info("could not answer a host that wants to join", "addr", addr, "err", err)
	}
}

func writeShort(w io.Writer, v any) error { return session.WriteShort(w, encode(v)) }

func readShort(r io.Reader, v any) error {
	data, err := session.ReadShort(r, maxAdmit)
	if err != nil {
		return err
	}
	return decoding.Unmarshal(data, v)
}

// Joiner asks members to admit this host.
type Joiner struct {
	Identity ed25519.PrivateKey
	Token    member.Token
	Nickname string
	Port     int                  // the default port of gossip
	Network  memberlist.Transport // dials; nil: this host's network
}

// NotAdmittedError reports that a host refused the token, or that this host refused to show it there.
// Asking that host again would not help.
type NotAdmittedError struct {
	Host   string
	Reason string
	Ours   bool // whether this host refused
}

func (e *NotAdmittedError) Error() string {
	if e.Ours {
		return fmt.Sprintf("%s: %s", e.Host, e.Reason)
	}
	return fmt.Sprintf("%s refuses the token: %s", e.Host, e.Reason)
}

// MaxSkew is by how much two clocks may differ before a join mentions it.
const MaxSkew = time.Minute

// Ask asks one host, given as HOST or HOST:PORT. skew is how far this host's clock is ahead of the
// member's, if that is worth mentioning.
func (j Joiner) Ask(ctx context.Context, host string) (a Admission, skew time.Duration, err error) {
	addrs, err := resolve(ctx, host, j.Port)
	if err != nil {
		return a, 0, err
	}
	t, err := session.New(j.config())
	if err != nil {
		return a, 0, err
	}
	defer func() { _ = t.Shutdown() }() // it only dials
	for _, addr := range addrs {
		v, e := j.ask(t, addr)
		if e != nil {
			if _, refused := errors.AsType[*NotAdmittedError](err); !refused { // a refusal says more than an address that does not answer
				err = e
			}
			continue
		}
		if skew = time.Since(time.Unix(v.Clock, 0)); skew.Abs() < MaxSkew {
			skew = 0
		}
		return v.Admission, skew, nil
	}
	return a, 0, err
}

func (j Joiner) config() session.Config {
	network := j.Network
	if network == nil {
		network = dialer{}
	}
	return session.Config{
		Identity: j.Identity, Run: nodeName(peer.IDOf(j.Identity.Public().(ed25519.PublicKey)), time.Now()), Network: network,
		Show:    func(session.Use) []byte { return j.Token.Cluster() },
		Welcome: func(p session.Peer, _ session.Use) error { return j.trust(p) },
	}
}

// trust refuses a host that does not belong to the network that the token is for.
func (j Joiner) trust(p session.Peer) error {
	if len(p.Body) < ed25519.PublicKeySize {
		return errors.New("it shows no certificate")
	}
	root := ed25519.PublicKey(p.Body[:ed25519.PublicKeySize])
	if !j.Token.Proves(root) {
		return errors.New("it belongs to another network than the one that the token is for: check the address and the token")
	}
	m, err := member.Verify(root, p.Key, p.Body[ed25519.PublicKeySize:])
	if err == nil && !m.Rights.Has(member.Admits) {
		err = errAdmitsNobody
	}
	return err
}

func (j Joiner) ask(t *session.Transport, addr netip.AddrPort) (v verdict, err error) {
	s, err := t.Ask(memberlist.Address{Addr: addr.String()}, session.Admit, streamTimeout)
	if refusal, ok := errors.AsType[*session.Refusal](err); ok {
		return v, &NotAdmittedError{addr.String(), refusal.Reason, refusal.Ours}
	}
	if err != nil {
		return v, explainJoin(addr, err)
	}
	defer s.Close()
	_ = s.SetDeadline(time.Now().Add(2 * streamTimeout)) // if this fails, so does the write
	if err = writeShort(s, application{j.Token.Prove(s.Binding), j.Nickname, time.Now().Unix()}); err == nil {
		err = readShort(s, &v)
	}
	if err != nil {
		return v, explainJoin(addr, err)
	}
	if v.Refused != "" {
		return v, &NotAdmittedError{addr.String(), v.Refused, false}
	}
	if !j.Token.Proves(v.Admission.Root) {
		return v, fmt.Errorf("%v: the answer is of another network than the one that the token is for", addr)
	}
	if _, err = member.Verify(v.Admission.Root, j.Identity.Public().(ed25519.PublicKey), v.Admission.Certificate); err != nil {
		err = fmt.Errorf("%v: the certificate that it sent: %w", addr, err)
	}
	return v, err
}

// dialer is the network of a host that only dials.
type dialer struct{}

func (dialer) FinalAdvertiseAddr(string, int) (net.IP, int, error) { return nil, 0, nil }
func (dialer) WriteTo([]byte, string) (time.Time, error)           { return time.Time{}, nil }
func (dialer) PacketCh() <-chan *memberlist.Packet                 { return nil }
func (dialer) StreamCh() <-chan net.Conn                           { return nil }
func (dialer) Shutdown() error                                     { return nil }

func (dialer) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	return net.DialTimeout("tcp", addr, timeout)
}
