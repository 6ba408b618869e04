package session

import (
	"net"
	"time"
)

// dial opens a stream at the first address whose handshake succeeds, and returns that address. If an address
// does not succeed within headStart, dial tries the next one in parallel.
func dial[C net.Conn](places []place, timeout time.Duration, open func(addr string, timeout time.Duration) (C, error)) (won C, at place, err error) {
	type result struct {
		at   place
		conn C
		err  error
	}
	deadline := time.Now().Add(timeout)
	results := make(chan result, len(places))
	next, pending := 0, 0
	start := func() {
		at := places[next]
		next, pending = next+1, pending+1
		go func() { // this goroutine ends with its dial
			c, err := open(at.addr, time.Until(deadline))
			results <- result{at, c, err}
		}()
	}
	start()
	for pending > 0 {
		var wait <-chan time.Time
		if next < len(places) {
			wait = time.After(headStart)
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
		case <-wait:
			start()
		}
	}
	return won, at, err
}
