// Mkimage writes a one-layer OCI image archive for "ctr images import", without a daemon or a base
// image.
//
//	mkimage -ref weft.lab/pause:1 -entrypoint /pause -o pause.tar bin/pause:/pause
//
// Each argument is SRC:DST for a file, ->TARGET:DST for a symbolic link, or DIR/ for an empty folder.
// Files belong to root and have no date, so that the image is reproducible.
package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"os"
	"path"
	"runtime"
	"strings"
)

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int               `json:"size"`
	Platform    map[string]string `json:"platform,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// archive is an OCI layout that is being written.
type archive struct {
	bytes.Buffer
	tar *tar.Writer
}

func main() {
	log.SetFlags(0)
	log.SetPrefix("mkimage: ")
	refs := flag.String("ref", "", "names of the image with tags, comma separated")
	out := flag.String("o", "image.tar", "path of the archive")
	entry := flag.String("entrypoint", "", "entrypoint, comma separated")
	cmd := flag.String("cmd", "", "arguments of the entrypoint, comma separated")
	flag.Parse()
	if *refs == "" {
		log.Fatal("-ref is missing: give a name for the image")
	}
	b, err := image(split(*refs), split(*entry), split(*cmd), flag.Args())
	if err == nil {
		err = os.WriteFile(*out, b, 0o644)
	}
	if err != nil {
		log.Fatal(err)
	}
}

func image(refs, entry, cmd, files []string) ([]byte, error) {
	layer, err := layerTar(files)
	if err != nil {
		return nil, err
	}
	a := &archive{}
	a.tar = tar.NewWriter(a)
	if err := a.put("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)); err != nil {
		return nil, err
	}
	layerDesc, err := a.blob("application/vnd.oci.image.layer.v1.tar", layer)
	if err != nil {
		return nil, err
	}
	config, err := a.json("application/vnd.oci.image.config.v1+json", map[string]any{
		"architecture": runtime.GOARCH,
		"os":           "linux",
		"config": map[string]any{
			"Env":        []string{"PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
			"Entrypoint": entry,
			"Cmd":        cmd,
			"WorkingDir": "/",
		},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{layerDesc.Digest}},
	})
	if err != nil {
		return nil, err
	}
	const manifestType = "application/vnd.oci.image.manifest.v1+json"
	manifest, err := a.json(manifestType, map[string]any{
		"schemaVersion": 2, "mediaType": manifestType, "config": config, "layers": []descriptor{layerDesc},
	})
	if err != nil {
		return nil, err
	}
	manifest.Platform = map[string]string{"architecture": runtime.GOARCH, "os": "linux"}
	var manifests []descriptor // index entries: the same manifest under each name
	for _, ref := range refs {
		manifest.Annotations = map[string]string{"io.containerd.image.name": ref}
		manifests = append(manifests, manifest)
	}
	index, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": manifests,
	})
	if err != nil {
		return nil, err
	}
	if err := a.put("index.json", index); err != nil {
		return nil, err
	}
	err = a.tar.Close() // Close writes the archive's trailer
	return a.Bytes(), err
}

func (a *archive) put(name string, b []byte) error {
	if err := a.tar.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(b))}); err != nil {
		return err
	}
	_, err := a.tar.Write(b)
	return err
}

func (a *archive) blob(mediaType string, b []byte) (descriptor, error) {
	sum := sha256.Sum256(b)
	name := hex.EncodeToString(sum[:])
	return descriptor{MediaType: mediaType, Digest: "sha256:" + name, Size: len(b)}, a.put("blobs/sha256/"+name, b)
}

func (a *archive) json(mediaType string, v any) (descriptor, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return descriptor{}, err
	}
	return a.blob(mediaType, b)
}

// layer is a file system that is being written. Folders come before their content.
type layer struct {
	tar  *tar.Writer
	made map[string]bool
}

func layerTar(args []string) ([]byte, error) {
	var buf bytes.Buffer
	l := layer{tar: tar.NewWriter(&buf), made: map[string]bool{".": true}}
	for _, arg := range args {
		if err := l.add(arg); err != nil {
			return nil, err
		}
	}
	err := l.tar.Close() // Close writes the archive's trailer
	return buf.Bytes(), err
}

func (l layer) add(arg string) error {
	if dir, ok := strings.CutSuffix(arg, "/"); ok {
		return l.mkdir(strings.Trim(dir, "/"))
	}
	i := strings.LastIndex(arg, ":")
	if i < 0 {
		return fmt.Errorf("invalid argument: want SRC:DST, got %q", arg)
	}
	src, dst := arg[:i], strings.TrimPrefix(arg[i+1:], "/")
	if l.made[dst] {
		return fmt.Errorf("%s is given twice", dst)
	}
	if err := l.mkdir(path.Dir(dst)); err != nil {
		return err
	}
	l.made[dst] = true
	if target, ok := strings.CutPrefix(src, "->"); ok {
		return l.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: dst, Linkname: target, Mode: 0o777})
	}
	b, err := os.ReadFile(src)
	if err != nil {
		return err
	}
	st, err := os.Stat(src)
	if err != nil {
		return err
	}
	if err := l.tar.WriteHeader(&tar.Header{Name: dst, Mode: int64(st.Mode().Perm()), Size: int64(len(b))}); err != nil {
		return err
	}
	_, err = l.tar.Write(b)
	return err
}

func (l layer) mkdir(dir string) error {
	if l.made[dir] {
		return nil
	}
	if err := l.mkdir(path.Dir(dir)); err != nil {
		return err
	}
	l.made[dir] = true
	mode := int64(0o755)
	if dir == "tmp" {
		mode = 0o1777
	}
	return l.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: mode})
}

func split(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, ",")
}
