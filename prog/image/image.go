package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// A bundle is everything that is written:
//
//	index ─┬─ linux/amd64      manifest ── config, layer (weft, weft-cni)
//	       ├─ linux/arm64      manifest ── config, layer
//	       ├─ unknown/unknown  artifact ── bill of materials, subject: the first manifest
//	       └─ unknown/unknown  artifact ── bill of materials, subject: the second
//
// The index contains the bills of materials. So a signature of the index covers the bills, and a copy
// of the index has them too. Runtimes ignore the bills because of their platform.
type bundle struct {
	opts   options
	index  v1.ImageIndex
	images []platformImage
}

type platformImage struct {
	platform
	image  v1.Image
	digest v1.Hash
	sbom   []byte
}

// packed returns the number of bytes that a host downloads.
func (p platformImage) packed() (int64, error) {
	m, err := p.image.Manifest()
	if err != nil {
		return 0, err
	}
	n := m.Config.Size
	for _, l := range m.Layers {
		n += l.Size
	}
	return n, nil
}

// unknown is the platform of artifacts, which cannot be run.
var unknown = &v1.Platform{OS: "unknown", Architecture: "unknown"}

func assemble(platforms []platform, opts options) (*bundle, error) {
	b := &bundle{opts: opts}
	var images, artifacts []mutate.IndexAddendum
	for _, p := range platforms {
		img, err := opts.image(p)
		if err != nil {
			return nil, fmt.Errorf("image for %v: %w", p, err)
		}
		subject, err := partial.Descriptor(img)
		if err != nil {
			return nil, fmt.Errorf("image for %v: %w", p, err)
		}
		bill, err := opts.sbom(p, subject.Digest)
		if err != nil {
			return nil, fmt.Errorf("bill of materials for %v: %w", p, err)
		}
		attached, err := attach(bill, *subject, opts.annotations())
		if err != nil {
			return nil, fmt.Errorf("bill of materials for %v: %w", p, err)
		}
		b.images = append(b.images, platformImage{platform: p, image: img, digest: subject.Digest, sbom: bill})
		images = append(images, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: p.os, Architecture: p.arch}}})
		artifacts = append(artifacts, mutate.IndexAddendum{Add: attached, Descriptor: v1.Descriptor{Platform: unknown}})
	}
	index := mutate.AppendManifests(empty.Index, append(images, artifacts...)...)
	b.index = mutate.Annotations(index, opts.annotations()).(v1.ImageIndex)
	return b, nil
}

// annotations returns the annotations of index and manifests, which are also each image's labels.
func (o options) annotations() map[string]string {
	a := map[string]string{
		"org.opencontainers.image.title":       "weft",
		"org.opencontainers.image.description": "Encrypted mesh overlay network for containers",
		"org.opencontainers.image.version":     o.version,
		"org.opencontainers.image.licenses":    license,
		"org.opencontainers.image.created":     o.created.Format(time.RFC3339),
	}
	if o.revision != "" {
		a["org.opencontainers.image.revision"] = o.revision
	}
	return a
}

// license is the SPDX identifier of the licence of Weft's own code.
const license = "Apache-2.0"

// image returns the image for one platform.
func (o options) image(p platform) (v1.Image, error) {
	layer, err := o.layer(p)
	if err != nil {
		return nil, err
	}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err = mutate.ConfigFile(img, &v1.ConfigFile{
		OS: p.os, Architecture: p.arch,
		Created: v1.Time{Time: o.created},
		RootFS:  v1.RootFS{Type: "layers"},
		Config: v1.Config{
			// The user is a number, since there is no /etc/passwd. It is root, to change links, routes
			// and rules; the manifest drops every capability that is not needed.
			User:       "0:0",
			Entrypoint: []string{"/weft"},
			Cmd:        []string{"agent"},
			// With this PATH, `kubectl exec ds/weft -- weft status` finds the program.
			Env:        []string{"PATH=/"},
			WorkingDir: "/",
			Labels:     o.annotations(),
		},
	})
	if err != nil {
		return nil, err
	}
	img, err = mutate.Append(img, mutate.Addendum{
		Layer:   layer,
		History: v1.History{Created: v1.Time{Time: o.created}, CreatedBy: "weft/prog/image"},
	})
	if err != nil {
		return nil, err
	}
	return mutate.Annotations(img, o.annotations()).(v1.Image), nil
}

// layer returns the programs as a compressed layer.
func (o options) layer(p platform) (v1.Layer, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, prog := range p.programs {
		if err := addFile(w, prog.name, 0o755, o.created, prog.data); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	// Use gzip instead of zstd, because every runtime and registry reads gzip.
	return tarball.LayerFromOpener(
		func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil },
		tarball.WithMediaType(types.OCILayer), tarball.WithCompressionLevel(gzip.BestCompression), tarball.WithCompressedCaching)
}

// addFile adds a file owned by root. Its header does not depend on the machine that writes it.
func addFile(w *tar.Writer, name string, mode int64, at time.Time, data []byte) error {
	err := w.WriteHeader(&tar.Header{
		Typeflag: tar.TypeReg, Name: name, Mode: mode, ModTime: at, Size: int64(len(data)), Format: tar.FormatUSTAR,
	})
	if err != nil {
		return err
	}
	_, err = w.Write(data)
	return err
}
