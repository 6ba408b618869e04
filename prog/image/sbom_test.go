package main

import (
	"bytes"
	"io"
	"path/filepath"
	"testing"

	cdx "github.com/CycloneDX/cyclonedx-go"
	"github.com/google/go-cmp/cmp"
)

// The bill that is attached to an image in the archive equals the file beside the archive.
func TestBillsOfMaterialsAreAttachedToTheirImages(t *testing.T) {
	path := written(t, testOptions(t))
	idx, m := index(t, path)
	for i, p := range standIns() {
		desc := m.Manifests[len(m.Manifests)/2+i]
		if got := desc.Platform.String(); got != "unknown/unknown" || desc.ArtifactType != string(sbomType) {
			t.Errorf("the bill's manifest has artifact type %s and platform %s, want %s and unknown/unknown: a runtime could take it for an image", desc.ArtifactType, got, sbomType)
		}
		img, err := idx.Image(desc.Digest)
		if err != nil {
			t.Fatal(err)
		}
		manifest, err := img.Manifest()
		if err != nil {
			t.Fatal(err)
		}
		if manifest.Subject == nil || manifest.Subject.Digest != m.Manifests[i].Digest {
			t.Errorf("the bill's subject is %v, want the image of %v", manifest.Subject, p)
		}
		layers, err := img.Layers()
		if err != nil || len(layers) != 1 {
			t.Fatalf("got layers %v, error %v; want one layer", layers, err)
		}
		r, err := layers[0].Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		attached, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if beside := read(t, filepath.Dir(path), "weft-image."+p.arch+".sbom.json"); !bytes.Equal(attached, beside) {
			t.Errorf("the bills in and beside the archive differ, want equal bills:\n%s\n%s", attached, beside)
		}
	}
}

func TestBillOfMaterialsNamesEveryModule(t *testing.T) {
	path := written(t, testOptions(t))
	var bom cdx.BOM
	if err := cdx.NewBOMDecoder(bytes.NewReader(read(t, filepath.Dir(path), "weft-image.amd64.sbom.json")), cdx.BOMFileFormatJSON).Decode(&bom); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, c := range *bom.Components {
		got = append(got, string(c.Type)+" "+c.BOMRef)
	}
	want := []string{
		"application weft",
		"application weft-cni",
		"library pkg:golang/example.com/new@v2.0.0%2Bincompatible",
		"library pkg:golang/example.com/shared@v1.0.0",
		"library pkg:golang/stdlib@1.26.8",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the components of the bill of materials differ (-want +got):\n%s", diff)
	}
	uses := map[string][]string{}
	for _, d := range *bom.Dependencies {
		uses[d.Ref] = *d.Dependencies
	}
	if diff := cmp.Diff(map[string][]string{
		"image":    {"weft", "weft-cni"},
		"weft":     {"pkg:golang/example.com/new@v2.0.0%2Bincompatible", "pkg:golang/example.com/shared@v1.0.0", "pkg:golang/stdlib@1.26.8"},
		"weft-cni": {"pkg:golang/example.com/shared@v1.0.0", "pkg:golang/stdlib@1.26.8"},
	}, uses); diff != "" {
		t.Errorf("the dependencies in the bill of materials differ (-want +got):\n%s", diff)
	}
}
