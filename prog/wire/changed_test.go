package wire

import (
	"crypto/ed25519"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/fxamacker/cbor/v2"

	"weft/mesh"
)

// change says what became of an item of protocol version 1 in version 2. Recorded files never change,
// nor do the meanings in them: site/docs/decisions/0018-wire.md has the reason of each change.
type change struct {
	// meaning returns today's meaning of the recorded bytes. It gets the recorded one.
	meaning func(recorded string) string
	// renew returns what an agent of today sends instead. It still has the recorded meaning.
	renew func(data []byte) []byte
}

var changed = map[string]change{
	"mesh/hello":            {refusedVersion, renewHello},
	"mesh/hello-joining":    {refusedVersion, renewHello},
	"mesh/push-pull":        {withoutRecord(""), renewPushPull},
	"mesh/push-pull-voting": {withoutRecord(""), renewPushPull},
	// Alpha is known by the record in its proof of life.
	"mesh/delta": {withoutRecord("knows alpha, number 1, running, node slot 1\n"), renewDelta},
}

func refusedVersion(string) string {
	return "let in: false\nrefused: it uses protocol version 1, this peer version 2: upgrade the older one\n"
}

// withoutRecord replaces the first line, which a record of alpha caused. Without a certificate, the
// record is refused.
func withoutRecord(instead string) func(string) string {
	return func(recorded string) string {
		_, rest, _ := strings.Cut(recorded, "\n")
		return instead + rest
	}
}

func renewHello(data []byte) []byte {
	h := must(decode[v1Hello](data))
	return greetingOf(alpha, h.V4)
}

func renewPushPull(data []byte) []byte {
	m := must(decode[map[string]cbor.RawMessage](data))
	m["peers"] = wrapped(each(wrapped(certified)))(m["peers"])
	return encode(m)
}

func renewDelta(data []byte) []byte { return within(data, 3, wrapped(each(wrapped(certified)))) }

// meaningToday returns the meaning that a recorded item has for the current code.
func meaningToday(version, name, recorded string) string {
	if c, ok := changed[name]; ok && protocol1[version] {
		return c.meaning(recorded)
	}
	return recorded
}

// What the agents of protocol version 1 sent keeps its meaning if an agent of today sends the same
// content, which it has on its disk after an upgrade.
func TestChangedItemsKeepTheirContent(t *testing.T) {
	for _, version := range versions() {
		if !protocol1[version] {
			continue
		}
		data, meaning := load(t, version)
		scene = data
		for _, name := range slices.Sorted(maps.Keys(changed)) {
			t.Run(version+"/"+name, func(t *testing.T) {
				if meaningToday(version, name, meaning[name]) == meaning[name] {
					t.Error("today's meaning is the recorded one; want no entry in changed")
				}
				if got := items()[name].read(t, changed[name].renew(data[name])); got != meaning[name] {
					t.Errorf("got the meaning\n%s\nwant as recorded\n%s", got, meaning[name])
				}
			})
		}
	}
}

// After an upgrade, an agent knows the peers whose records it has on disk. These have no certificate
// yet, and are replaced once those peers send theirs.
func TestStoredRecordsWithoutCertificateAreKept(t *testing.T) {
	for version := range protocol1 {
		data, _ := load(t, version)
		m := must(mesh.New(mesh.Config{
			Identity: key(delta), Record: record(delta), Root: rootPublic(), Certificate: certificate(delta), Store: newShelf(),
			Peers: [][]byte{data["peer/running"]}, Port: 6783, Log: quiet, Changed: nothing,
		}))
		want := "knows alpha, number 7, running, node slot 1\n"
		if got := describePeers(m); got != want {
			t.Errorf("%s: got %q, want %q", version, got, want)
		}
	}
}

// A peer with another protocol version is refused because of that version, even if the rest of
// its greeting is unreadable. So is a peer whose greeting is signed, but does not fit.
func TestDifferentProtocolVersionsAreRefused(t *testing.T) {
	data, _ := load(t, latest())
	scene = data
	first, _ := load(t, "v1")
	hello := data["mesh/hello"]
	next := within(hello, 1, func([]byte) []byte { return encode(v3Protocol + 1) })
	for name, c := range map[string]struct {
		hello []byte
		want  string
	}{
		"previous":          {first["mesh/hello"], "it uses protocol version 1, this peer version 2: upgrade the older one"},
		"next":              {next, "it uses protocol version 3, this peer version 2: upgrade the older one"},
		"next, and more":    {withFields(next), "it uses protocol version 3"},
		"next, all new":     {encode(map[int]any{1: 3, 2: "a cluster has a name now", 4: []any{1, 2}}), "it uses protocol version 3"},
		"another universe":  {greetingOf(alpha, otherUniverse), "--ipalloc-range"},
		"of another peer":   {greeting(bravo), unsigned},
		"another signature": {within(hello, 5, func([]byte) []byte { return encode(make([]byte, ed25519.SignatureSize)) }), unsigned},
		"no certificate":    {signHello(alpha, encode(v3Hello{V4: universe.V4, Identity: public(alpha), Ceiling: 1024})), unsigned},
		"no version":        {encode(map[int]any{4: []byte{1}}), unsigned},
		"no greeting":       {[]byte("hello"), unsigned},
	} {
		t.Run(name, func(t *testing.T) {
			got := readHello(t, c.hello)
			if !strings.Contains(got, c.want) || !strings.Contains(got, "let in: false") {
				t.Errorf("got %s, want it refused with %q", got, c.want)
			}
		})
	}
}

// unsigned is the reason of a refusal if the metadata in memberlist is no greeting of the named peer.
const unsigned = "its greeting is unreadable, or its peer did not sign it"
