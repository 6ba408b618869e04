package lab

import (
	"fmt"
	"os"
	"os/exec"
	"sync"
)

var installing sync.Mutex

// Install makes sure of a program that tests and benchmarks measure with, which it installs
// from Debian's package if it is not there.
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
	if err != nil { // the lists may be old, or not there
		_, _ = apt("update", "-q")
		out, err = apt(install...)
	}
	if err != nil {
		return fmt.Errorf("%s is not there, and cannot be installed from here: apt-get install %s: %w\n%s", program, pkg, err, out)
	}
	return nil
}
