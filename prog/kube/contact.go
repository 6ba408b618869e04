package kube

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// contact is how it goes to list and to watch one resource. The zero contact is of one that was
// not asked for yet.
type contact struct {
	mu          sync.Mutex
	list, watch error
	failing     time.Time // since when one of them fails; zero: none does
	last        time.Time // when the API server last said anything
}

// patienceWith is how long the API server may be away before that is worth a word: it is
// started anew now and then. silent is for how long a watch may say nothing: a server ends each
// within ten minutes, and most send a bookmark every minute.
const (
	patienceWith = 15 * time.Second
	silent       = 12 * time.Minute
)

func (c *contact) listed(ctx context.Context, err error) { c.note(ctx, &c.list, err) }

func (c *contact) watched(ctx context.Context, err error) { c.note(ctx, &c.watch, err) }

func (c *contact) note(ctx context.Context, which *error, err error) {
	if ctx.Err() != nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	switch *which = err; {
	case err == nil:
		c.last = now
		if c.list == nil && c.watch == nil {
			c.failing = time.Time{}
		}
	case c.failing.IsZero():
		c.failing = now
	}
}

func (c *contact) heard() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = time.Now()
}

// trouble is why what is known of the resource may not be what the API server has; nil: it is.
func (c *contact) trouble() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, err := range []error{c.list, c.watch} {
		if err != nil && (refused(err) || time.Since(c.failing) > patienceWith) {
			return err
		}
	}
	if quiet := time.Since(c.last); !c.last.IsZero() && quiet > silent {
		return fmt.Errorf("the API server has said nothing for %v, though its connection is open: start the agent's pod anew, and see what lies between", quiet.Round(time.Minute))
	}
	return nil
}
