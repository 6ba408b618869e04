package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
)

var installing sync.Mutex

// Install installs the Debian package of a program that tests and benchmarks use, unless the program
// is there.
func Install(program, pkg string) error {
	installing.Lock()
	defer installing.Unlock()
	if _, err := exec.LookPath(program); err == nil {
		return nil
	}
	apt := func(args ...string) ([]byte, error) {
		cmd := exec.Command("apt-get", args...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		return cmd.CombinedOutput()
	}
	install := []string{"install", "-y", "-q", "--no-install-recommends", pkg}
	out, err := apt(install...)
	if err != nil { // apt's package lists may be old or missing: update them and try again
		_, _ = apt("update", "-q")
		out, err = apt(install...)
	}
	if err != nil {
		return fmt.Errorf("%s is missing and cannot be installed automatically: run apt-get install %s: %w\n%s", program, pkg, err, out)
	}
	return nil
}

// Extract returns the path of a program of a Debian package, which it downloads and unpacks in ~/.cache/weft without
// installing it: a package of a service would start that service.
func Extract(pkg, program string) (string, error) {
	installing.Lock()
	defer installing.Unlock()
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "weft", "debian", pkg)
	path := filepath.Join(dir, program)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	fresh := dir + ".new"
	if err := errors.Join(os.RemoveAll(fresh), os.MkdirAll(fresh, 0o755)); err != nil {
		return "", err
	}
	run := func(name string, args ...string) ([]byte, error) {
		cmd := exec.Command(name, args...)
		cmd.Dir = fresh
		return cmd.CombinedOutput()
	}
	out, err := run("apt-get", "download", "-q", pkg)
	if err != nil { // apt's package lists may be old or missing: update them and try again
		_, _ = run("apt-get", "update", "-q")
		out, err = run("apt-get", "download", "-q", pkg)
	}
	if err != nil {
		return "", fmt.Errorf("the package %s cannot be downloaded (apt-get download %s): %w\n%s", pkg, pkg, err, out)
	}
	files, _ := filepath.Glob(filepath.Join(fresh, pkg+"_*.deb")) // the only error is that of a bad pattern
	if len(files) != 1 {
		return "", fmt.Errorf("apt-get download %s left %d packages, want 1", pkg, len(files))
	}
	if out, err := run("dpkg-deb", "-x", files[0], "."); err != nil {
		return "", fmt.Errorf("the package %s cannot be unpacked: %w\n%s", pkg, err, out)
	}
	if err := errors.Join(os.Remove(files[0]), os.RemoveAll(dir), os.Rename(fresh, dir)); err != nil {
		return "", err
	}
	return path, nil
}
