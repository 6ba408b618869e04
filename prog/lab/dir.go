package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"weft/prog/lab/node"
)

const lockFile = "lock"

// baseDir returns the directory of all labs of this user. It is not in TMPDIR, since a socket's path may
// have at most 107 bytes.
func baseDir() string { return "/tmp/weft-lab-" + strconv.Itoa(os.Geteuid()) }

func stateDir(name string) string { return filepath.Join(baseDir(), name) }

// lockBase opens the base directory, creates it if needed, and locks it until the file is closed.
// Since all users can write to /tmp, it refuses a directory that another user owns or may enter.
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
			_ = dir.Close() // another lab went down meanwhile and removed the directory
			continue
		}
		if int(st.Uid) != os.Geteuid() || st.Mode&0o077 != 0 {
			return nil, errors.Join(dir.Close(), fmt.Errorf("lab: %s is open to others: remove it, or chmod 700 it if it is yours", baseDir()))
		}
		return dir, nil
	}
}

// holder returns the pid of the lab's root node, or 0 if the lab is not running.
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
		return 0, fmt.Errorf("lab: query the lock of %s: %w", dir, err)
	}
	if lock.Type == unix.F_UNLCK {
		return 0, nil
	}
	return int(lock.Pid), nil
}

// Down ends the lab and removes everything that it made. It only needs the lab's directory, so it
// also works after a crash.
func (l *Lab) Down(ctx context.Context) error {
	_, err := Down(ctx, l.opts.Name)
	return err
}

// Down ends the named lab in any state, and reports whether it had crashed. It is no error if there
// is no such lab.
func Down(ctx context.Context, name string) (stale bool, err error) {
	base, err := lockBase()
	if err != nil {
		return false, err
	}
	defer base.Close()
	dir := stateDir(name)
	if _, err := os.Lstat(dir); errors.Is(err, os.ErrNotExist) {
		_ = os.Remove(baseDir()) // the removal fails while there are other labs, as intended
		return false, nil
	}
	stale, err = remove(ctx, dir)
	_ = os.Remove(baseDir())
	return stale, err
}

// remove ends the lab in dir, if it runs, and removes dir. The caller holds the lock of the base
// directory.
func remove(ctx context.Context, dir string) (stale bool, err error) {
	pidfd, live, err := openRoot(dir)
	if err != nil {
		return false, err
	}
	if pidfd >= 0 {
		defer unix.Close(pidfd)
		if err := killRoot(ctx, pidfd); err != nil {
			return !live, err
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		return !live, fmt.Errorf("lab: %w", err)
	}
	return !live, nil
}

// openRoot returns a pidfd of the root node, or -1 if it has ended, and whether it runs. A root that
// is ending has released its lock, but waits for the lab's other processes; then the lock file still
// contains its pid.
func openRoot(dir string) (pidfd int, live bool, err error) {
	pid, err := holder(dir)
	if err != nil {
		return -1, false, err
	}
	if pid != 0 {
		pidfd, err := unix.PidfdOpen(pid, 0)
		// Query again now that there is a pidfd: the pid could have been reused meanwhile.
		if again, e := holder(dir); err == nil && e == nil && again == pid {
			return pidfd, true, nil
		}
		if err == nil {
			_ = unix.Close(pidfd)
		}
	}
	data, err := os.ReadFile(filepath.Join(dir, lockFile))
	if errors.Is(err, os.ErrNotExist) {
		return -1, false, nil // the root ended before it wrote its pid
	}
	if err != nil {
		return -1, false, fmt.Errorf("lab: %w", err)
	}
	root, err := node.ParseIdentity(string(data))
	if err != nil {
		return -1, false, nil // the root ended before it took the lock
	}
	pidfd, err = root.Open()
	if err != nil {
		return -1, false, fmt.Errorf("lab: %w", err)
	}
	return pidfd, false, nil
}

// killRoot kills the root node. The kernel then kills all processes of the lab, and the first process
// of a pid namespace ends last.
func killRoot(ctx context.Context, pidfd int) error {
	if err := unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("lab: kill the lab's root: %w", err)
	}
	for ctx.Err() == nil {
		fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
		if n, err := unix.Poll(fds, 100); err != nil && !errors.Is(err, unix.EINTR) { // 100 ms
			return fmt.Errorf("lab: wait for the lab's root: %w", err)
		} else if n > 0 {
			return nil
		}
	}
	return fmt.Errorf("lab: the lab's root process does not end: %w", context.Cause(ctx))
}
