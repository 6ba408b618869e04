package dns

import (
	"container/list"
	"sync"
	"time"
)

// The longest lifetimes of cached answers.
const (
	maxLife     = time.Hour       // the longest lifetime of a positive answer
	maxNegative = 5 * time.Minute // the longest lifetime of a negative answer; RFC 2308 5 wants at most three hours
	failureLife = time.Second     // the lifetime of a failure; RFC 9520 3.2 wants 1 s to 5 min
)

// key identifies a cached answer.
type key struct {
	name   string // in lower case
	qtype  uint16
	do, cd bool
}

// cache holds the most recently used answers. It is safe for concurrent use.
type cache struct {
	entries int // limit of entries
	bytes   int // approximate limit of bytes

	mu   sync.Mutex
	byAt list.List // has *cached elements, the most recently used one first
	all  map[key]*list.Element
	used int
}

type cached struct {
	key    key
	answer *packed
}

// overhead is the approximate size of an entry without its message and name.
const overhead = 320

func (c cached) size() int {
	return overhead + len(c.key.name) + cap(c.answer.wire) + 8*cap(c.answer.ttls)
}

func newCache(entries, bytes int) *cache {
	return &cache{entries: entries, bytes: bytes, all: map[key]*list.Element{}}
}

// get returns the answer that is valid at the time now, or nil.
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

// put adds an answer until its lifetime ends, or more recently used ones displace it.
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

// clear removes all entries.
func (c *cache) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.byAt.Init()
	clear(c.all)
	c.used = 0
}

// fill returns the number of answers and their approximate size.
func (c *cache) fill() (entries, bytes int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.all), c.used
}
