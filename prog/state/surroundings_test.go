package state

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Permissions, full disks and the like are not reported as an unusable file.
func TestDiskErrorsAreNotUnusableFiles(t *testing.T) {
	for kind, says := range map[error]string{
		syscall.EACCES: "needs root", syscall.EPERM: "needs root", syscall.EROFS: "remount,rw", syscall.ENOSPC: "make room", syscall.EDQUOT: "make room",
	} {
		err := &fs.PathError{Op: "open", Path: "/x", Err: kind}
		if !surroundings(err) || !strings.Contains(Explained(err).Error(), says) || !errors.Is(Explained(err), kind) {
			t.Errorf("%v is explained as %v; want the fix", kind, Explained(err))
		}
	}
	if surroundings(errors.New("the file is torn")) {
		t.Error("surroundings is true for the error of a torn file, want false")
	}
}

func TestPermissionErrorSaysWhatToDo(t *testing.T) {
	for _, mode := range []os.FileMode{0, 0o444} { // not readable, or not writable
		t.Run(mode.String(), func(t *testing.T) {
			dir := t.TempDir()
			open(t, dir).Close()
			if err := os.Chmod(filepath.Join(dir, File), mode); err != nil {
				t.Fatal(err)
			}
			if os.Getuid() == 0 {
				if err := errors.Join(os.Chown(filepath.Join(dir, File), 1, 1), dropOverride()); err != nil {
					t.Skip(err)
				}
			}
			_, err := Open(dir)
			if _, unusable := errors.AsType[*UnusableError](err); err == nil || unusable || !strings.Contains(err.Error(), "needs root") {
				t.Error(err)
			}
		})
	}
}

// dropOverride drops CAP_DAC_OVERRIDE from the test's thread, which ends with the test.
func dropOverride() error {
	runtime.LockOSThread() // never unlocked: the thread ends with the test
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return err
	}
	data[0].Effective &^= 1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_DAC_READ_SEARCH
	return unix.Capset(&header, &data[0])
}

// The error about a locked file names the process that has locked it, even if that process is no
// agent.
func TestLockErrorNamesTheProcess(t *testing.T) {
	dir := t.TempDir()
	open(t, dir).Close()
	path := filepath.Join(dir, File)
	cmd := exec.Command("flock", path, "sh", "-c", "echo held; read -r _")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Skip(err)
	}
	defer func() { in.Close(); _ = cmd.Wait() }()
	if word := make([]byte, 5); true {
		if _, err := out.Read(word); err != nil || !bytes.HasPrefix(word, []byte("held")) {
			t.Fatal(string(word), err)
		}
	}
	_, err = Open(dir)
	if !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), strconv.Itoa(cmd.Process.Pid)+" (flock), which is no agent") {
		t.Error(err)
	}
}
