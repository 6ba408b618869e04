package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

const lockFile = "lock"

// baseDir is not below TMPDIR: a socket's path may have at most 107 bytes.
func baseDir() string { return "/tmp/weft-lab-" + strconv.Itoa(os.Geteuid()) }

func stateDir(name string) string { return filepath.Join(baseDir(), name) }

// lockBase opens the base directory, made if it is missing, and locks it until the file is closed. /tmp belongs
// to everybody: a directory that somebody else made, or may enter, is refused.
func lockBase() (*os.File, error) {
	for {
		if err := os.Mkdir(baseDir(), 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return nil, fmt.Errorf("lab: %w", err)
		}
		fd, err := unix.Open(baseDir(), unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("lab: open %s: %w: remove it", baseDir(), err)
		}
		dir := os.NewFile(uintptr(fd), baseDir())
		if err := unix.Flock(fd, unix.LOCK_EX); err != nil {
			return nil, errors.Join(fmt.Errorf("lab: lock %s: %w", baseDir(), err), dir.Close())
		}
		var st, now unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return nil, errors.Join(err, dir.Close())
		}
		if unix.Lstat(baseDir(), &now) != nil || now.Ino != st.Ino {
			_ = dir.Close() // a lab went down meanwhile and took the directory with it
			continue
		}
		if int(st.Uid) != os.Geteuid() || st.Mode&0o077 != 0 {
			return nil, errors.Join(dir.Close(), fmt.Errorf("lab: %s is open to others: remove it, or chmod 700 it if it is yours", baseDir()))
		}
		return dir, nil
	}
}

// holder returns the pid of the lab's root node, 0 if the lab does not live.
func holder(dir string) (int, error) {
	fd, err := unix.Open(filepath.Join(dir, lockFile), unix.O_RDWR|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("lab: open %s/%s: %w", dir, lockFile, err)
	}
	defer unix.Close(fd)
	lock := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(uintptr(fd), unix.F_GETLK, &lock); err != nil {
		return 0, fmt.Errorf("lab: ask for the lock of %s: %w", dir, err)
	}
	if lock.Type == unix.F_UNLCK {
		return 0, nil
	}
	return int(lock.Pid), nil
}

// Down ends the lab and removes all of it. It needs only the lab's directory, so it also cleans up after a crash.
func (l *Lab) Down(ctx context.Context) error {
	_, err := Down(ctx, l.opts.Name)
	return err
}

// Down ends the named lab, whatever state it is in, and tells if it was already dead. That there is no such lab
// is no error.
func Down(ctx context.Context, name string) (stale bool, err error) {
	base, err := lockBase()
	if err != nil {
		return false, err
	}
	defer base.Close()
	dir := stateDir(name)
	if _, err := os.Lstat(dir); errors.Is(err, os.ErrNotExist) {
		_ = os.Remove(baseDir()) // fails while other labs are there
		return false, nil
	}
	pid, err := holder(dir)
	if err != nil {
		return false, err
	}
	if pid != 0 {
		if err := killRoot(ctx, dir, pid); err != nil {
			return false, err
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		return pid == 0, fmt.Errorf("lab: %w", err)
	}
	_ = os.Remove(baseDir())
	return pid == 0, nil
}

// killRoot ends the root node and with it, by the kernel's hand, every process of the lab. A pid namespace's
// first process is gone only when all others are.
func killRoot(ctx context.Context, dir string, pid int) error {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("lab: open process %d: %w", pid, err)
	}
	defer unix.Close(pidfd)
	// With the pidfd at hand, ask again: the number could have passed to somebody else in between.
	if again, err := holder(dir); err != nil || again != pid {
		return err
	}
	if err := unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("lab: kill process %d: %w", pid, err)
	}
	for ctx.Err() == nil {
		fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
		if n, err := unix.Poll(fds, int(100*time.Millisecond/time.Millisecond)); err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("lab: wait for process %d: %w", pid, err)
		} else if n > 0 {
			return nil
		}
	}
	return fmt.Errorf("lab: process %d does not end: %w", pid, context.Cause(ctx))
}
