package dns

import (
	"container/list"
	"sync"
	"time"
)

// How long answers are kept at most.
const (
	maxLife     = time.Hour       // of an answer
	maxNegative = 5 * time.Minute // of "there is none", which RFC 2308 5 wants below three hours
	failureLife = time.Second     // of a failure: RFC 9520 3.2 wants between a second and five minutes
)

// key is what a cached answer depends on.
type key struct {
	name   string // lower case
	qtype  uint16
	do, cd bool
}

// cache holds the answers that were used last. It is safe for use from many goroutines.
type cache struct {
	entries int // at most so many
	bytes   int // at most so many, roughly

	mu   sync.Mutex
	byAt list.List // of *cached, the last used one first
	all  map[key]*list.Element
	used int
}

type cached struct {
	key    key
	answer *packed
}

// overhead is about what an entry costs besides its message and its name.
const overhead = 320

func (c cached) size() int {
	return overhead + len(c.key.name) + cap(c.answer.wire) + 8*cap(c.answer.ttls)
}

func newCache(entries, bytes int) *cache {
	return &cache{entries: entries, bytes: bytes, all: map[key]*list.Element{}}
}

// get is the answer that is good at the time now, or nil.
func (c *cache) get(k key, now time.Time) *packed {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.all[k]
	if !ok {
		return nil
	}
	answer := e.Value.(*cached).answer
	if now.Sub(answer.stored) >= answer.life {
		c.remove(e)
		return nil
	}
	c.byAt.MoveToFront(e)
	return answer
}

// put keeps an answer as long as it is good, unless others are used more.
func (c *cache) put(k key, answer *packed) {
	entry := &cached{k, answer}
	c.mu.Lock()
	defer c.mu.Unlock()
	if old, ok := c.all[k]; ok {
		c.remove(old)
	}
	if answer.life <= 0 {
		return
	}
	c.all[k] = c.byAt.PushFront(entry)
	c.used += entry.size()
	for len(c.all) > c.entries || c.used > c.bytes {
		c.remove(c.byAt.Back())
	}
}

func (c *cache) remove(e *list.Element) {
	entry := c.byAt.Remove(e).(*cached)
	delete(c.all, entry.key)
	c.used -= entry.size()
}

// clear forgets everything.
func (c *cache) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.byAt.Init()
	clear(c.all)
	c.used = 0
}

// fill is how many answers there are, and about how many bytes they take.
func (c *cache) fill() (entries, bytes int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.all), c.used
}
