package lab_test

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestRootless repeats this package's tests as an ordinary user, whose lab runs in a user namespace.
func TestRootless(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("this is the ordinary user's run")
	}
	const nobody = 65534
	dir, err := os.MkdirTemp("", "lab-rootless-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	binary := filepath.Join(dir, "lab.test") // copy the binary, since other users cannot read the folder of go test
	if err := copyFile("/proc/self/exe", binary); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(dir, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), binary, "-test.v", "-test.skip", "TestRootless|TestLabWithTwentyHostsStarts")
	cmd.Dir, cmd.Env = dir, []string{"TMPDIR=" + dir, "HOME=" + dir, "PATH=" + os.Getenv("PATH"), "GORACE=" + os.Getenv("GORACE")}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	out, err := cmd.CombinedOutput()
	if strings.Contains(string(out), "cannot make namespaces") || strings.Contains(string(out), "forbids user namespaces") {
		t.Skipf("this machine gives an ordinary user no namespaces:\n%.500s", out)
	}
	if err != nil {
		t.Errorf("as an ordinary user, the tests ended with %v, want success:\n%s", err, out)
	}
	t.Logf("as an ordinary user: %d tests passed", strings.Count(string(out), "\n--- PASS"))
}

func copyFile(from, to string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	if _, err := io.Copy(dst, src); err != nil {
		return err
	}
	return dst.Close()
}
