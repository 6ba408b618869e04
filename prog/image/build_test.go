package main

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
)

// binaries builds small programs in a new folder, with the flags of `make image`.
func binaries(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for path, text := range map[string]string{
		"go.mod":               "module weft\n\ngo 1.26\n",
		"cmd/weft/main.go":     "package main\n\nfunc main() { println(0) }\n",
		"cmd/weft-cni/main.go": "package main\n\nfunc main() { println(1) }\n",
	} {
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-o", "bin/", "./...")
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "GOFLAGS=", "GOWORK=off", "GOOS=linux", "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build returned %v, want success:\n%s", err, out)
	}
	return filepath.Join(dir, "bin")
}

func TestSameSourcesGiveTheSameImage(t *testing.T) {
	var archives [2][]byte
	for i := range archives {
		path := filepath.Join(t.TempDir(), "weft-image.tar")
		var out strings.Builder
		if err := run([]string{"-o", path, "-version", "v1", "-created", "1772366400", binaries(t)}, &out); err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{path + "  localhost/weft:v1\n", "image sha256:", "linux/" + runtime.GOARCH, "." + runtime.GOARCH + ".sbom.json"} {
			if !strings.Contains(out.String(), want) {
				t.Errorf("the summary lacks %s, want it there:\n%s", want, out.String())
			}
		}
		archives[i] = read(t, path)
	}
	if !bytes.Equal(archives[0], archives[1]) {
		t.Error("the same sources, built in two folders, give different archives, want equal archives")
	}
}

func TestImageOfInvalidProgramsOrNamesIsRefused(t *testing.T) {
	good := binaries(t)
	half := t.TempDir()
	if err := os.Link(filepath.Join(good, "weft"), filepath.Join(half, "weft")); err != nil {
		t.Fatal(err)
	}
	swapped := t.TempDir()
	for _, name := range programs {
		if err := os.Link(filepath.Join(good, "weft-cni"), filepath.Join(swapped, name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name, want string
		args       []string
	}{
		{"no folder", "nothing to pack", nil},
		{"no binaries", "build the programs first", []string{t.TempDir()}},
		{"one program of two", "weft-cni: no such file", []string{half}},
		{"swapped programs", "this is weft/cmd/weft-cni, want weft/cmd/weft", []string{swapped}},
		{"a platform twice", "a second folder for linux/" + runtime.GOARCH, []string{good, good}},
		{"no registry", "want -name REGISTRY/NAME", []string{"-name", "weft", good}},
		{"no tag", "a -version of letters", []string{"-version", "release/1", good}},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "weft-image.tar")
			err := run(append([]string{"-o", path}, c.args...), io.Discard)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("the command returned the error %v, want an error with %q", err, c.want)
			}
			if _, err := os.Stat(path); err == nil {
				t.Error("the archive exists after an error, want none")
			}
		})
	}
}

func TestProgramsBuiltWithWrongSettingsAreRefused(t *testing.T) {
	for _, c := range []struct{ key, value, want string }{
		{"", "", ""},
		{"CGO_ENABLED", "1", "CGO_ENABLED=0"},
		{"GOOS", "darwin", "built for darwin"},
		{"-trimpath", "", "-trimpath"},
		{"vcs.modified", "true", "-buildvcs=false"},
	} {
		p := standIn("weft", "amd64")
		set := false
		for i, s := range p.info.Settings {
			if s.Key == c.key {
				p.info.Settings[i].Value, set = c.value, true
			}
		}
		if !set && c.key != "" {
			p.info.Settings = append(p.info.Settings, debug.BuildSetting{Key: c.key, Value: c.value})
		}
		err := p.check()
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("with the build setting %s=%s, check returned %v; want an error with %q, or none if empty", c.key, c.value, err, c.want)
		}
	}
}
