package statedir

import (
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"weft/prog/state"
	"weft/router/link"
	"weft/router/routertest"
)

func TestResetRestoresSysctlsThatNobodyElseChanged(t *testing.T) {
	s, err := state.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	value := func(name string) string {
		data, _ := os.ReadFile("/proc/sys/net/" + name)
		return strings.TrimSpace(string(data))
	}
	const four, six = "ipv4/ip_forward", "ipv6/conf/all/forwarding"
	routertest.New(t).Do(func() {
		for range 2 { // the second time, no sysctl changes
			if err := link.Forwarding(true, s.SaveSysctl); err != nil {
				if errors.Is(err, unix.EROFS) || errors.Is(err, unix.EACCES) {
					t.Skip(err)
				}
				t.Fatal(err)
			}
		}
		changed, err := s.Sysctls()
		if err != nil || len(changed) < 2 || value(four) != "1" || value(six) != "1" {
			t.Fatal(changed, err)
		}
		if kept := RestoreSysctls(changed); len(kept) > 0 || value(four) != "0" || value(six) != "0" {
			t.Errorf("sysctls not restored: %v, want none; values %s and %s, want 0", kept, value(four), value(six))
		}
		if err := link.Sysctl("1", four); err != nil {
			t.Fatal(err)
		}
		if RestoreSysctls([]state.Sysctl{{Name: four, Was: "0", Set: "2"}}); value(four) != "1" {
			t.Error("a sysctl that another program set was changed, want it kept")
		}
	})
}
