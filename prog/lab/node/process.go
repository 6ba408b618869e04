package node

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// findProcesses returns the pids of the processes of this PID namespace that run bin's weft with the given
// verb as first argument. It believes /proc/PID/exe, which nobody can fake by naming a process "weft".
func findProcesses(bin, verb string) ([]int, error) {
	program, err := filepath.EvalSymlinks(filepath.Join(bin, "weft"))
	if err != nil {
		return nil, err
	}
	dirs, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, dir := range dirs {
		pid, err := strconv.Atoi(dir.Name())
		if err != nil {
			continue
		}
		// A process that ends meanwhile is one that we do not look for.
		exe, _ := os.Readlink(filepath.Join("/proc", dir.Name(), "exe"))
		args, _ := os.ReadFile(filepath.Join("/proc", dir.Name(), "cmdline"))
		argv := bytes.Split(args, []byte{0})
		// A rebuilt program leaves " (deleted)" behind its running predecessor's name.
		if strings.TrimSuffix(exe, " (deleted)") == program && len(argv) > 1 && string(argv[1]) == verb {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	return pids, nil
}

func signalProcesses(bin, verb string, sig unix.Signal) ([]int, error) {
	pids, err := findProcesses(bin, verb)
	if err != nil {
		return nil, err
	}
	for _, pid := range pids {
		if err := unix.Kill(pid, sig); err != nil && err != unix.ESRCH {
			return nil, err
		}
	}
	return pids, nil
}
