package agent

import (
	"context"
	"time"

	"weft/prog/api"
)

// turnTimeout bounds how long the end of an endpoint waits for what others do with it. The
// plugin has the patience for that, and has to be back within 10 s.
const turnTimeout = 5 * time.Second

// begin takes the endpoint of key for one operation at a time.
func (a *Agent) begin(key string) (done func(), err error) {
	done, other := a.take(key)
	if other != nil {
		return nil, &api.Error{Code: api.CodeNotReady, Message: "another operation on " + key + " is under way: try again"}
	}
	return done, nil
}

// turn is begin for one who waits until others are done with the endpoint.
func (a *Agent) turn(ctx context.Context, key string) (done func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, turnTimeout)
	defer cancel()
	for {
		done, other := a.take(key)
		if other == nil {
			return done, nil
		}
		select {
		case <-other:
		case <-ctx.Done():
			return a.begin(key)
		}
	}
}

// take takes the endpoint of key, or says when another operation on it ends.
func (a *Agent) take(key string) (done func(), other <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if other := a.busy[key]; other != nil {
		return nil, other
	}
	ended := make(chan struct{})
	a.busy[key] = ended
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(a.busy, key)
		close(ended)
	}, nil
}
