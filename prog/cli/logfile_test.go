package cli

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestWeftsLogFilesHaveALimitedSize(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, agentLog)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	other, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(other)
	line := []byte(strings.Repeat("x", 1<<16))
	for i := range 10 * maxLog / len(line) {
		if _, err := f.Write(line); err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 {
			continue
		}
		if err := reopenLog(int(f.Fd()), other); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := unix.Write(other, []byte("the last word")); err != nil {
		t.Fatal(err)
	}
	total := int64(0)
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		total += info.Size()
	}
	if len(entries) != 2 || total > 2*maxLog+2*int64(len(line)) {
		t.Errorf("there are %d logs with %d bytes; want 2 of limited size", len(entries), total)
	}
	if now, err := os.ReadFile(path); err != nil || !bytes.HasSuffix(now, []byte("the last word")) {
		t.Errorf("output after the rotation is not in the new file, want it there: %v", err)
	}
}

// A file to which the user redirected output is not rotated.
func TestOnlyWeftsOwnLogsAreRotated(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mine.log")
	if err := os.WriteFile(path, make([]byte, maxLog+1), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := reopenLog(int(f.Fd())); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Size() != maxLog+1 {
		t.Errorf("a file that is not Weft's log: %v, error %v, want its size unchanged", info, err)
	}
}

// launch reports the last error of the agent that it started, not of an earlier agent in the same log.
func TestLaunchReportsOnlyErrorsOfTheAgentThatItStarted(t *testing.T) {
	dir := t.TempDir()
	before := "weft: an old error\n"
	for said, want := range map[string]string{"time=x\nweft: the disk burns\n": "the disk burns", "": "the agent logged no error"} {
		if err := os.WriteFile(filepath.Join(dir, agentLog), []byte(before+said), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := lastError(dir, int64(len(before))); !strings.Contains(got, want) || strings.Contains(got, "old") {
			t.Errorf("the log %q gives the last error %q, want %q", said, got, want)
		}
	}
}

func TestASecondConcurrentLaunchIsRefused(t *testing.T) {
	dir := t.TempDir()
	unlock, err := lockLaunch(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lockLaunch(dir); err == nil || !strings.Contains(err.Error(), "under way") {
		t.Errorf("a second concurrent launch returned %v; want a refusal", err)
	}
	unlock()
	if unlock, err = lockLaunch(dir); err != nil {
		t.Fatal(err)
	}
	unlock()
}
