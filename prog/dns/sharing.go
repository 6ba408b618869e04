package dns

import (
	"slices"
	"sync"
)

// Client is who asks, for sharing between clients.
type Client struct {
	Name string // an endpoint, or what runs on a host itself
	Host string // where that is; "" for this host
}

// limits bound what goes on at a time.
type limits struct {
	most   int // in all
	remote int // of all other hosts together; the rest is there for this host's own clients
	host   int // of all clients of one other host together
	each   int // of one client
}

// sharing counts what goes on for each client. Who is at its own limit gets no more. Where
// all that it could have a part of is taken, it gets the place of a client that has more, so
// that neither many greedy clients nor a greedy host leave others without. It is safe for
// use from many goroutines.
type sharing struct {
	limits

	mu     sync.Mutex
	total  int
	remote int
	hosts  map[string]int // others
	held   map[Client][]*place
}

// place is what a client holds. When another client needs it more, it is taken away, and
// end is called.
type place struct {
	client Client
	end    func()
}

// enter gives a client a place, or nil.
func (s *sharing) enter(c Client, end func()) *place {
	p, lost := s.admit(c, end)
	if lost != nil {
		lost.end()
	}
	return p
}

func (s *sharing) admit(c Client, end func()) (p, lost *place) {
	s.mu.Lock()
	defer s.mu.Unlock()
	mine := len(s.held[c])
	if mine >= s.each {
		return nil, nil
	}
	if full := s.full(c); full != nil {
		if lost = s.greediest(full, mine+1); lost == nil {
			return nil, nil
		}
		s.remove(lost)
	}
	if s.held == nil {
		s.hosts, s.held = map[string]int{}, map[Client][]*place{}
	}
	p = &place{c, end}
	s.total++
	s.held[c] = append(s.held[c], p)
	if c.Host != "" {
		s.remote++
		s.hosts[c.Host]++
	}
	return p, lost
}

// full matches the clients that hold all places of which c could have one; nil: some are free.
func (s *sharing) full(c Client) func(Client) bool {
	switch {
	case c.Host != "" && s.hosts[c.Host] >= s.host:
		return func(o Client) bool { return o.Host == c.Host }
	case c.Host != "" && s.remote >= s.limits.remote:
		return func(o Client) bool { return o.Host != "" }
	case s.total >= s.most:
		return func(Client) bool { return true }
	}
	return nil
}

// greediest is the oldest place of the client, among some, that has the most, and more than
// a number.
func (s *sharing) greediest(among func(Client) bool, most int) (p *place) {
	for c, places := range s.held {
		if len(places) > most && among(c) {
			p, most = places[0], len(places)
		}
	}
	return p
}

// leave gives a place back. One that was taken away is given back already.
func (s *sharing) leave(p *place) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.remove(p)
}

func (s *sharing) remove(p *place) {
	places := s.held[p.client]
	i := slices.Index(places, p)
	if i < 0 {
		return
	}
	if places = slices.Delete(places, i, i+1); len(places) == 0 {
		delete(s.held, p.client)
	} else {
		s.held[p.client] = places
	}
	s.total--
	if host := p.client.Host; host != "" {
		s.remote--
		if s.hosts[host]--; s.hosts[host] == 0 {
			delete(s.hosts, host)
		}
	}
}
