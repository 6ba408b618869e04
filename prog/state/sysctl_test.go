package state

import (
	"fmt"
	"sync"
	"testing"
)

// Components that change sysctls at the same time lose no value: weft reset restores all.
func TestSysctlsSavedAtTheSameTimeAreAllStored(t *testing.T) {
	s, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var group sync.WaitGroup
	for i := range 20 {
		group.Go(func() {
			for range 2 {
				if err := s.SaveSysctl(fmt.Sprint("net/", i), "0", "1"); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	if list, err := s.Sysctls(); err != nil || len(list) != 20 {
		t.Errorf("%d values are stored, error %v; want 20", len(list), err)
	}
}
