package state

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// surroundings reports whether the cause of an error is outside the state file, such as a full disk or
// missing permissions. A reset would not help then.
func surroundings(err error) bool {
	for _, kind := range []error{fs.ErrPermission, syscall.EROFS, syscall.ENOSPC, syscall.EDQUOT, syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM} {
		if errors.Is(err, kind) {
			return true
		}
	}
	return false
}

// Explained adds what to do about an error for which surroundings is true.
func Explained(err error) error {
	switch {
	case errors.Is(err, syscall.EROFS):
		return fmt.Errorf("%w: mount that file system writable (mount -o remount,rw), or name another folder with --state-dir", err)
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("%w: make room on that file system", err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: this needs root: run it with sudo", err)
	}
	return err
}

// lockedError names the process that has the file locked, if the kernel reports it.
func lockedError(path string) error {
	pid, name := lockedBy(path)
	switch {
	case pid == 0:
		return fmt.Errorf("%w: another process has %s locked (`lslocks` names it): stop that process first", ErrLocked, path)
	case name == "weft":
		return fmt.Errorf("%w: process %d (weft) has %s locked: an agent already runs on this host, see `weft status`", ErrLocked, pid, path)
	}
	return fmt.Errorf("%w: process %d (%s), which is no agent of Weft's, has %s locked: stop that process first", ErrLocked, pid, name, path)
}

// lockedBy finds the process that has a file locked. A line of /proc/locks has the process's id and the
// file's inode.
func lockedBy(path string) (pid int, name string) {
	info, err := os.Stat(path)
	if err != nil {
		return 0, ""
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	locks, err := os.ReadFile("/proc/locks")
	if !ok || err != nil {
		return 0, ""
	}
	for line := range strings.Lines(string(locks)) {
		f := strings.Fields(line)
		if len(f) < 6 || f[1] == "->" || !strings.HasSuffix(f[5], ":"+strconv.FormatUint(st.Ino, 10)) {
			continue
		}
		if pid, err = strconv.Atoi(f[4]); err != nil || pid <= 0 {
			return 0, ""
		}
		comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		if err != nil {
			return 0, ""
		}
		return pid, strings.TrimSpace(string(comm))
	}
	return 0, ""
}
