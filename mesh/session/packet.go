package session

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/replay"

	"weft/mesh/peer"
)

// A packet has a type byte, the receiver's index of the session (4 bytes), a counter (8 bytes, the nonce),
// and the content, sealed with AES-256-GCM. All of the header is authenticated.
const (
	packetType = 0x57 // no packet of memberlist starts with it, encrypted or not
	packetHead = 1 + 4 + 8
	// Overhead is how many bytes longer a packet is than its content.
	Overhead = packetHead + 16

	maxCounter = 1 << 48 // a session seals no more packets; long before that, another stream brought new keys
)

var errNoKeys = errors.New("no session with that run yet")

// keys are the keys of one session's packets.
type keys struct {
	peer    peer.ID
	index   uint32 // under which this end receives
	in, out cipher.AEAD
	since   time.Time // when the session stood; under the table's lock
	// table.welcome sets these, under the table's lock.
	run    string // empty: the other end is not welcome yet
	from   Peer
	theirs uint32 // under which the other end receives

	mu       sync.Mutex
	counter  uint64
	replayed replay.Filter
	doubted  bool // a later run of the peer has a session, and this one sent nothing since
}

// newKeys derives the packet keys of a stream. The two directions have different keys.
func newKeys(s tls.ConnectionState, p Peer, dialed bool) (*keys, error) {
	material, err := exported(s, "EXPORTER-weft-packets-v2", 64)
	if err != nil {
		return nil, err
	}
	one, two := material[:32], material[32:]
	if !dialed {
		one, two = two, one
	}
	k := &keys{peer: p.ID}
	if k.out, err = newAEAD(one); err == nil {
		k.in, err = newAEAD(two)
	}
	return k, err
}

func newAEAD(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

func nonceOf(counter uint64) []byte {
	return binary.BigEndian.AppendUint64(make([]byte, 4, 12), counter)
}

// seal returns a packet of a type.
func (k *keys) seal(kind byte, content []byte) ([]byte, error) {
	k.mu.Lock()
	counter := k.counter
	k.counter++
	k.mu.Unlock()
	if counter >= maxCounter {
		return nil, errNoKeys
	}
	out := make([]byte, 0, Overhead+len(content))
	out = append(out, kind)
	out = binary.BigEndian.AppendUint32(out, k.theirs)
	out = binary.BigEndian.AppendUint64(out, counter)
	return k.out.Seal(out, nonceOf(counter), content, out), nil
}

// open returns the content of a packet, once.
func (k *keys) open(packet []byte) ([]byte, bool) {
	counter := binary.BigEndian.Uint64(packet[5:])
	content, err := k.in.Open(nil, nonceOf(counter), packet[packetHead:], packet[:packetHead])
	if err != nil {
		return nil, false
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.replayed.ValidateCounter(counter, maxCounter) {
		return nil, false
	}
	k.doubted = false
	return content, true
}

// These bounds limit the sessions that a peer can make this host keep.
const (
	maxSessions = 3  // per run: packets of an older session may still be on their way
	maxFresh    = 32 // per run, while they are younger than lastWord
	maxRuns     = 8  // per peer: twins, and runs that crashed
	// maxKept is for all peers together: a member that may admit others can invent peers.
	maxKept = 1 << 14
)

// table has the sessions of all runs.
type table struct {
	mu      sync.Mutex
	byIndex map[uint32]*keys
	byRun   map[string][]*keys // oldest first
}

// reserve gives keys an index. Their packets are received once the other end is welcome.
func (t *table) reserve(k *keys) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for k.index == 0 || t.byIndex[k.index] != nil {
		k.index = rand.Uint32()
	}
	t.byIndex[k.index] = k
}

// welcome lets the packets of keys in: this end has accepted the other one as a run.
func (t *table) welcome(k *keys, p Peer, theirs uint32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	k.run, k.from, k.theirs = p.Run, p, theirs
}

// release undoes reserve. It reports false if the keys were dropped meanwhile.
func (t *table) release(k *keys) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.byIndex[k.index] != k {
		return false
	}
	delete(t.byIndex, k.index)
	return true
}

// lastWord is how long the keys of an earlier run of a peer live on without a packet from it.
const lastWord = time.Second

// install makes keys the ones that packets to their run are sealed with. Earlier runs of the same peer
// have probably ended, so their keys are deleted unless they go on sending: then the peer's identity was
// copied, and both run. It reports false if the keys were dropped meanwhile: the peer was expelled, for
// example.
func (t *table) install(k *keys) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.byIndex[k.index] != k {
		return false
	}
	runs, earlier, prefix := 0, false, k.peer.String()+"-"
	for run, list := range t.byRun {
		if run == k.run || !strings.HasPrefix(run, prefix) {
			continue
		}
		if runs++; runs >= maxRuns {
			t.drop(run)
			continue
		}
		for _, old := range list {
			if run < k.run {
				old.doubt()
				earlier = true
			}
		}
	}
	if earlier {
		time.AfterFunc(lastWord, func() {
			t.dropAll(func(old *keys) bool { return old.peer == k.peer && old.run < k.run && old.isDoubted() })
		})
	}
	k.since = time.Now()
	list := t.byRun[k.run]
	list = append(list, k)
	// If both ends open many streams at once, they install the keys in different orders, and each seals
	// with those that it installed last.
	for len(list) > maxFresh || len(list) > maxSessions && k.since.Sub(list[0].since) > lastWord {
		delete(t.byIndex, list[0].index)
		list = slices.Delete(list, 0, 1)
	}
	t.byRun[k.run] = list
	for run := range t.byRun { // in random order, and most runs are invented; the others get new keys soon
		if len(t.byIndex) <= maxKept {
			break
		}
		if run != k.run {
			t.drop(run)
		}
	}
	return true
}

func (k *keys) doubt() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.doubted = true
}

func (k *keys) isDoubted() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.doubted
}

// drop deletes the sessions of a run. The caller holds the lock.
func (t *table) drop(run string) {
	for _, k := range t.byRun[run] {
		delete(t.byIndex, k.index)
	}
	delete(t.byRun, run)
}

// dropAll deletes the sessions that a function selects.
func (t *table) dropAll(which func(*keys) bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i, k := range t.byIndex {
		if which(k) {
			delete(t.byIndex, i)
		}
	}
	for run, list := range t.byRun {
		if list = slices.DeleteFunc(list, which); len(list) == 0 {
			delete(t.byRun, run)
		} else {
			t.byRun[run] = list
		}
	}
}

// to returns the keys for packets to a run; nil if there is no session.
func (t *table) to(run string) *keys {
	t.mu.Lock()
	defer t.mu.Unlock()
	list := t.byRun[run]
	if len(list) == 0 {
		return nil
	}
	return list[len(list)-1]
}

// of returns the keys under which a packet was sealed; nil if they are unknown. It reports whether their
// packets may come in.
func (t *table) of(packet []byte) (k *keys, welcome bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	k = t.byIndex[binary.BigEndian.Uint32(packet[1:])]
	return k, k != nil && k.run != ""
}

// pace lets something happen at most once per interval.
type pace struct {
	mu   sync.Mutex
	next time.Time
}

func (p *pace) allow(now time.Time, interval time.Duration) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if now.Before(p.next) {
		return false
	}
	p.next = now.Add(interval)
	return true
}
