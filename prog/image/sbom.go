package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	cdx "github.com/CycloneDX/cyclonedx-go"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

const (
	sbomType  types.MediaType = "application/vnd.cyclonedx+json"
	emptyType types.MediaType = "application/vnd.oci.empty.v1+json"
	emptyJSON                 = "{}"
)

// sbom returns the CycloneDX bill of materials of one platform's image. It lists the programs and
// the Go modules from their build information. go.mod would also list modules for tests and tools.
func (o options) sbom(p platform, digest v1.Hash) ([]byte, error) {
	image := cdx.Component{
		BOMRef: "image", Type: cdx.ComponentTypeContainer, Name: "weft", Version: o.version, Licenses: ours(),
		PackageURL: "pkg:oci/weft@" + url.QueryEscape(digest.String()) + "?arch=" + p.arch + "&tag=" + o.version,
	}
	modules := map[string]cdx.Component{}
	var components []cdx.Component
	var depends []cdx.Dependency
	for _, prog := range p.programs {
		sum := sha256.Sum256(prog.data)
		components = append(components, cdx.Component{
			BOMRef: prog.name, Type: cdx.ComponentTypeApplication, Name: prog.name, Version: o.version, Licenses: ours(),
			Hashes: &[]cdx.Hash{{Algorithm: cdx.HashAlgoSHA256, Value: hex.EncodeToString(sum[:])}},
		})
		uses := []string{}
		for _, m := range prog.modules() {
			modules[m.BOMRef] = m
			uses = append(uses, m.BOMRef)
		}
		slices.Sort(uses)
		depends = append(depends, cdx.Dependency{Ref: prog.name, Dependencies: &uses})
	}
	depends = append(depends, cdx.Dependency{Ref: image.BOMRef, Dependencies: &programs})
	for _, ref := range slices.Sorted(maps.Keys(modules)) {
		components = append(components, modules[ref])
	}
	bom := cdx.NewBOM()
	bom.SerialNumber = serial(digest)
	bom.Metadata = &cdx.Metadata{
		Timestamp: o.created.Format(time.RFC3339),
		Tools:     &cdx.ToolsChoice{Components: &[]cdx.Component{{Type: cdx.ComponentTypeApplication, Name: "weft/prog/image", Version: o.version}}},
		Component: &image,
	}
	bom.Components, bom.Dependencies = &components, &depends
	var buf bytes.Buffer
	// Write an old version of the format, because many scanners do not read the newest version.
	err := cdx.NewBOMEncoder(&buf, cdx.BOMFileFormatJSON).SetPretty(true).SetEscapeHTML(false).EncodeVersion(bom, cdx.SpecVersion1_5)
	return buf.Bytes(), err
}

func ours() *cdx.Licenses {
	return &cdx.Licenses{{License: &cdx.License{ID: license}}}
}

// serial derives a UUID (version 8, RFC 9562) from the digest. A bill needs a unique serial number,
// but a random number would change with every build.
func serial(digest v1.Hash) string {
	u := sha256.Sum256([]byte("weft bill of materials " + digest.String()))
	u[6] = u[6]&0x0f | 0x80
	u[8] = u[8]&0x3f | 0x80
	return fmt.Sprintf("urn:uuid:%x-%x-%x-%x-%x", u[0:4], u[4:6], u[6:8], u[8:10], u[10:16])
}

// modules returns the program's modules and the standard library.
func (p program) modules() []cdx.Component {
	version, _, _ := strings.Cut(strings.TrimPrefix(p.info.GoVersion, "go"), " ")
	all := []cdx.Component{module(&debug.Module{Path: "stdlib", Version: version})}
	for _, m := range p.info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		all = append(all, module(m))
	}
	return all
}

func module(m *debug.Module) cdx.Component {
	// https://github.com/package-url/purl-spec: all characters except letters, digits and .-_~ are
	// escaped.
	purl := "pkg:golang/" + m.Path
	if m.Version != "" {
		purl += "@" + url.QueryEscape(m.Version)
	}
	c := cdx.Component{BOMRef: purl, Type: cdx.ComponentTypeLibrary, Name: m.Path, Version: m.Version, PackageURL: purl}
	if m.Sum != "" {
		// Write a property instead of a hash: the hash in go.sum is not the hash of a single file.
		c.Properties = &[]cdx.Property{{Name: "go.sum", Value: m.Sum}}
	}
	return c
}

// artifact is a file attached to an image: a manifest without a config, whose subject is the image
// (OCI image spec 1.1, "Guidelines for Artifact Usage").
type artifact struct {
	manifest []byte
	layer    v1.Layer
}

// attach makes an artifact from a bill of materials, with the given subject.
func attach(bill []byte, subject v1.Descriptor, annotations map[string]string) (v1.Image, error) {
	layer := static.NewLayer(bill, sbomType)
	desc, err := partial.Descriptor(layer)
	if err != nil {
		return nil, err
	}
	desc.Annotations = map[string]string{"org.opencontainers.image.title": "weft.sbom.json"}
	sum := sha256.Sum256([]byte(emptyJSON))
	data, err := json.Marshal(v1.Manifest{
		SchemaVersion: 2,
		MediaType:     types.OCIManifestSchema1,
		ArtifactType:  string(sbomType),
		Config:        v1.Descriptor{MediaType: emptyType, Size: int64(len(emptyJSON)), Digest: v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])}},
		Layers:        []v1.Descriptor{*desc},
		Subject:       &subject,
		Annotations:   annotations,
	})
	if err != nil {
		return nil, err
	}
	return partial.CompressedToImage(&artifact{manifest: data, layer: layer})
}

func (a *artifact) RawManifest() ([]byte, error)        { return a.manifest, nil }
func (a *artifact) RawConfigFile() ([]byte, error)      { return []byte(emptyJSON), nil }
func (a *artifact) MediaType() (types.MediaType, error) { return types.OCIManifestSchema1, nil }

// LayerByDigest returns the only layer, whatever the digest.
func (a *artifact) LayerByDigest(v1.Hash) (partial.CompressedLayer, error) { return a.layer, nil }
