package session

import (
	"net"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// routes chooses the address at which a run of a peer is reached. A run lasts from one start of the peer's
// agent to its end. memberlist knows only the address that the peer advertises; the peer's record has all
// addresses. A stream tries one address after the other, each with a whole handshake, since another host
// may have taken over an address. If another address than the advertised one answers, packets use it too,
// until it stops answering.
type routes struct {
	// others returns the addresses in the record of a run's peer, as HOST:PORT.
	others func(run string) []string

	mu    sync.Mutex
	found map[string]string // the address that answered in place of the advertised one; key: the run's name
}

// headStart is the delay before the next address is tried in parallel (RFC 8305, section 5).
const headStart = 200 * time.Millisecond

// to returns the address for packets to a run.
func (r *routes) to(a memberlist.Address) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if found := r.found[a.Name]; found != "" {
		return found
	}
	return a.Addr
}

// forget drops the address of a run that has ended.
func (r *routes) forget(run string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.found, run)
}

// note stores the address that answered.
func (r *routes) note(a memberlist.Address, answered string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if answered == a.Addr || a.Name == "" {
		delete(r.found, a.Name)
		return
	}
	if r.found == nil {
		r.found = map[string]string{}
	}
	r.found[a.Name] = answered
}

// all returns the addresses to try, in order: the address that answered last, the advertised address, and
// the other addresses of the record.
func (r *routes) all(a memberlist.Address) []string {
	list := []string{r.to(a), a.Addr}
	if a.Name != "" && r.others != nil {
		list = append(list, r.others(a.Name)...)
	}
	var out []string
	for _, addr := range list {
		if !slices.Contains(out, addr) {
			out = append(out, addr)
		}
	}
	return out
}

// dial opens a stream at the first address whose handshake succeeds. If an address does not succeed within
// headStart, dial tries the next one in parallel.
func dial[C net.Conn](r *routes, a memberlist.Address, timeout time.Duration, open func(addr string, timeout time.Duration) (C, error)) (won C, err error) {
	addrs := r.all(a)
	type result struct {
		addr string
		conn C
		err  error
	}
	deadline := time.Now().Add(timeout)
	results := make(chan result, len(addrs))
	next, pending := 0, 0
	start := func() {
		addr := addrs[next]
		next, pending = next+1, pending+1
		go func() { // this goroutine ends with its dial
			c, err := open(addr, time.Until(deadline))
			results <- result{addr, c, err}
		}()
	}
	start()
	for pending > 0 {
		var wait <-chan time.Time
		if next < len(addrs) {
			wait = time.After(headStart)
		}
		select {
		case got := <-results:
			pending--
			if got.err == nil {
				r.note(a, got.addr)
				go func() { // this goroutine ends with the last dial
					for range pending {
						if late := <-results; late.err == nil {
							late.conn.Close()
						}
					}
				}()
				return got.conn, nil
			}
			if err == nil {
				err = got.err
			}
			if next < len(addrs) {
				start()
			}
		case <-wait:
			start()
		}
	}
	return won, err
}
