package main

import (
	"archive/tar"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
)

// writeArchive writes the image as an OCI image layout in a tar file, and returns its size.
func (b *bundle) writeArchive(path string) (size int64, err error) {
	dir, err := os.MkdirTemp("", "weft-image-*")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	// The outer index has only one entry: importers that expect a single image find it without a name.
	top := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: b.index, Descriptor: v1.Descriptor{
		Annotations: map[string]string{
			"io.containerd.image.name":          b.opts.name.Name(),   // ctr and podman read the name here
			"org.opencontainers.image.ref.name": b.opts.name.TagStr(), // skopeo and oras read the tag here
		},
	}})
	if _, err := layout.Write(dir, top); err != nil {
		return 0, fmt.Errorf("laying out the image: %w", err)
	}
	err = writeFile(path, func(w io.Writer) error {
		counted := &counter{Writer: w}
		err := b.pack(counted, dir)
		size = counted.n
		return err
	})
	return size, err
}

// pack writes the files of a folder to a tar archive. fs.WalkDir sorts by name, so the order does
// not depend on the file system.
func (b *bundle) pack(w io.Writer, dir string) error {
	t := tar.NewWriter(w)
	files := os.DirFS(dir)
	err := fs.WalkDir(files, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := fs.ReadFile(files, filepath.ToSlash(path))
		if err != nil {
			return err
		}
		return addFile(t, path, 0o644, b.opts.created, data)
	})
	if err != nil {
		return err
	}
	return t.Close()
}

type counter struct {
	io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.Writer.Write(p)
	c.n += int64(n)
	return n, err
}
