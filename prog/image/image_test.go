package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

var created = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func testOptions(t *testing.T) options {
	t.Helper()
	tag, err := name.NewTag("localhost/weft:v1.2.3", name.StrictValidation)
	if err != nil {
		t.Fatal(err)
	}
	return options{name: tag, version: "v1.2.3", revision: "c0ffee", created: created}
}

// standIn returns a program with build information but without code.
func standIn(name, arch string, deps ...*debug.Module) program {
	return program{name: name, data: bytes.Repeat([]byte(name+" for "+arch+"\n"), 1000), info: &debug.BuildInfo{
		GoVersion: "go1.26.8 X:nothing", Path: "weft/cmd/" + name, Deps: deps,
		Settings: []debug.BuildSetting{{Key: "-trimpath", Value: "true"}, {Key: "CGO_ENABLED", Value: "0"}, {Key: "GOARCH", Value: arch}, {Key: "GOOS", Value: "linux"}},
	}}
}

func standIns() []platform {
	var all []platform
	for _, arch := range []string{"amd64", "arm64"} {
		all = append(all, platform{os: "linux", arch: arch, programs: []program{
			standIn("weft", arch,
				&debug.Module{Path: "example.com/shared", Version: "v1.0.0", Sum: "h1:sum"},
				&debug.Module{Path: "example.com/old", Version: "v1.0.0", Replace: &debug.Module{Path: "example.com/new", Version: "v2.0.0+incompatible"}}),
			standIn("weft-cni", arch, &debug.Module{Path: "example.com/shared", Version: "v1.0.0", Sum: "h1:sum"}),
		}})
	}
	return all
}

// written writes an archive with the programs of standIns, and returns its path.
func written(t *testing.T, opts options) string {
	t.Helper()
	b, err := assemble(standIns(), opts)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "weft-image.tar")
	if err := b.write(path, io.Discard); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestSameProgramsGiveTheSameArchive(t *testing.T) {
	opts := testOptions(t)
	one, two := written(t, opts), written(t, opts)
	for _, file := range []string{"weft-image.tar", "weft-image.amd64.sbom.json", "weft-image.arm64.sbom.json"} {
		a, b := read(t, filepath.Dir(one), file), read(t, filepath.Dir(two), file)
		if !bytes.Equal(a, b) {
			t.Errorf("%s differs between two runs, want the same bytes: digests %x and %x", file, sha256.Sum256(a), sha256.Sum256(b))
		}
	}
	opts.created = opts.created.Add(time.Second)
	if bytes.Equal(read(t, filepath.Dir(one), "weft-image.tar"), read(t, filepath.Dir(written(t, opts)), "weft-image.tar")) {
		t.Error("with another -created the archive has the same bytes, want other bytes, else this test proves nothing")
	}
}

func read(t *testing.T, path ...string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(path...))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// unpack extracts the archive, and checks the digest in each blob's name.
func unpack(t *testing.T, archive string) layout.Path {
	t.Helper()
	dir := t.TempDir()
	for r := tar.NewReader(bytes.NewReader(read(t, archive))); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(data)
		if blob, name := filepath.Split(h.Name); blob != "" && (blob != "blobs/sha256/" || name != hex.EncodeToString(sum[:])) {
			t.Errorf("the content of blob %s has the digest %x, want the digest in its name", h.Name, sum)
		}
		path := filepath.Join(dir, h.Name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	l, err := layout.FromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// index returns the single image index of an archive, with its manifest.
func index(t *testing.T, archive string) (v1.ImageIndex, *v1.IndexManifest) {
	t.Helper()
	top, err := unpack(t, archive).ImageIndex()
	if err != nil {
		t.Fatal(err)
	}
	m, err := top.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"io.containerd.image.name": "localhost/weft:v1.2.3", "org.opencontainers.image.ref.name": "v1.2.3"}
	if len(m.Manifests) != 1 || !cmp.Equal(m.Manifests[0].Annotations, want) {
		t.Fatalf("an importer finds the entries %+v, want one with the annotations %v", m.Manifests, want)
	}
	inner, err := top.ImageIndex(m.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	if m, err = inner.IndexManifest(); err != nil {
		t.Fatal(err)
	}
	return inner, m
}

func TestIndexHasOneImagePerPlatform(t *testing.T) {
	idx, m := index(t, written(t, testOptions(t)))
	if len(m.Manifests) != 4 {
		t.Fatalf("got %d manifests, want 2 images and their 2 bills of materials: %+v", len(m.Manifests), m.Manifests)
	}
	for i, p := range standIns() {
		desc := m.Manifests[i]
		if desc.Platform == nil || desc.Platform.String() != p.String() {
			t.Fatalf("manifest %d is for %v, want %v", i, desc.Platform, p)
		}
		img, err := idx.Image(desc.Digest)
		if err != nil {
			t.Fatal(err)
		}
		if err := validate.Image(img); err != nil {
			t.Error(err)
		}
		config, err := img.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		want := v1.Config{User: "0:0", Entrypoint: []string{"/weft"}, Cmd: []string{"agent"}, Env: []string{"PATH=/"}, WorkingDir: "/", Labels: map[string]string{
			"org.opencontainers.image.title":       "weft",
			"org.opencontainers.image.description": "Encrypted mesh overlay network for containers",
			"org.opencontainers.image.version":     "v1.2.3",
			"org.opencontainers.image.revision":    "c0ffee",
			"org.opencontainers.image.licenses":    "Apache-2.0",
			"org.opencontainers.image.created":     "2026-03-01T12:00:00Z",
		}}
		if diff := cmp.Diff(want, config.Config); diff != "" {
			t.Errorf("%v: the image's configuration differs (-want +got):\n%s", p, diff)
		}
		if config.OS != p.os || config.Architecture != p.arch || !config.Created.Equal(created) {
			t.Errorf("the config is for %s/%s, created %v; want %v, created %v", config.OS, config.Architecture, config.Created, p, created)
		}
		checkLayer(t, img, p)
	}
}

// checkLayer checks that the image contains the programs and nothing else.
func checkLayer(t *testing.T, img v1.Image, p platform) {
	t.Helper()
	layers, err := img.Layers()
	if err != nil || len(layers) != 1 {
		t.Fatalf("got layers %v, error %v; want one layer", layers, err)
	}
	packed, err := layers[0].Compressed()
	if err != nil {
		t.Fatal(err)
	}
	defer packed.Close()
	plain, err := gzip.NewReader(packed)
	if err != nil {
		t.Fatal(err)
	}
	r := tar.NewReader(plain)
	for _, want := range p.programs {
		h, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if h.Name != want.name || !bytes.Equal(data, want.data) {
			t.Errorf("%v: got file %s of %d bytes, want %s of %d bytes", p, h.Name, len(data), want.name, len(want.data))
		}
		if h.Typeflag != tar.TypeReg || h.Mode != 0o755 || h.Uid != 0 || h.Gid != 0 || h.Uname != "" || !h.ModTime.Equal(created) {
			t.Errorf("%v: %s has the header %+v, want a file of root with mode 755 and the time of -created", p, h.Name, h)
		}
	}
	if h, err := r.Next(); err != io.EOF {
		t.Errorf("%v: want no more files after the programs, got %+v, error %v", p, h, err)
	}
}
