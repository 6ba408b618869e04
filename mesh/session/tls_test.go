package session

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/big"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/memberlist"

	"weft/mesh/meshtest"
)

// The key exchange is X25519MLKEM768, whatever GODEBUG says.
func TestKeyExchangeIsHybrid(t *testing.T) {
	const child = "WEFT_TEST_HYBRID"
	if os.Getenv(child) == "" {
		for _, debug := range []string{"", "tlsmlkem=0", "tlsmlkem=0,tlssecpmlkem=0", "tlssecpmlkem=0", "tlsmlkem=1,tlsmlkem=0", "tlsmlkem=0,http2debug=1", "fips140=on,tlsmlkem=0"} {
			c := exec.Command(os.Args[0], "-test.run=^TestKeyExchangeIsHybrid$", "-test.v")
			c.Env = append(os.Environ(), child+"=1", "GODEBUG="+debug)
			if out, err := c.CombinedOutput(); err != nil || !strings.Contains(string(out), "PASS") {
				t.Errorf("with GODEBUG=%q: %v\n%s", debug, err, out)
			}
		}
		return
	}
	a, b := pair(t)
	for _, c := range []*tls.Conn{a, b} {
		s := c.ConnectionState()
		if s.CurveID != tls.X25519MLKEM768 || s.Version != tls.VersionTLS13 || s.NegotiatedProtocol != protocol || s.DidResume {
			t.Errorf("negotiated %v in version %#x, protocol %q, resumed: %v; want X25519MLKEM768 in TLS 1.3", s.CurveID, s.Version, s.NegotiatedProtocol, s.DidResume)
		}
	}
}

// An end that speaks TLS in any other way is refused, whether it dials or accepts.
func TestOtherWaysOfTLSAreRefused(t *testing.T) {
	for name, change := range map[string]func(*testing.T, *tls.Config){
		"only X25519":      func(_ *testing.T, c *tls.Config) { c.CurvePreferences = []tls.CurveID{tls.X25519} },
		"only P-256":       func(_ *testing.T, c *tls.Config) { c.CurvePreferences = []tls.CurveID{tls.CurveP256} },
		"another hybrid":   func(_ *testing.T, c *tls.Config) { c.CurvePreferences = []tls.CurveID{tls.SecP256r1MLKEM768} },
		"TLS 1.2":          func(_ *testing.T, c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 },
		"no protocol":      func(_ *testing.T, c *tls.Config) { c.NextProtos = nil },
		"another protocol": func(_ *testing.T, c *tls.Config) { c.NextProtos = []string{"h2"} },
		"no certificate":   func(_ *testing.T, c *tls.Config) { c.Certificates = nil },
		"two certificates": func(_ *testing.T, c *tls.Config) {
			c.Certificates[0].Certificate = slices.Repeat(c.Certificates[0].Certificate, 2)
		},
		"another kind of key": func(t *testing.T, c *tls.Config) { c.Certificates = []tls.Certificate{ecdsaCertificate(t)} },
		"a stolen certificate": func(_ *testing.T, c *tls.Config) { // the key does not belong to it
			c.Certificates[0].PrivateKey = meshtest.Identity(9)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := meshtest.New(1)
				a, other := start(t, n, 1, 1), n.Join(meshtest.Address(2))
				id, err := newIdentity(meshtest.Identity(2))
				if err != nil {
					t.Fatal(err)
				}
				conf := id.config()
				change(t, conf)
				raw, err := other.DialTimeout(a.addr.String(), time.Second)
				if err != nil {
					t.Fatal(err)
				}
				_ = raw.SetDeadline(time.Now().Add(2 * proofTimeout))
				c := tls.Client(raw, conf)
				if err := c.Handshake(); err == nil {
					if err = (greeting{Run: runName(2, 1), Use: Request, Index: 7}).send(c); err == nil {
						_, err = receive(c)
					}
					if err == nil {
						t.Error("a dialing host got a welcome; want it refused")
					}
				}
				raw.Close()
				go func() {
					raw := <-other.StreamCh()
					c := tls.Server(raw, conf)
					if c.HandshakeContext(context.Background()) == nil {
						_, _ = receive(c)
						_ = greeting{Run: runName(2, 1), Index: 7}.send(c)
						_, _ = receive(c)
					}
					raw.Close()
				}()
				if _, err := a.Ask(memberlist.Address{Addr: meshtest.Address(2).String()}, Request, time.Second); err == nil {
					t.Error("an accepting host got a stream; want it refused")
				}
				if len(a.served)+len(a.table.byIndex) > 0 {
					t.Error("a refused host left a stream or keys; want neither")
				}
				_ = other.Shutdown()
				stop(t, a)
			})
		})
	}
}

func ecdsaCertificate(t *testing.T) tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// A stream that starts as one of an older version reaches Older. A dialed host that answers as an older
// version does is reported as such.
func TestAgentOfOlderVersionIsRecognized(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := meshtest.New(1)
		a := start(t, n, 1, 1, func(c *Config) {
			c.Older = func(c net.Conn) { _, _ = c.Write([]byte("too old")) }
		})
		old := n.Join(meshtest.Address(2))
		raw, err := old.DialTimeout(a.addr.String(), time.Second)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = raw.Write([]byte{firstOlder})
		told := make([]byte, 7)
		if _, err := raw.Read(told); err != nil || string(told) != "too old" {
			t.Errorf("an older agent is told %q, error %v; want what Older says", told, err)
		}
		raw.Close()
		synctest.Wait()
		if r := a.refusals(); len(r) != 1 || r[0] != (OlderError{}).Error() {
			t.Errorf("the refusals %q are reported; want one, for the version", r)
		}
		go func() {
			raw := <-old.StreamCh()
			_, _ = raw.Read(make([]byte, 5000))
			_, _ = raw.Write(append([]byte{firstOlder, 0, 0, 0, 60}, make([]byte, 60)...))
			raw.Close()
		}()
		_, err = a.Ask(memberlist.Address{Addr: meshtest.Address(2).String()}, Gossip, time.Second)
		if _, ok := errors.AsType[OlderError](err); !ok {
			t.Errorf("dialing an older agent returned %v; want OlderError", err)
		}
		_ = old.Shutdown()
		stop(t, a)
	})
}

// The identity in a certificate is the key that signs, whatever else the certificate says.
func TestKeyOfReturnsTheKeyThatSigned(t *testing.T) {
	a, b := pair(t)
	for i, c := range []*tls.Conn{b, a} {
		if key, err := keyOf(c.ConnectionState()); err != nil || !key.Equal(meshtest.Identity(i+1).Public().(ed25519.PublicKey)) {
			t.Errorf("the other end of stream %d has key %x, error %v; want the one of its identity", i, key, err)
		}
	}
}
