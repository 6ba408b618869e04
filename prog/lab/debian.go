package lab

import (
	"fmt"
	"os"
	"os/exec"
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
