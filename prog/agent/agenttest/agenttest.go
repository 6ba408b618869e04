// Package agenttest is shared by the tests of the agent's components: the view of a peer with a ring,
// and fakes of a component's inputs. It owns no state beyond its values. The fakes are not safe for
// concurrent use unless documented.
package agenttest

import (
	"context"
	"encoding/json"
	"sync"
	"testing"

	"weft/ipam"
	"weft/ipam/ring"
	"weft/ipam/slot"
	"weft/mesh/peer"
	"weft/mesh/secret"
	"weft/prog/agent/live"
	"weft/prog/agent/view"
	"weft/router/nft"
	"weft/router/policy"
)

// Self is the peer under test, and Node the slot of its node address.
var Self = peer.ID{1}

// Universe is the universe of all rings in these tests.
func Universe() slot.Universe { return slot.Universe{V4: slot.DefaultV4, V6: secret.ClusterID{1}.V6()} }

// View returns the view of Self: a ring shared with other, reachable peers. Its node address is the
// first slot that it owns.
func View(others ...peer.ID) *view.View {
	r := ring.Found(ring.ID{1}, [16]byte{1}, Universe(), append([]peer.ID{Self}, others...)...)
	v := &view.View{
		Snapshot: ipam.Snapshot{Ring: r, Allocations: map[string]slot.Slot{}, Lost: map[string]slot.Slot{}},
		Self:     Self, Owners: r.Owned(), Confirmed: true,
		Records: map[peer.ID]peer.Record{}, Present: map[peer.ID]bool{},
	}
	for id, ranges := range v.Owners {
		v.Records[id] = peer.Record{Nickname: "host" + id.String()[:2], Node: ranges[0].Start + 1}
		v.Present[id] = true
	}
	own := v.Records[Self]
	own.Nickname = "here"
	v.Records[Self], v.Own = own, own
	return v
}

// Set publishes a value to the readers of r, in place of the component that owns it.
func Set[T any](r live.Reader[T], value T) { r.(interface{ Set(value T) }).Set(value) }

// IPAM allocates slots in order. The zero IPAM begins with slot 2.
type IPAM struct {
	mu    sync.Mutex
	last  slot.Slot
	given map[string]slot.Slot
	// Refuse, if it is set, is the error that claims return.
	Refuse error
}

// Allocate gives key a slot, the same one every time.
func (i *IPAM) Allocate(_ context.Context, key string, _ []byte) (slot.Slot, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.given == nil {
		i.given, i.last = map[string]slot.Slot{}, 1
	}
	if _, ok := i.given[key]; !ok {
		i.last++
		i.given[key] = i.last
	}
	return i.given[key], nil
}

// Claim gives key the slot want.
func (i *IPAM) Claim(_ context.Context, key string, want slot.Slot, _ []byte) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.Refuse != nil {
		return i.Refuse
	}
	if i.given == nil {
		i.given, i.last = map[string]slot.Slot{}, 1
	}
	i.given[key] = want
	return nil
}

// Free releases the slot of key.
func (i *IPAM) Free(_ context.Context, key string) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	delete(i.given, key)
	return nil
}

// Given returns how many keys have slots.
func (i *IPAM) Given() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return len(i.given)
}

// Kernel takes policy programs, and counts them.
type Kernel struct {
	mu      sync.Mutex
	Fail    error // Enforce returns this error, if it is set
	Program policy.Program
	Loads   int
}

// Enforce takes a program.
func (k *Kernel) Enforce(p nft.Policy) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.Fail != nil {
		return k.Fail
	}
	k.Program, k.Loads = *p.Program, k.Loads+1
	return nil
}

// Settings keeps settings in memory.
type Settings struct {
	mu   sync.Mutex
	data []byte
	Fail error // SaveSettings returns this error, if it is set
}

// Settings reads the saved settings.
func (s *Settings) Settings(into any) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.data == nil {
		return nil
	}
	return json.Unmarshal(s.data, into)
}

// SaveSettings keeps v.
func (s *Settings) SaveSettings(v any) (err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.Fail != nil {
		return s.Fail
	}
	s.data, err = json.Marshal(v)
	return err
}

// Run runs a component until the test ends. The test fails if the component does.
func Run(t *testing.T, run func(context.Context) error) {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
