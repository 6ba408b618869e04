package session

import (
	"context"
	"net"
	"time"
)

// dial opens a stream at the first address whose handshake succeeds, and returns that address. If an address does not
// take the connection within headStart, dial tries the next one in parallel. A host that takes it and is slow has more
// time: handshakes by all its addresses at once would make a busy host slower still. open calls connected once a
// connection stands, and ends with its context.
func dial[C net.Conn](places []place, timeout time.Duration, open func(ctx context.Context, addr string, connected func()) (C, error)) (won C, at place, err error) {
	type result struct {
		at   place
		conn C
		err  error
	}
	deadline := time.Now().Add(timeout)
	ctx, cancel := context.WithDeadline(context.Background(), deadline)
	defer cancel()
	results, connected := make(chan result, len(places)), make(chan struct{}, len(places))
	next, pending := 0, 0
	var wait <-chan time.Time
	start := func() {
		at := places[next]
		next, pending, wait = next+1, pending+1, time.After(headStart)
		go func() { // this goroutine ends with its dial
			c, err := open(ctx, at.addr, func() { connected <- struct{}{} })
			results <- result{at, c, err}
		}()
	}
	start()
	for pending > 0 {
		if next == len(places) {
			wait = nil
		}
		select {
		case got := <-results:
			pending--
			if got.err == nil {
				go func() { // this goroutine ends with the last dial
					for range pending {
						if late := <-results; late.err == nil {
							late.conn.Close()
						}
					}
				}()
				return got.conn, got.at, nil
			}
			if err == nil {
				err = got.err
			}
			if next < len(places) {
				start()
			}
		case <-connected:
			wait = time.After(min(slowStart, time.Until(deadline)/2))
		case <-wait:
			start()
		}
	}
	return won, at, err
}
