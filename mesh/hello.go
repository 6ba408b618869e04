package mesh

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"fmt"
	"math"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"weft/mesh/peer"
)

// hello is a peer's greeting, the content of memberlist's node metadata. A peer that does not fit this
// mesh is refused by its greeting, before any state is merged.
type hello struct {
	Version uint         `cbor:"-"`
	V4      netip.Prefix `cbor:"3,keyasint"` // the universe's IPv4 range; zero while unknown
	// Identity and Certificate prove that the run belongs to a member.
	Identity    []byte `cbor:"4,keyasint"`
	Certificate []byte `cbor:"5,keyasint"`
	// Ceiling is the highest incarnation that this metadata is valid for. Each refutation raises the
	// incarnation by one; without a ceiling, one forged report would raise it to the top, where it
	// cannot be refuted any more.
	Ceiling uint32 `cbor:"6,keyasint"`
}

// helloWire is memberlist's node metadata, at most 512 bytes.
type helloWire struct {
	Version   uint   `cbor:"1,keyasint"` // the version of the protocol; every version reads it
	Content   []byte `cbor:"4,keyasint"`
	Signature []byte `cbor:"5,keyasint"`
}

const helloContext = "weft hello v2\x00"

// ceilingStep is by how much a ceiling exceeds the incarnation at which it is set.
const ceilingStep = 1024

// helloSigned returns what the signature of a greeting covers: also what memberlist sends beside it.
func helloSigned(content []byte, name string, at netip.AddrPort) []byte {
	return append([]byte(helloContext), encode([]any{name, at.String(), content})...)
}

// sign returns memberlist's metadata for a run at an address.
func (h hello) sign(key ed25519.PrivateKey, name string, at netip.AddrPort) []byte {
	h.Identity = key.Public().(ed25519.PublicKey)
	content := encode(h)
	return encode(helloWire{h.Version, content, ed25519.Sign(key, helloSigned(content, name, at))})
}

// openHello verifies a greeting. For a peer of another version it only returns that version, since the
// peer is refused for that.
func (m *Mesh) openHello(meta []byte, name string, at netip.AddrPort) (h hello, err error) {
	var w helloWire
	if err := decoding.Unmarshal(meta, &w); err != nil || w.Version == 0 {
		return h, fmt.Errorf("%s", unreadable)
	}
	if w.Version != Version {
		return hello{Version: w.Version}, nil
	}
	if err := decoding.Unmarshal(w.Content, &h); err != nil {
		return h, fmt.Errorf("%s: %w", unreadable, err)
	}
	id, ok := idOfNode(name)
	switch {
	case !ok || len(h.Identity) != ed25519.PublicKeySize || peer.IDOf(h.Identity) != id:
		return h, fmt.Errorf("its greeting is of another peer")
	case !ed25519.Verify(h.Identity, helloSigned(w.Content, name, at), w.Signature):
		return h, fmt.Errorf("its greeting is not signed by the peer for this name and address")
	}
	h.Version = w.Version
	return h, m.checkMember(h.Identity, h.Certificate)
}

// refuse returns why two peers cannot be in one mesh, or nil.
func (h hello) refuse(o hello) error {
	switch {
	case h.Version != o.Version:
		return fmt.Errorf("it uses protocol version %d, this peer version %d: upgrade the older one", o.Version, h.Version)
	case h.V4.IsValid() && o.V4.IsValid() && h.V4 != o.V4:
		return fmt.Errorf("its address range is %v, this peer's is %v: launch both with the same --ipalloc-range", o.V4, h.V4)
	}
	return nil
}

const unreadable = "its greeting is unreadable, or its peer did not sign it for this name and address: it runs a much newer version of Weft, or another program uses its identity"

// verified holds the greetings that were verified, by run. Most greetings arrive again and again, in each
// push/pull, and verifying one is expensive. It is safe for concurrent use.
type verified struct {
	mu     sync.Mutex
	hellos map[string]verifiedHello
}

type verifiedHello struct {
	hello hello
	meta  []byte
	at    netip.AddrPort
}

func (v *verified) get(name string, at netip.AddrPort, meta []byte) (hello, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	known, ok := v.hellos[name]
	return known.hello, ok && known.at == at && bytes.Equal(known.meta, meta)
}

// put stores a greeting. If there is no room, it drops another: that one will be verified again.
func (v *verified) put(name string, h verifiedHello) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.hellos == nil {
		v.hellos = map[string]verifiedHello{}
	}
	for other := range v.hellos {
		if len(v.hellos) < maxPeers || other == name {
			break
		}
		delete(v.hellos, other)
	}
	if old, ok := v.hellos[name]; !ok || old.hello.Ceiling <= h.hello.Ceiling {
		v.hellos[name] = h
	}
}

func (v *verified) ceiling(name string) (uint32, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	known, ok := v.hellos[name]
	return known.hello.Ceiling, ok
}

func (v *verified) forget(name string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.hellos, name)
}

// helloOf returns the verified greeting of a run.
func (m *Mesh) helloOf(name string, at netip.AddrPort, meta []byte) (hello, error) {
	if h, ok := m.verified.get(name, at, meta); ok {
		return h, nil
	}
	h, err := m.openHello(meta, name, at)
	if err == nil && h.Version == Version {
		m.verified.put(name, verifiedHello{h, bytes.Clone(meta), at})
	}
	return h, err
}

// metadata returns the greeting of this run.
func (m *Mesh) metadata() []byte {
	at := m.transport.Advertised()
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.hello.sign(m.cfg.Identity, m.name, at)
}

// raiseCeiling renews this run's greeting if an incarnation comes near the ceiling that it has
// announced.
func (m *Mesh) raiseCeiling(incarnation uint32) {
	m.mu.Lock()
	near := incarnation > m.announced.Ceiling-ceilingStep/2
	if near {
		m.hello.Ceiling = max(m.hello.Ceiling, min(incarnation, math.MaxUint32-ceilingStep)+ceilingStep)
	}
	m.mu.Unlock()
	if near {
		m.renewHello()
	}
}

// renewHello has this run's changed greeting announced, once gossip runs. It does not block.
func (m *Mesh) renewHello() {
	select {
	case m.renewal <- struct{}{}:
	default:
	}
}

// renewPause is the shortest time between two greetings of one run. Without it, a liar whose suspicions
// follow the ceiling would raise it to the top soon.
const renewPause = time.Second

// renew announces this run's changed greetings until ctx ends.
func (m *Mesh) renew(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-m.renewal:
		}
		if !m.greetingDiffers() {
			continue // Run announced it
		}
		_ = m.list.UpdateNode(updateTimeout) // gossip repeats it
		if m.greetingDiffers() {             // memberlist drops it if it refutes something meanwhile
			m.renewHello()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(renewPause):
		}
	}
}

// greetingDiffers reports whether memberlist announces an earlier greeting.
func (m *Mesh) greetingDiffers() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.announced.Ceiling < m.hello.Ceiling || m.announced.V4 != m.hello.V4
}

// greeted notes the greeting with which memberlist announces this run from now on.
func (m *Mesh) greeted(meta []byte) {
	var w helloWire
	var h hello
	if decoding.Unmarshal(meta, &w) != nil || decoding.Unmarshal(w.Content, &h) != nil {
		return // only our own greetings come here
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.announced = h
}

// addressOf returns the address of a node of memberlist.
func addressOf(n *memberlist.Node) netip.AddrPort {
	addr, _ := netip.AddrFromSlice(n.Addr)
	return netip.AddrPortFrom(addr.Unmap(), n.Port)
}
