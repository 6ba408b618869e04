package mesh

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"errors"
	"io"
	"log"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/memberlist"

	"weft/mesh/meshtest"
	"weft/mesh/meshtest/eventually"
	"weft/mesh/secret"
	"weft/mesh/session"
)

// older starts an agent of a version before sessions: memberlist with a key of the secret.
func older(t *testing.T, n *meshtest.Network, i int, key []byte) *memberlist.Memberlist {
	t.Helper()
	ring, err := memberlist.NewKeyring(nil, key)
	if err != nil {
		t.Fatal(err)
	}
	conf := memberlist.DefaultLANConfig()
	conf.Name, conf.Transport, conf.Keyring = idOf(i).String()+"-01", n.Join(address(i)), ring
	conf.AdvertiseAddr, conf.AdvertisePort, conf.Logger = address(i).Addr().String(), Port, log.New(io.Discard, "", 0)
	conf.Alive = olderGate{}
	list, err := memberlist.Create(conf)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// olderGate refuses other versions by their greetings, as an older agent does. Its own greeting is empty.
type olderGate struct{}

func (olderGate) NotifyAlive(n *memberlist.Node) error {
	if len(n.Meta) > 0 {
		return errors.New("another version")
	}
	return nil
}

// A host of an older version and one of today tell each other's operators to upgrade. Neither joins the other.
func TestOlderVersionIsToldToUpgrade(t *testing.T) {
	for name, s := range map[string]secret.Secret{"the same secret": {1}, "another secret": {2}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := &cluster{t, meshtest.New(60)}
				old := older(t, c.net, 2, s.GossipKey())
				a := c.start(1, nil, []string{address(2).Addr().String()})
				target := func() string {
					if err := a.Targets()[0].Err; err != nil {
						return err.Error()
					}
					return ""
				}
				eventually.True(t, 10*time.Second, "the target shows that it is older", func() bool { return strings.Contains(target(), session.OlderError{}.Error()) })
				_, err := old.Join([]string{address(1).String()})
				if err == nil || strings.Contains(err.Error(), tooOld) != (s == secret.Secret{1}) {
					t.Errorf("the older host got the error %v; want tooOld if the secret is right", err)
				}
				time.Sleep(time.Minute)
				if old.NumMembers() != 1 || len(a.Peers()) != 1 || a.Targets()[0].Connected {
					t.Errorf("the older host has %d members, today's has the peers %v; want each alone", old.NumMembers(), a.Peers())
				}
				if r := a.Rejections(); len(r) != 1 || r[0].Addr != address(2).Addr().String() || !strings.Contains(r[0].Reason, "older version") {
					t.Errorf("today's host reports %v; want that the other is older", r)
				}
				_ = old.Shutdown()
				c.end(a)
			})
		})
	}
}

// The answer to an older version is sealed anew each time, depends on nothing that host sent, and needs a
// valid key.
func FuzzSealOlder(f *testing.F) {
	f.Add(secret.Secret{1}.GossipKey(), tooOld)
	f.Add([]byte{}, "")
	f.Fuzz(func(t *testing.T, key []byte, text string) {
		if len(text) > 1<<16-1 {
			return
		}
		out := sealOlder(key, text)
		valid := len(key) == 16 || len(key) == 24 || len(key) == 32
		if (out != nil) != valid {
			t.Fatalf("a key of %d bytes gave %x; want an answer only with a valid key", len(key), out)
		}
		if !valid {
			return
		}
		if bytes.Equal(out, sealOlder(key, text)) {
			t.Error("two answers are equal; want different nonces")
		}
		block, err := aes.NewCipher(key)
		if err != nil {
			t.Fatal(err)
		}
		aead, err := cipher.NewGCM(block)
		if err != nil {
			t.Fatal(err)
		}
		plain, err := aead.Open(nil, out[6:18], out[18:], out[:5])
		if err != nil || !bytes.HasSuffix(plain, []byte(text)) {
			t.Errorf("the answer contains %q, error %v; want the text", plain, err)
		}
	})
}
