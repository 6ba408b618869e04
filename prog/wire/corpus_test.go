package wire

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/fxamacker/cbor/v2"
)

// recorded lists the versions of the corpus, with the digest of each version's folder in testdata. A
// recorded version gets a new line, and existing lines never change: deployed agents send these
// bytes and have them on their disks.
var recorded = map[string]string{
	"v1": "2e61f076bac95f543ca556f5314940d8dd3a2b01616e06db3c50aaafd136d7b7",
	"v2": "6ba73c0f277f87a8fd0dad252b16055e7009f658121a90d81d5f01c38ba4f01e",
	"v3": "46aecf478ae5dab6a1e0e73f82c4645b9694d5f2f244152a3c8afc6e3d9b8c06",
}

var update = flag.String("update-wire", "", "record what the current code writes as a new version of the corpus, such as v2")

const howToRecord = "If the change is intended, and older agents can read it (site/docs/decisions/0018-wire.md), record it beside the old versions: " +
	"go test ./prog/wire -run TestRecordCorpus -update-wire v%d, and add the digest that this prints to `recorded`"

// item is one message or stored value of the corpus.
type item struct {
	what string // description, written to the recorded file
	// read returns what the current code decodes, or the effect of the item.
	read func(t *testing.T, data []byte) string
	// newer returns the item as a later version could write it, with unknown fields. It is nil
	// if the format has no room for fields.
	newer func(data []byte) []byte
}

// scene contains all items of the version of the item that is being read.
var scene map[string][]byte

// items returns all items of the corpus by name.
func items() map[string]item {
	all := map[string]item{}
	for _, part := range []map[string]item{stateItems, meshItems, directoryItems, documentItems, ipamItems, policyItems, diskItems, memberItems, sessionItems} {
		maps.Copy(all, part)
	}
	return all
}

// produced is what the current code writes with the keys and times of the corpus, by name.
var (
	produceOnce sync.Once
	producedAll map[string][]byte
)

func produced(t *testing.T) map[string][]byte {
	t.Helper()
	produceOnce.Do(func() {
		all := map[string][]byte{}
		for _, part := range []func(*testing.T) map[string][]byte{
			produceStates, produceDirectory, produceDocuments, produceIPAM, producePolicy, produceMesh, produceDisk, produceMembers, produceSession,
		} {
			maps.Copy(all, part(t))
		}
		producedAll = all
	})
	if producedAll == nil {
		t.Fatal("the current code produced no items: see the first test that failed")
	}
	return producedAll
}

func folder(version string) string { return filepath.Join("testdata", version) }

func number(version string) int {
	n, err := strconv.Atoi(strings.TrimPrefix(version, "v"))
	if err != nil || version != fmt.Sprintf("v%d", n) {
		panic("invalid version " + version + ": want v1, v2, …")
	}
	return n
}

// versions returns the recorded versions, the oldest first.
func versions() []string {
	return slices.SortedFunc(maps.Keys(recorded), func(a, b string) int { return cmp.Compare(number(a), number(b)) })
}

func latest() string {
	all := versions()
	return all[len(all)-1]
}

// load returns the bytes of each item of a version, and its meaning when it was recorded.
func load(t *testing.T, version string) (data map[string][]byte, meaning map[string]string) {
	t.Helper()
	data, meaning = map[string][]byte{}, map[string]string{}
	err := filepath.WalkDir(folder(version), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		rel, _ := filepath.Rel(folder(version), path)
		name := filepath.ToSlash(strings.TrimSuffix(rel, filepath.Ext(rel)))
		switch filepath.Ext(rel) {
		case ".txt":
			meaning[name] = string(text)
		case ".hex":
			data[name] = fromHex(t, string(text))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return data, meaning
}

// toHex returns the file format of a recorded item: its description, CBOR diagnostic notation
// (RFC 8949) if it is CBOR, and its bytes.
func toHex(what string, data []byte) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# %s\n", what)
	if notation, err := cbor.Diagnose(data); err == nil {
		fmt.Fprintf(&b, "# %s\n", notation)
	}
	for line := range slices.Chunk([]byte(hex.EncodeToString(data)), 96) {
		fmt.Fprintf(&b, "%s\n", line)
	}
	return b.String()
}

func fromHex(t *testing.T, text string) (data []byte) {
	t.Helper()
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		part, err := hex.DecodeString(strings.TrimSpace(line))
		if err != nil {
			t.Fatal(err)
		}
		data = append(data, part...)
	}
	return data
}

// digest returns one digest of all files of a version.
func digest(t *testing.T, version string) string {
	t.Helper()
	h := sha256.New()
	err := filepath.WalkDir(folder(version), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		fmt.Fprintf(h, "%s %d\n%s", filepath.ToSlash(path), len(text), text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// TestRecordCorpus records a new version if -update-wire is set.
func TestRecordCorpus(t *testing.T) {
	if *update == "" {
		t.Skip("this test runs only with -update-wire")
	}
	version, all := *update, produced(t)
	scene = all
	if _, err := os.Stat(folder(version)); err == nil || number(version) != len(recorded)+1 {
		t.Fatalf("%s exists already, or does not follow the latest version: recorded versions are never overwritten", version)
	}
	files := map[string]string{}
	for name, it := range items() {
		if all[name] == nil {
			t.Fatalf("no code here produces %s, which is in items; want code that does", name)
		}
		files[name+".hex"], files[name+".txt"] = toHex(it.what, all[name]), it.read(t, all[name])
	}
	for name, text := range files {
		path := filepath.Join(folder(version), filepath.FromSlash(name))
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	fmt.Printf("add to recorded, in corpus_test.go:\n\t%q: %q,\n", version, digest(t, version))
}

// Recorded files never change, even if they contain a mistake: deployed agents write these
// bytes.
func TestRecordedVersionsAreUnchanged(t *testing.T) {
	if *update != "" {
		t.Skip("recording")
	}
	entries, err := os.ReadDir("testdata")
	if err != nil {
		t.Fatal(err)
	}
	var folders []string
	for _, e := range entries {
		folders = append(folders, e.Name())
	}
	slices.SortFunc(folders, func(a, b string) int { return cmp.Compare(number(a), number(b)) })
	if !slices.Equal(folders, versions()) {
		t.Errorf("got the folders %v, want those of recorded: %v", folders, versions())
	}
	for _, version := range versions() {
		if got := digest(t, version); got != recorded[version] {
			t.Errorf("%s was changed: its digest is %s, want %s. Deployed agents send these bytes and have them on their disks: "+
				"restore the folder from git, and make the code read it", folder(version), got, recorded[version])
		}
	}
}

// The current code decodes what each recorded version wrote, with the same meaning.
func TestCurrentCodeReadsRecordedVersions(t *testing.T) {
	all := items()
	for _, version := range versions() {
		data, meaning := load(t, version)
		scene = data
		for _, name := range slices.Sorted(maps.Keys(data)) {
			t.Run(version+"/"+name, func(t *testing.T) {
				it, known := all[name]
				if !known {
					t.Fatal("no code here reads this item; want code that does, since older agents still send it")
				}
				if got, want := it.read(t, data[name]), meaningToday(version, name, meaning[name]); got != want {
					t.Errorf("got the meaning\n%s\nwant as recorded, or as in changed\n%s", got, want)
				}
			})
		}
	}
}

// The current code writes the bytes that were recorded last. A change needs a new version and a
// decision record.
func TestCurrentCodeWritesLatestVersion(t *testing.T) {
	if *update != "" {
		t.Skip("recording")
	}
	data, _ := load(t, latest())
	now := produced(t)
	for name := range items() {
		if _, ok := now[name]; !ok {
			t.Errorf("no code here produces %s, which is in items; want code that does", name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(now)) {
		switch before, ok := data[name]; {
		case !ok:
			t.Errorf("%s is not in %s. "+howToRecord, name, latest(), len(recorded)+1)
		case !bytes.Equal(before, now[name]):
			t.Errorf("%s is written as\n%swant as in %s\n%s"+howToRecord, name, toHex("now", now[name]), latest(), toHex("recorded", before), len(recorded)+1)
		}
	}
}
