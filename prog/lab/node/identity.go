package node

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// holdLock takes a lock that lives as long as this process. It is a POSIX lock because F_GETLK tells everybody
// the holder's pid in their own PID namespace: so the lab is found, and killed, without a pid file to go stale.
//
// The file's content serves only the moments after the root was killed from outside: it has let go of the lock
// already, but other processes of the lab are still ending.
func holdLock(path string) error {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	lock := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(uintptr(fd), unix.F_SETLK, &lock); err != nil {
		return fmt.Errorf("lock %s: %w", path, err)
	}
	// /proc is still the one of the namespace that we were started from.
	me, err := identify("self")
	if err != nil {
		return err
	}
	if _, err := unix.Write(fd, []byte(me.String())); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil // fd stays open for ever: to close it would release the lock
}

// Identity is a process and not another one that gets its pid later.
type Identity struct {
	Pid   int
	Start uint64 // in clock ticks since boot, see proc_pid_stat(5)
}

func (i Identity) String() string { return fmt.Sprintf("%d %d\n", i.Pid, i.Start) }

// ParseIdentity reads what String wrote.
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
	// The name in parentheses may itself hold spaces and parentheses. What follows its last one is field 3.
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	const start = 22 - 3
	if len(fields) <= start {
		return i, fmt.Errorf("/proc/%s/stat: too short", pid)
	}
	_, err = fmt.Sscan(fields[start], &i.Start)
	return i, err
}

// Open returns a pidfd of the process, -1 if it has been reaped.
func (i Identity) Open() (int, error) {
	pidfd, err := unix.PidfdOpen(i.Pid, 0)
	if err == unix.ESRCH || err == unix.EINVAL { // EINVAL: the number belongs to a thread now
		return -1, nil
	}
	if err != nil {
		return -1, fmt.Errorf("open process %d: %w", i.Pid, err)
	}
	// With the pidfd at hand the number cannot change hands any more.
	if now, err := identify(fmt.Sprint(i.Pid)); err != nil || now != i {
		_ = unix.Close(pidfd)
		return -1, nil
	}
	return pidfd, nil
}
