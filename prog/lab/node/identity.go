package node

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// holdLock takes a lock until this process ends. It is a POSIX lock, since F_GETLK returns the
// holder's pid in the caller's PID namespace. So no pid file can become stale.
//
// The identity of the process in the file is only needed shortly after the root node was killed: the
// lock is released then, but other processes of the lab are still ending.
func holdLock(path string) error {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	lock := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(uintptr(fd), unix.F_SETLK, &lock); err != nil {
		return fmt.Errorf("lock %s: %w", path, err)
	}
	// /proc still shows the processes of the parent's namespace.
	me, err := identify("self")
	if err != nil {
		return err
	}
	if _, err := unix.Write(fd, []byte(me.String())); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil // never close fd: that would release the lock
}

// Identity identifies a process even if its pid is reused later.
type Identity struct {
	Pid   int
	Start uint64 // start time in clock ticks since boot, see proc_pid_stat(5)
}

func (i Identity) String() string { return fmt.Sprintf("%d %d\n", i.Pid, i.Start) }

// ParseIdentity parses the result of String.
func ParseIdentity(s string) (i Identity, err error) {
	_, err = fmt.Sscanf(s, "%d %d\n", &i.Pid, &i.Start)
	return i, err
}

// identify reads the identity of a process from /proc, by pid or "self".
func identify(pid string) (i Identity, err error) {
	data, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return i, err
	}
	stat := string(data)
	if _, err := fmt.Sscan(stat, &i.Pid); err != nil {
		return i, fmt.Errorf("/proc/%s/stat: %w", pid, err)
	}
	// The name in parentheses may contain spaces and parentheses. Field 3 follows the last
	// parenthesis.
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	const start = 22 - 3
	if len(fields) <= start {
		return i, fmt.Errorf("/proc/%s/stat: too short", pid)
	}
	_, err = fmt.Sscan(fields[start], &i.Start)
	return i, err
}

// Open returns a pidfd of the process, or -1 if it has been reaped.
func (i Identity) Open() (int, error) {
	pidfd, err := unix.PidfdOpen(i.Pid, 0)
	if err == unix.ESRCH || err == unix.EINVAL { // EINVAL: a thread has the number now
		return -1, nil
	}
	if err != nil {
		return -1, fmt.Errorf("open process %d: %w", i.Pid, err)
	}
	// While the pidfd is open, the pid cannot be reused.
	if now, err := identify(fmt.Sprint(i.Pid)); err != nil || now != i {
		_ = unix.Close(pidfd)
		return -1, nil
	}
	return pidfd, nil
}
