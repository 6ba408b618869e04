// Package routertest gives the tests of router and its subpackages their own network namespaces. So
// tests change nothing of the machine and leave nothing behind. A namespace ends with the last
// thread and file that refers to it.
package routertest

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// inner is the environment variable of the test binary's second run, inside a user namespace.
const inner = "WEFT_ROUTERTEST_INNER"

// Main is the TestMain of packages whose tests need namespaces. For an ordinary user it runs the
// test binary again as root of a user namespace.
func Main(m *testing.M) {
	if os.Geteuid() == 0 || os.Getenv(inner) != "" {
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inner+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		Pdeathsig:   syscall.SIGKILL,
	}
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		os.Exit(exit.ExitCode())
	}
	if err != nil { // user namespaces are not available: New skips each test
		os.Exit(m.Run())
	}
	os.Exit(0)
}

// Namespace is a network namespace of a test.
type Namespace struct {
	t    testing.TB
	file *os.File
}

// New makes a namespace whose loopback is up. It skips the test if the kernel allows no new namespace.
func New(t testing.TB) Namespace {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root, or user namespaces (sysctl kernel.unprivileged_userns_clone=1)")
	}
	made := make(chan netns.NsHandle)
	failed := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		ns, err := netns.New()
		failed <- err
		made <- ns
	}()
	if err := <-failed; err != nil {
		t.Skipf("network namespaces are not available: %v", err)
	}
	n := Namespace{t, os.NewFile(uintptr(<-made), "netns")}
	t.Cleanup(func() { n.file.Close() })
	n.Do(func() {
		lo, err := netlink.LinkByName("lo")
		if err == nil {
			err = netlink.LinkSetUp(lo)
		}
		if err != nil {
			t.Errorf("setting lo up: %v", err)
		}
	})
	return n
}

// AddAddr adds an address to a link that is up, and waits until packets to it arrive. The kernel makes the
// route of an IPv6 address a moment after the address.
func AddAddr(t testing.TB, l netlink.Link, a netip.Prefix) {
	t.Helper()
	addr, err := netlink.ParseAddr(a.String())
	if err == nil {
		addr.Flags = unix.IFA_F_NODAD // of IPv6; it means nothing for IPv4
		err = netlink.AddrAdd(l, addr)
	}
	if err != nil {
		t.Fatalf("adding %v to %s: %v", a, l.Attrs().Name, err)
	}
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		routes, err := netlink.RouteGet(addr.IP)
		if err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("the way to %v is %v, error %v, 5 s after it was added to %s; want a local address", a.Addr(), routes, err, l.Attrs().Name)
		}
	}
}

// Of returns the network namespace of a process.
func Of(t testing.TB, pid int) Namespace {
	t.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return Namespace{t, f}
}

// Path returns a path by which other code can open the namespace.
func (n Namespace) Path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.Fd()) }

// Fd returns the file descriptor of the open namespace.
func (n Namespace) Fd() int { return int(n.file.Fd()) }

// Do runs f on a thread in the namespace. Sockets that f opens stay in it. If f ends the test with
// t.Fatal, Do ends the test for the caller too.
func (n Namespace) Do(f func()) {
	n.t.Helper()
	returned := false
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // the thread is never unlocked, so it ends with its goroutine
		if err := unix.Setns(n.Fd(), unix.CLONE_NEWNET); err != nil {
			n.t.Errorf("entering the namespace: %v", err)
			return
		}
		f()
		returned = true
	}()
	<-done
	if !returned {
		n.t.FailNow()
	}
}
