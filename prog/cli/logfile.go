package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// maxLog is about the largest size of a log in bytes. Rotation keeps one older file of that size.
const maxLog = 4 << 20

// ourLogs lists the logs that this program writes itself, without a supervisor.
var ourLogs = []string{agentLog, "datapath.log"}

// rotateLog renames a large log, and overwrites the log that it renamed before.
func rotateLog(path string) error {
	info, err := os.Stat(path)
	if err != nil || info.Size() < maxLog {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	}
	return os.Rename(path, path+".1")
}

// boundLog rotates the log that is this process's standard error while it runs. It replaces the
// descriptor itself, since Go's runtime writes panics to it too.
func boundLog(ctx context.Context) {
	tick := time.NewTicker(5 * time.Second)
	defer tick.Stop()
	for {
		if err := reopenLog(unix.Stderr, unix.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, "cannot rotate the log:", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// reopenLog rotates the log behind the descriptors, if it is one of ourLogs and large.
func reopenLog(fds ...int) error {
	path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fds[0]))
	if err != nil || !slices.Contains(ourLogs, filepath.Base(path)) {
		return nil // not a log of Weft: a terminal, a journal, another file, or a deleted file
	}
	var st unix.Stat_t
	if err := unix.Fstat(fds[0], &st); err != nil || st.Size < maxLog {
		return err
	}
	if err := rotateLog(path); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return errors.Join(err, os.Rename(path+".1", path)) // move the log back: boundLog tries again later
	}
	defer f.Close()
	for _, fd := range fds {
		if to, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd)); err != nil || to != path && to != path+".1" {
			continue
		}
		if err := unix.Dup3(int(f.Fd()), fd, 0); err != nil {
			return err
		}
	}
	return nil
}
