package node

import (
	"context"
	"os"
	"os/signal"
	"sync"

	"golang.org/x/sys/unix"
)

// reaper starts processes and reaps all children, as pid 1 must: its own and orphans that daemons
// leave. The node cannot also use os/exec, since both would wait for the same children.
type reaper struct {
	// start holds mu until the program's channel is in waiting, so that run does not miss a quick exit.
	mu      sync.Mutex
	waiting map[int]chan unix.WaitStatus // channels for exit statuses, by pid
}

func newReaper() *reaper { return &reaper{waiting: make(map[int]chan unix.WaitStatus)} }

// start runs a program. It returns its pid, and a channel that receives its status once.
func (r *reaper) start(path string, argv []string, attr *os.ProcAttr) (int, <-chan unix.WaitStatus, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p, err := os.StartProcess(path, argv, attr)
	if err != nil {
		return 0, nil, err
	}
	pid, done := p.Pid, make(chan unix.WaitStatus, 1)
	r.waiting[pid] = done
	_ = p.Release()
	return pid, done, nil
}

// signal sends a signal to a process, or with group to its process group, unless it was reaped: then
// another process may have its pid.
func (r *reaper) signal(pid int, sig unix.Signal, group bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, alive := r.waiting[pid]; !alive {
		return
	}
	if group {
		pid = -pid
	}
	_ = unix.Kill(pid, sig)
}

// run reaps children until ctx ends.
func (r *reaper) run(ctx context.Context) {
	died := make(chan os.Signal, 1)
	signal.Notify(died, unix.SIGCHLD)
	defer signal.Stop(died)
	for {
		r.collect()
		select {
		case <-died:
		case <-ctx.Done():
			return
		}
	}
}

func (r *reaper) collect() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		if done, ours := r.waiting[pid]; ours {
			delete(r.waiting, pid)
			done <- status
		}
	}
}
