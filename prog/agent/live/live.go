// Package live connects the components of the agent: each publishes its state as a Value, and reads
// the values of others.
//
// A Value owns the last published state and its version: the number of changes. It is safe for
// concurrent use, holds no lock while a caller uses the state, and starts no goroutine. Published
// state must not be changed afterwards, since readers share it.
package live

import (
	"context"
	"sync"
	"time"
)

// Value is a published state. The zero Value holds the zero T, of version 0.
type Value[T any] struct {
	mu      sync.Mutex
	value   T
	version uint64
	changed chan struct{} // closed when the version grows; made for the first waiting reader
}

// Set publishes a state.
func (v *Value[T]) Set(value T) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.value = value
	v.version++
	if v.changed != nil {
		close(v.changed)
		v.changed = nil
	}
}

// Get returns the last state.
func (v *Value[T]) Get() T {
	value, _ := v.Read()
	return value
}

// Read returns the last state and its version.
func (v *Value[T]) Read() (value T, version uint64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.value, v.version
}

// Version returns how many states were published.
func (v *Value[T]) Version() uint64 {
	_, version := v.Read()
	return version
}

// Changed returns a channel that is closed as soon as the version differs from seen, the version that
// the caller read last. So no change between Read and Changed is missed.
func (v *Value[T]) Changed(seen uint64) <-chan struct{} {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.version != seen {
		return closed
	}
	if v.changed == nil {
		v.changed = make(chan struct{})
	}
	return v.changed
}

// Reader is a Value for those that only read it: another component publishes it.
type Reader[T any] interface {
	Get() T
	Read() (value T, version uint64)
	Changed(seen uint64) <-chan struct{}
	Version() uint64
}

// closed is a channel that is closed from the start.
var closed = func() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

// Pause waits for d, or until ctx ends.
func Pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
