package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Argv are the arguments of a node's process. The program must call Main for them.
var Argv = []string{"lab", "node"}

// StartRoot starts the underlay's node and returns once it serves. exe is the program that handles
// Argv. log receives the stdout and stderr of all nodes. Without the privilege to make namespaces,
// the whole lab runs in one user namespace, in which the caller is root.
func StartRoot(exe string, cfg Config, log *os.File) (*os.Process, error) {
	attr := namespaces(Underlay)
	if !privileged() {
		attr.Cloneflags |= unix.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	b, err := newBirth(log)
	if err != nil {
		return nil, err
	}
	p, err := os.StartProcess(exe, argv(cfg), b.attr(attr))
	b.started()
	if err != nil {
		b.abandon()
		return nil, namespaceError(err)
	}
	if err := b.configure(cfg); err != nil {
		_ = p.Kill()
		_, _ = p.Wait()
		return nil, err
	}
	return p, nil
}

// argv gives the process a readable name: "weft lab node h1".
func argv(cfg Config) []string {
	return append(append([]string{"weft"}, Argv...), cfg.Name)
}

func namespaces(role Role) *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWUTS,
	}
	if role == Underlay {
		attr.Setsid = true // the lab must not get a terminal's SIGHUP or SIGINT
	}
	return attr
}

// privileged reports whether this process can make namespaces without a user namespace.
func privileged() bool {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if unix.Capget(&hdr, &data[0]) != nil {
		return false
	}
	const need = 1<<unix.CAP_SYS_ADMIN | 1<<unix.CAP_NET_ADMIN
	return data[0].Effective&need == need
}

// namespaceError explains why clone failed. The errno does not name the restriction, but sysctls show
// it.
func namespaceError(err error) error {
	if !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EACCES) {
		return fmt.Errorf("cannot make namespaces: %w", err)
	}
	for _, lock := range []struct{ file, off, set string }{
		{"/proc/sys/kernel/unprivileged_userns_clone", "0", "1"},
		{"/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1", "0"},
		{"/proc/sys/user/max_user_namespaces", "0", "10000"},
	} {
		if v, e := os.ReadFile(lock.file); e == nil && strings.TrimSpace(string(v)) == lock.off {
			key := strings.ReplaceAll(strings.TrimPrefix(lock.file, "/proc/sys/"), "/", ".")
			return fmt.Errorf("this system forbids user namespaces (%w): run as root, or allow them with: sudo sysctl -w %s=%s",
				err, key, lock.set)
		}
	}
	return fmt.Errorf("cannot make namespaces (%w): run as root, or in a container with --privileged", err)
}

// birth is the parent's side of a node's start. The child reads its configuration from stdin. On
// descriptor 3 it answers ready, or an error.
type birth struct {
	log              *os.File
	configR, configW *os.File
	answerR, answerW *os.File
}

func newBirth(log *os.File) (*birth, error) {
	b := &birth{log: log}
	var err error
	if b.configR, b.configW, err = os.Pipe(); err != nil {
		return nil, err
	}
	if b.answerR, b.answerW, err = os.Pipe(); err != nil {
		closeAll([]*os.File{b.configR, b.configW})
		return nil, err
	}
	return b, nil
}

func (b *birth) attr(sys *syscall.SysProcAttr) *os.ProcAttr {
	return &os.ProcAttr{Files: []*os.File{b.configR, b.log, b.log, b.answerW}, Env: os.Environ(), Sys: sys}
}

// started closes the child's ends, so that the parent notices if the child dies.
func (b *birth) started() { closeAll([]*os.File{b.configR, b.answerW}) }

func (b *birth) abandon() { closeAll([]*os.File{b.configW, b.answerR}) }

// configure sends the configuration and waits until the child serves.
func (b *birth) configure(cfg Config) error {
	defer b.abandon()
	if err := json.NewEncoder(b.configW).Encode(cfg); err != nil {
		return fmt.Errorf("%s died before it was configured: %w", cfg.Name, err)
	}
	if err := b.configW.Close(); err != nil {
		return err
	}
	answer, err := io.ReadAll(b.answerR)
	if err != nil {
		return err
	}
	if string(answer) != ready {
		if len(answer) == 0 {
			answer = []byte("the node died while starting; see the lab's nodes.log")
		}
		return fmt.Errorf("%s: %s", cfg.Name, answer)
	}
	return nil
}

// ready is a node's answer when it serves; anything else is an error.
const ready = "ready"
