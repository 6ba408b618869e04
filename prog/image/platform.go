package main

import (
	"bytes"
	"debug/buildinfo"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
)

// programs are the files of the image, in the order of its layer. No other files are needed. The
// image runs as user 0, so it has no /etc/passwd. The cluster's certificates come with the service
// account. Go reads /etc/hosts and /etc/resolv.conf, which the runtime mounts, and needs no
// nsswitch.conf. The runtime creates mount points before it makes the root read-only. A shell would
// only help intruders.
var programs = []string{"weft", "weft-cni"}

// program is a binary with its Go build information.
type program struct {
	name string
	data []byte
	info *debug.BuildInfo
}

// platform is an operating system and architecture, with the programs for it.
type platform struct {
	os, arch string
	programs []program
}

func (p platform) String() string { return p.os + "/" + p.arch }

// unpacked returns the size of the programs on a host's disk.
func (p platform) unpacked() (n int64) {
	for _, prog := range p.programs {
		n += int64(len(prog.data))
	}
	return n
}

// readPlatform reads the programs in a folder, and the platform for which they were built.
func readPlatform(dir string) (platform, error) {
	var p platform
	for _, name := range programs {
		path := filepath.Join(dir, name)
		data, err := os.ReadFile(path)
		if err != nil {
			return p, fmt.Errorf("%w: build the programs first, as `make image` does", err)
		}
		info, err := buildinfo.Read(bytes.NewReader(data))
		if err != nil {
			return p, fmt.Errorf("%s: %w", path, err)
		}
		prog := program{name: name, data: data, info: info}
		if err := prog.check(); err != nil {
			return p, fmt.Errorf("%s: %w", path, err)
		}
		os, arch := prog.setting("GOOS"), prog.setting("GOARCH")
		if p.os != "" && (p.os != os || p.arch != arch) {
			return p, fmt.Errorf("%s is built for %s/%s, but the other program in its folder is built for %v", path, os, arch, p)
		}
		p.os, p.arch = os, arch
		p.programs = append(p.programs, prog)
	}
	return p, nil
}

// setting returns a build setting of the binary; empty if it is not recorded.
func (p program) setting(key string) string {
	for _, s := range p.info.Settings {
		if s.Key == key {
			return s.Value
		}
	}
	return ""
}

// check returns an error if the program cannot be in the image. It must be the program of its file
// name, need no shared libraries, and not depend on the machine where it was built.
func (p program) check() error {
	if want := "weft/cmd/" + p.name; p.info.Path != want {
		return fmt.Errorf("this is %s, want %s", p.info.Path, want)
	}
	if os := p.setting("GOOS"); os != "linux" {
		return fmt.Errorf("built for %s, but the image is for Linux: build it with GOOS=linux", os)
	}
	if p.setting("CGO_ENABLED") != "0" {
		return fmt.Errorf("not linked statically, and the image has no libraries: build it with CGO_ENABLED=0")
	}
	if p.setting("-trimpath") != "true" {
		return fmt.Errorf("contains the path where it was built, so its bytes depend on the machine: build it with -trimpath")
	}
	for _, s := range p.info.Settings {
		if strings.HasPrefix(s.Key, "vcs") {
			return fmt.Errorf("contains the state of the checkout (%s), so its bytes depend on it: build it with -buildvcs=false", s.Key)
		}
	}
	return nil
}
