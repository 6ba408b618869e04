package privilege

import (
	"os"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// An agent names the capability that is missing. Removing Weft needs no raw sockets.
func TestTheMissingCapabilityIsNamed(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can keep some capabilities and drop others")
	}
	runtime.LockOSThread() // the thread is never unlocked, so it ends with the test
	for _, c := range []struct {
		has           []int
		agent, remove string // the capability that the error names
	}{
		{[]int{unix.CAP_NET_ADMIN, unix.CAP_NET_RAW}, "", ""},
		{[]int{unix.CAP_NET_ADMIN}, "NET_RAW", ""},
		{nil, "NET_ADMIN", "NET_ADMIN"},
	} {
		head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		data := make([]unix.CapUserData, 2) // version 3 of capset reads two elements
		for _, one := range c.has {
			data[0].Effective |= 1 << one
		}
		data[0].Permitted = data[0].Effective
		if err := unix.Capset(&head, &data[0]); err != nil {
			t.Skipf("this process cannot keep the capabilities %v: %v", c.has, err)
		}
		for _, check := range []struct {
			want string
			err  error
		}{{c.agent, CheckAgent()}, {c.remove, CheckNetAdmin()}} {
			want, err := check.want, check.err
			if (err != nil) != (want != "") || err != nil && !strings.Contains(err.Error(), "capability "+want+" is missing") {
				t.Errorf("with the capabilities %v: got the error %v, want one that names %q (empty: no error)", c.has, err, want)
			}
		}
	}
}
