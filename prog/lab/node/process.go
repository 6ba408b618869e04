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

// findProcesses returns the pids of this PID namespace's processes that run bin's weft with verb as
// first argument. It checks /proc/PID/exe, since any process can have the name "weft".
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
		// Ignore errors: the process ended meanwhile.
		exe, _ := os.Readlink(filepath.Join("/proc", dir.Name(), "exe"))
		args, _ := os.ReadFile(filepath.Join("/proc", dir.Name(), "cmdline"))
		argv := bytes.Split(args, []byte{0})
		// The path of a rebuilt program ends with " (deleted)" in processes that run the old one.
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
