package dns

import (
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
)

// All tasks run at once, however many goroutines are idle. Few idle goroutines stay, and none after
// Wait.
func TestWorkersRunTasksConcurrently(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newWorkers()
		for range 3 {
			var all sync.WaitGroup
			var ran atomic.Int32
			all.Add(2 * maxIdle)
			for range 2 * maxIdle {
				c.Go(func() {
					ran.Add(1)
					all.Done()
					all.Wait() // waits for all other tasks, which only end if they run concurrently
				})
			}
			synctest.Wait()
			if ran.Load() != 2*maxIdle || c.idle.Load() != maxIdle {
				t.Fatalf("%d tasks ran, want 2*maxIdle; %d goroutines are idle, want maxIdle", ran.Load(), c.idle.Load())
			}
		}
		c.Wait()
		if n := c.idle.Load(); n != 0 {
			t.Errorf("%d goroutines are left after Wait, want none", n)
		}
		c.Go(func() {}) // this task comes after Wait, the latest possible time
		c.Wait()
	})
}
