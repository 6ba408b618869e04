package dns

import (
	"slices"
	"sync"
)

// Client identifies the source of queries, for fair sharing between clients.
type Client struct {
	Name string // an endpoint, or the processes of a host itself
	Host string // host of the client; "" for this host
}

// limits are upper limits of concurrent places.
type limits struct {
	most   int // the limit of all clients together
	remote int // the limit of all other hosts together; the difference to most is reserved for this host's clients
	host   int // the limit of all clients of one other host together
	each   int // the limit of one client
}

// sharing limits and counts the places in use by each client. A client at its own limit gets no more
// places. If another limit is reached, a client takes a place from a client with more places. So
// neither many greedy clients nor a greedy host can lock others out. It is safe for concurrent use.
type sharing struct {
	limits

	mu     sync.Mutex
	total  int
	remote int
	hosts  map[string]int // the number of places of each other host
	held   map[Client][]*place
}

// place is held by a client until it calls leave. If another client takes the place, end is called.
type place struct {
	client Client
	end    func()
}

// enter returns a place for one query of a client. It returns nil if a limit is reached, and no client
// that has more places must give one up.
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

// full returns nil if c may get a free place. Otherwise it matches the clients from which c may take
// a place.
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

// greediest returns the oldest place of the matching client with the most places. It returns nil if no
// such client has more than the given number.
func (s *sharing) greediest(among func(Client) bool, most int) (p *place) {
	for c, places := range s.held {
		if len(places) > most && among(c) {
			p, most = places[0], len(places)
		}
	}
	return p
}

// leave frees a place. It does nothing if another client has taken it.
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
