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

// programs are the files of the image, in the order of its layer. Nothing else is needed:
// no users (the image runs as number 0), no certificates (the cluster's come with the
// service account), no name service switch (Go reads /etc/hosts and /etc/resolv.conf, which
// the runtime mounts), no mount points (the runtime makes them before it makes the root
// read-only), and no shell, which would be of use to intruders only.
var programs = []string{"weft", "weft-cni"}

// A program is one binary, and what the Go toolchain noted in it.
type program struct {
	name string
	data []byte
	info *debug.BuildInfo
}

// A platform is the programs for one kind of machine.
type platform struct {
	os, arch string
	programs []program
}

func (p platform) String() string { return p.os + "/" + p.arch }

// unpacked is the size of the programs on a host's disk.
func (p platform) unpacked() (n int64) {
	for _, prog := range p.programs {
		n += int64(len(prog.data))
	}
	return n
}

// readPlatform reads the programs in a folder, and what they were built for.
func readPlatform(dir string) (platform, error) {
	var p platform
	for _, name := range programs {
		path := filepath.Join(dir, name)
		data, err := os.ReadFile(path)
		if err != nil {
			return p, fmt.Errorf("%w: build it first, as make image does", err)
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
			return p, fmt.Errorf("%s is for %s/%s, the file beside it for %v", path, os, arch, p)
		}
		p.os, p.arch = os, arch
		p.programs = append(p.programs, prog)
	}
	return p, nil
}

// setting is what the toolchain noted about one of its settings; empty if nothing.
func (p program) setting(key string) string {
	for _, s := range p.info.Settings {
		if s.Key == key {
			return s.Value
		}
	}
	return ""
}

// check reports why the program cannot be in the image: it is not what its name says,
// needs libraries that the image does not have, or depends on where it was built.
func (p program) check() error {
	if want := "weft/cmd/" + p.name; p.info.Path != want {
		return fmt.Errorf("this is %s, want %s", p.info.Path, want)
	}
	if os := p.setting("GOOS"); os != "linux" {
		return fmt.Errorf("built for %s: the image is for Linux (GOOS=linux)", os)
	}
	if p.setting("CGO_ENABLED") != "0" {
		return fmt.Errorf("not static, and the image has no libraries: build it with CGO_ENABLED=0")
	}
	if p.setting("-trimpath") != "true" {
		return fmt.Errorf("depends on the folder it was built in: build it with -trimpath")
	}
	for _, s := range p.info.Settings {
		if strings.HasPrefix(s.Key, "vcs") {
			return fmt.Errorf("depends on the state of the checkout (%s): build it with -buildvcs=false", s.Key)
		}
	}
	return nil
}
