package dns

import (
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
)

// All tasks run at once, however many rest; few goroutines stay, and none once the crew ends.
func TestTasksRunBesideEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrew()
		for range 3 {
			var all sync.WaitGroup
			var ran atomic.Int32
			all.Add(2 * maxResting)
			for range 2 * maxResting {
				c.Go(func() {
					ran.Add(1)
					all.Done()
					all.Wait() // for all others: none waits for a goroutine that is busy
				})
			}
			synctest.Wait()
			if ran.Load() != 2*maxResting || c.resting.Load() != maxResting {
				t.Fatalf("%d tasks ran and %d goroutines rest", ran.Load(), c.resting.Load())
			}
		}
		c.Wait()
		if n := c.resting.Load(); n != 0 {
			t.Errorf("%d goroutines are left", n)
		}
		c.Go(func() {}) // as late as any
		c.Wait()
	})
}
