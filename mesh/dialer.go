package mesh

import (
	"net"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// dialer finds the address at which a run of a peer is reached. A run lasts from one start of the
// peer's agent to its end. memberlist knows only the address that the peer advertises; the peer's
// record has all addresses. A stream tries one address after the other. If another address than
// the advertised one answers, packets use it too, until it stops answering. A dialer is safe for
// concurrent use.
type dialer struct {
	// others returns the addresses in the record of a run's peer, as HOST:PORT.
	others func(run string) []string

	mu    sync.Mutex
	found map[string]string // the address that answered in place of the advertised one; key: the run's name
}

// headStart is the delay before the next address is tried in parallel (RFC 8305, section 5).
const headStart = 200 * time.Millisecond

// to returns the address for packets to a run.
func (w *dialer) to(a memberlist.Address) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if found := w.found[a.Name]; found != "" {
		return found
	}
	return a.Addr
}

// forget drops the address of a run that has ended.
func (w *dialer) forget(run string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.found, run)
}

// note stores the address that answered.
func (w *dialer) note(a memberlist.Address, answered string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if answered == a.Addr {
		delete(w.found, a.Name)
		return
	}
	if w.found == nil {
		w.found = map[string]string{}
	}
	w.found[a.Name] = answered
}

// all returns the addresses to try, in order: the address that answered last, the advertised
// address, and the other addresses of the record.
func (w *dialer) all(a memberlist.Address) []string {
	list := []string{w.to(a), a.Addr}
	if a.Name != "" {
		list = append(list, w.others(a.Name)...)
	}
	var out []string
	for _, addr := range list {
		if !slices.Contains(out, addr) {
			out = append(out, addr)
		}
	}
	return out
}

// dial opens a stream to the first address that answers. If an address does not answer within
// headStart, dial tries the next one in parallel.
func (w *dialer) dial(a memberlist.Address, timeout time.Duration, dial func(string, time.Duration) (net.Conn, error)) (net.Conn, error) {
	addrs := w.all(a)
	if len(addrs) == 1 {
		return dial(addrs[0], timeout)
	}
	type result struct {
		addr string
		conn net.Conn
		err  error
	}
	deadline := time.Now().Add(timeout)
	results := make(chan result, len(addrs))
	var first error
	next, pending := 0, 0
	start := func() {
		addr := addrs[next]
		next, pending = next+1, pending+1
		go func() { // this goroutine ends with its dial
			conn, err := dial(addr, time.Until(deadline))
			results <- result{addr, conn, err}
		}()
	}
	start()
	for pending > 0 {
		var wait <-chan time.Time
		if next < len(addrs) {
			wait = time.After(headStart)
		}
		select {
		case r := <-results:
			pending--
			if r.err == nil {
				w.note(a, r.addr)
				go func() { // this goroutine ends with the last dial
					for range pending {
						if late := <-results; late.err == nil {
							late.conn.Close()
						}
					}
				}()
				return r.conn, nil
			}
			if first == nil {
				first = r.err
			}
			if next < len(addrs) {
				start()
			}
		case <-wait:
			start()
		}
	}
	return nil, first
}
