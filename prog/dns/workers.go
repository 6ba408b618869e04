package dns

import (
	"sync"
	"sync/atomic"
)

const maxIdle = 100

// workers runs tasks on goroutines, and reuses idle ones. Growing the stacks of new goroutines was a
// sixth of the cost of forwarding.
type workers struct {
	tasks sync.WaitGroup
	next  chan func() // only idle goroutines receive
	idle  atomic.Int32
	ended chan struct{}
	end   sync.Once
}

func newWorkers() *workers { return &workers{next: make(chan func()), ended: make(chan struct{})} }

// Go runs a task on another goroutine.
func (c *workers) Go(task func()) {
	select {
	case c.next <- task:
	default:
		c.tasks.Go(func() {
			for task != nil {
				task()
				task = c.wait()
			}
		})
	}
}

func (c *workers) wait() (task func()) {
	defer c.idle.Add(-1)
	if c.idle.Add(1) > maxIdle {
		return nil
	}
	select {
	case task = <-c.next:
	case <-c.ended:
	}
	return task
}

// Wait waits for all tasks, and ends idle goroutines.
func (c *workers) Wait() {
	c.end.Do(func() { close(c.ended) })
	c.tasks.Wait()
}
