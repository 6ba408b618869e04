// Command image packs the binaries of Weft into a container image: one OCI archive for all
// platforms, and a bill of materials for each platform. `make image` runs it.
//
// It needs no container engine, no base image and no network. Its output depends only on its input:
// the same binaries, version and time give the same bytes. It does not build the binaries. It
// refuses binaries that were built with settings that depend on the machine.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
)

// options are the image's metadata.
type options struct {
	name     name.Tag
	version  string
	revision string    // commit of the sources; empty if it is unknown
	created  time.Time // time of the sources, not of the build
}

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

func run(args []string, out io.Writer) error {
	flags := flag.NewFlagSet("image", flag.ContinueOnError)
	path := flags.String("o", "weft-image.tar", "path of the archive; the bills of materials are written beside it")
	image := flags.String("name", "localhost/weft", "the image's name, including its registry; without a tag, the version is the tag")
	version := flags.String("version", "dev", "version of the sources")
	revision := flags.String("revision", "", "commit of the sources, if known")
	created := flags.Int64("created", 0, "time of the sources as a Unix timestamp; it becomes the only timestamp in the image")
	flags.Usage = func() {
		fmt.Fprintln(flags.Output(), "usage: image [flags] FOLDER...\n\nEach FOLDER contains weft and weft-cni, built for one platform.")
		flags.PrintDefaults()
	}
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return nil
	} else if err != nil {
		return err
	}
	opts := options{version: *version, revision: *revision, created: time.Unix(*created, 0).UTC()}
	var err error
	// The image's name must contain a registry. Kubelet and containerd would expand another name to a
	// name in a public registry, and pull a missing image from there.
	tagged := *image
	if !strings.Contains(tagged[strings.LastIndex(tagged, "/")+1:], ":") {
		tagged += ":" + opts.version
	}
	if opts.name, err = name.NewTag(tagged, name.StrictValidation); err != nil {
		return fmt.Errorf("%w: want -name REGISTRY/NAME (localhost/weft, for one) and a -version of letters, digits, '.', '_' and '-'", err)
	}
	platforms, err := readPlatforms(flags.Args())
	if err != nil {
		return err
	}
	b, err := assemble(platforms, opts)
	if err != nil {
		return err
	}
	return b.write(*path, out)
}

// readPlatforms reads the platforms and sorts them by name, so that the order of the arguments does
// not matter.
func readPlatforms(dirs []string) ([]platform, error) {
	var all []platform
	for _, dir := range dirs {
		p, err := readPlatform(dir)
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(all, func(other platform) bool { return other.String() == p.String() }) {
			return nil, fmt.Errorf("%s is a second folder for %v: give one folder per platform", dir, p)
		}
		all = append(all, p)
	}
	if len(all) == 0 {
		return nil, errors.New("no folders were given, so there is nothing to pack: give a folder with weft and weft-cni for each platform")
	}
	slices.SortFunc(all, func(a, b platform) int { return strings.Compare(a.String(), b.String()) })
	return all, nil
}

// write writes the archive and the bills of materials, and prints a summary.
func (b *bundle) write(path string, out io.Writer) error {
	size, err := b.writeArchive(path)
	if err != nil {
		return err
	}
	digest, err := b.index.Digest()
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "%s  %s\n  image %s, %s\n", path, b.opts.name, digest, megabytes(size))
	for _, p := range b.images {
		sbom := strings.TrimSuffix(path, filepath.Ext(path)) + "." + p.arch + ".sbom.json"
		if err := writeFile(sbom, func(w io.Writer) error { _, err := w.Write(p.sbom); return err }); err != nil {
			return err
		}
		packed, err := p.packed()
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "  %-11v %s, %s to pull, %s unpacked\n  %11s %s\n", p.platform, p.digest, megabytes(packed), megabytes(p.unpacked()), "", sbom)
	}
	return nil
}

func megabytes(n int64) string { return fmt.Sprintf("%.1f MB", float64(n)/1e6) }

// writeFile replaces a file atomically.
func writeFile(path string, fill func(io.Writer) error) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), ".image-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) // the removal fails after the rename, as intended
	if err := errors.Join(fill(tmp), tmp.Chmod(0o644), tmp.Close()); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return os.Rename(tmp.Name(), path)
}
