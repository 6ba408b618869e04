package kube

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// contact is the state of listing and watching one resource. The zero value means that it was not
// requested yet.
type contact struct {
	mu          sync.Mutex
	list, watch error
	failing     time.Time // since when requests fail; zero: requests succeed
	last        time.Time // time of the API server's last message
}

// patienceWith is how long the API server may be unreachable before that is reported, since it is
// restarted now and then. silent is how long a watch may receive nothing: servers end each watch
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

// trouble returns why the known objects may be outdated; nil if they are current.
func (c *contact) trouble() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, err := range []error{c.list, c.watch} {
		if err != nil && (refused(err) || time.Since(c.failing) > patienceWith) {
			return err
		}
	}
	if quiet := time.Since(c.last); !c.last.IsZero() && quiet > silent {
		return fmt.Errorf("the API server has sent nothing for %v, though the connection is open: restart the agent's pod, and check firewalls and proxies in between", quiet.Round(time.Minute))
	}
	return nil
}
