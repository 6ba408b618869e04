package attach

import (
	"context"
	"sync"
	"time"

	"weft/prog/api"
)

// otherTimeout bounds how long Detach waits for another operation on the endpoint. The plugin
// must return to the runtime within 10 s.
const otherTimeout = 5 * time.Second

// keys locks the endpoints that are being attached or detached: one operation at a time works on
// each endpoint.
type keys struct {
	mu    sync.Mutex
	taken map[string]chan struct{} // closed when the operation ends
}

// begin takes a key, unless another operation has it.
func (k *keys) begin(key string) (done func(), err error) {
	done, other := k.take(key)
	if other != nil {
		return nil, &api.Error{Code: api.CodeNotReady, Message: "another operation on " + key + " is under way: try again"}
	}
	return done, nil
}

// wait takes a key once other operations on it have ended.
func (k *keys) wait(ctx context.Context, key string) (done func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, otherTimeout)
	defer cancel()
	for {
		done, other := k.take(key)
		if other == nil {
			return done, nil
		}
		select {
		case <-other:
		case <-ctx.Done():
			return k.begin(key)
		}
	}
}

// take locks a key. If another operation has it, take returns a channel that is closed when that
// operation ends.
func (k *keys) take(key string) (done func(), other <-chan struct{}) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if other := k.taken[key]; other != nil {
		return nil, other
	}
	ended := make(chan struct{})
	k.taken[key] = ended
	return func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		delete(k.taken, key)
		close(ended)
	}, nil
}
