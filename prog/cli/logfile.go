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

// A log of ours has at most about this many bytes, and one older file of that size beside it.
const maxLog = 4 << 20

// ourLogs are the names of logs that this program writes itself, where no supervisor does.
var ourLogs = []string{agentLog, "datapath.log"}

// rotateLog sets a log that is large aside, in the place of the one before.
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

// boundLog keeps the log that is this process's standard error in bounds while it runs. What
// Go's runtime writes when it panics goes there too, so the descriptor itself is exchanged.
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

// reopenLog begins a new log where the descriptors lead to one of ours that is large.
func reopenLog(fds ...int) error {
	path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fds[0]))
	if err != nil || !slices.Contains(ourLogs, filepath.Base(path)) {
		return nil // a terminal, a journal, somebody else's file, or one that is deleted
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
		return errors.Join(err, os.Rename(path+".1", path)) // it is tried again
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
