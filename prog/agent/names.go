package agent

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"weft/mesh/directory"
	"weft/prog/api"
)

// givenName is a name that people gave: to an endpoint here, to this host, or to an
// address outside the network.
type givenName struct {
	Name     string     `json:"name"`               // relative to the domain, lower case
	Endpoint string     `json:"endpoint,omitempty"` // its key, or nodeKey
	Addr     netip.Addr `json:"addr,omitzero"`      // where there is no endpoint
	Exposed  bool       `json:"exposed,omitempty"`  // given by expose, and ended by hide
}

// aliases are the names that people gave to an endpoint.
func (s settings) aliases(key string) (out []string) {
	for _, n := range s.Names {
		if n.Endpoint == key {
			out = append(out, n.Name)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// ownName reports whether a name is an endpoint's own: what it was called when it was
// attached, alone or with its namespace.
func (a *Agent) ownName(key, name string) bool {
	e := a.endpoint(key)
	if e == nil {
		return false
	}
	own, _ := e.entry().Fit() // what does not fit is no name anywhere
	return own.Name != "" && (name == "" || slices.Contains(own.Names(), name))
}

// withdraw takes the own names away that a request means, and reports whether there was one.
func (a *Agent) withdraw(s *settings, given []givenName, name string) (any bool) {
	for _, g := range given {
		if g.Endpoint != "" && !slices.Contains(s.Withdrawn, g.Endpoint) && a.ownName(g.Endpoint, name) {
			s.Withdrawn, any = append(s.Withdrawn, g.Endpoint), true
		}
	}
	return any
}

// restore gives an endpoint its own name back if that was taken away.
func (a *Agent) restore(s *settings, key, name string) bool {
	i := slices.Index(s.Withdrawn, key)
	if i < 0 || !a.ownName(key, name) {
		return false
	}
	s.Withdrawn = slices.Delete(s.Withdrawn, i, i+1)
	return true
}

// outside counts the addresses outside that have a name.
func (s settings) outside(name string) (n int) {
	for _, g := range s.Names {
		if g.Endpoint == "" && g.Name == name {
			n++
		}
	}
	return n
}

// change stores changed settings and then goes by them, unless f refuses.
func (a *Agent) change(f func(*settings) error) error {
	a.changing.Lock()
	defer a.changing.Unlock()
	a.mu.Lock()
	next := a.settings
	a.mu.Unlock()
	next.Names, next.Withdrawn = slices.Clone(next.Names), slices.Clone(next.Withdrawn)
	if err := f(&next); err != nil {
		return err
	}
	if err := a.store.SaveSettings(next); err != nil {
		return err
	}
	a.mu.Lock()
	a.settings = next
	a.mu.Unlock()
	a.changed()
	a.rename()
	return nil
}

// relative is a name without the domain. Weave's users write names with it and without.
func (a *Agent) relative(name string) (string, error) {
	bad := func(err error) error { return &api.Error{Code: api.CodeBadRequest, Message: err.Error()} }
	short := strings.ToLower(a.short(name))
	switch {
	case strings.HasSuffix(short, "."):
		return "", bad(fmt.Errorf("%s is outside the domain of this network, %s", name, a.opts.DNS.Domain))
	case short != "" && short == a.opts.DNS.Domain:
		return "", bad(fmt.Errorf("%s is the domain of this network itself: want a name in it, such as web or web.%[1]s", short))
	}
	if err := directory.CheckName(short); err != nil {
		return "", bad(err)
	}
	return short, nil
}

// short is a name without the domain; one that is not below it stays as it is.
func (a *Agent) short(name string) string {
	whole, domain := strings.TrimSuffix(name, "."), "."+a.opts.DNS.Domain
	if n := len(whole) - len(domain); n > 0 && strings.EqualFold(whole[n:], domain) {
		return whole[:n]
	}
	return name
}

// AddName gives a container here, this host, or an address outside a name. A container's own
// name comes back so.
func (a *Agent) AddName(ctx context.Context, req api.NameRequest) error {
	name, err := a.relative(req.Name)
	if err != nil {
		return err
	}
	given, err := a.targetsOf(ctx, req)
	if err != nil {
		return err
	}
	return a.change(func(s *settings) error {
		for _, g := range given {
			if a.restore(s, g.Endpoint, name) {
				continue
			}
			if g.Name = name; !slices.Contains(s.Names, g) {
				s.Names = append(s.Names, g)
			}
			if g.Endpoint != "" && len(s.aliases(g.Endpoint)) > directory.MaxAliases || s.outside(name) > directory.MaxOutside {
				return &api.Error{Code: api.CodeBadRequest, Message: fmt.Sprintf(
					"an endpoint has at most %d further names, and a name at most %d addresses outside: `weft dns-remove` takes some back", directory.MaxAliases, directory.MaxOutside)}
			}
		}
		return nil
	})
}

// RemoveName takes back what AddName gave, and a container's own name too, so that nobody new
// finds one that is about to end. That lasts over restarts of the agent, and until the
// container is attached anew.
func (a *Agent) RemoveName(ctx context.Context, req api.NameRequest) (err error) {
	name := ""
	if req.Name != "" {
		if name, err = a.relative(req.Name); err != nil {
			return err
		}
	}
	given, err := a.targetsOf(ctx, req)
	if err != nil {
		return err
	}
	return a.change(func(s *settings) error {
		before := len(s.Names)
		s.Names = slices.DeleteFunc(s.Names, func(n givenName) bool {
			return (name == "" || n.Name == name) && slices.ContainsFunc(given, func(g givenName) bool {
				return g.Endpoint == n.Endpoint && g.Addr == n.Addr
			})
		})
		if withdrawn := a.withdraw(s, given, name); len(s.Names) == before && !withdrawn {
			return &api.Error{Code: api.CodeNotFound, Message: "no such name was given on this host, or is a container's own here (`weft status dns` lists all names; the host that gave one takes it back)"}
		}
		return nil
	})
}

// targetsOf are what a request speaks of: endpoints, this host, or addresses outside.
func (a *Agent) targetsOf(ctx context.Context, req api.NameRequest) (out []givenName, err error) {
	var keys []string // of the container's interfaces
	if req.Container != "" {
		if keys, err = a.findEndpoints(req.Container); err != nil {
			return nil, err
		}
		switch {
		case len(req.Addresses) > 0: // they say which
		case len(keys) > 1:
			return nil, &api.Error{Code: api.CodeBadRequest, Message: fmt.Sprintf("%s names several endpoints here (`weft ps`): give an address instead", req.Container)}
		default:
			out = append(out, givenName{Endpoint: keys[0]})
		}
	}
	snap, err := a.ipam.Snapshot(ctx)
	if err != nil {
		return nil, err
	}
	for _, addr := range req.Addresses {
		s, inside := snap.Ring.Universe.Slot(addr)
		if keys != nil && !slices.ContainsFunc(keys, func(k string) bool { have, ok := snap.Allocations[k]; return inside && ok && have == s }) {
			return nil, &api.Error{Code: api.CodeBadRequest, Message: fmt.Sprintf("%v is no address of %s (`weft ps`): leave out the one or the other", addr, req.Container)}
		}
		if !inside {
			if err := directory.CheckOutside(addr); err != nil {
				return nil, &api.Error{Code: api.CodeBadRequest, Message: err.Error()}
			}
			out = append(out, givenName{Addr: addr})
			continue
		}
		key := ""
		for k, have := range snap.Allocations {
			if have == s {
				key = k
			}
		}
		if key == "" {
			owner, _ := snap.Ring.Owner(s)
			return nil, &api.Error{Code: api.CodeNotFound, Message: fmt.Sprintf(
				"nothing on this host has the address %v: names are given on the host that has it (it is one of %s's addresses)", addr, a.mesh.Name(owner))}
		}
		out = append(out, givenName{Endpoint: key})
	}
	if len(out) == 0 {
		return nil, &api.Error{Code: api.CodeBadRequest, Message: "name a container or an address"}
	}
	return out, nil
}

// findEndpoints are the keys of the endpoints that a word names: a container's id or name, or
// else the beginning of an id.
func (a *Agent) findEndpoints(word string) ([]string, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	var exact, begin []string
	for k, e := range a.endpoints {
		switch {
		case word == "": // an empty variable of a script means nobody
		case e.ContainerID == word || strings.EqualFold(e.Name, word) || strings.EqualFold(e.Namespace+"/"+e.Name, word):
			exact = append(exact, k)
		case strings.HasPrefix(e.ContainerID, word):
			begin = append(begin, k)
		}
	}
	switch {
	case len(exact) > 0:
		return exact, nil
	case len(begin) > 0:
		return begin, nil
	}
	return nil, &api.Error{Code: api.CodeNotFound, Message: fmt.Sprintf("%s is not attached to this host (`weft ps` lists what is)", word)}
}

// forgetNames drops the names of an endpoint that ended.
func (a *Agent) forgetNames(key string) error {
	a.changing.Lock() // a change that saw the endpoint is done then
	a.mu.Lock()
	named := len(a.settings.aliases(key)) > 0 || slices.Contains(a.settings.Withdrawn, key)
	a.mu.Unlock()
	a.changing.Unlock()
	if !named {
		return nil
	}
	return a.change(func(s *settings) error {
		s.Names = slices.DeleteFunc(s.Names, func(n givenName) bool { return n.Endpoint == key })
		s.Withdrawn = slices.DeleteFunc(s.Withdrawn, func(k string) bool { return k == key })
		return nil
	})
}

// Lookup is what a name stands for, as far as it can be reached; an address works too.
func (a *Agent) Lookup(_ context.Context, req api.LookupRequest) ([]api.Name, error) {
	v := a.view.Load()
	if v == nil {
		return nil, &api.Error{Code: api.CodeNotReady, Message: "not ready: the agent is starting"}
	}
	var out []api.Name
	missing := fmt.Sprintf("nothing that can be reached has the address %s and a name", req.Name)
	if addr, err := netip.ParseAddr(req.Name); err == nil {
		if s, inside := v.ring.Universe.Slot(addr); inside {
			if e, ok := (names{a}).At(s); ok {
				out = a.describeNames([]directory.Entry{e}, func(string) bool { return true })
			}
		}
	} else {
		name, err := a.relative(req.Name)
		if err != nil {
			return nil, err
		}
		entries, _ := names{a}.Lookup(name)
		out = a.describeNames(entries, func(n string) bool { return n == name })
		missing = fmt.Sprintf("%s is no name in %s that can be reached", req.Name, a.opts.DNS.Domain)
	}
	if len(out) == 0 {
		return nil, &api.Error{Code: api.CodeNotFound, Message: missing + " (`weft status dns` lists all)"}
	}
	return out, nil
}
