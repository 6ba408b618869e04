package live

import (
	"sync"
	"time"
)

// Recent is an answer that is used again for a while. Of several requests at once, one makes it, and the others wait
// for it. The zero value has no answer. A Recent is safe for concurrent use.
type Recent[T any] struct {
	mu    sync.Mutex
	value T
	until time.Time
}

// Get returns the last answer, or makes a new one. newAnswer also returns how long its answer lasts. Errors do not last.
func (r *Recent[T]) Get(newAnswer func() (T, time.Duration, error)) (T, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if time.Now().Before(r.until) {
		return r.value, nil
	}
	value, lasts, err := newAnswer()
	if err == nil {
		r.value, r.until = value, time.Now().Add(lasts)
	}
	return value, err
}
