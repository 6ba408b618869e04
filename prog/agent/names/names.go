// Package names answers and changes the names of the network: those that endpoints brought along,
// and those that operators gave to endpoints, to this host and to addresses outside.
//
// A Service owns nothing: names that operators gave are in the settings, all other names are in the
// directory. It has no goroutine.
package names

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"weft/ipam/slot"
	"weft/mesh/directory"
	"weft/mesh/peer"
	"weft/prog/agent/attach"
	"weft/prog/agent/live"
	"weft/prog/agent/resolver"
	"weft/prog/agent/settings"
	"weft/prog/agent/view"
	"weft/prog/api"
	"weft/prog/words"
	"weft/router/problem"
)

// Directory has the endpoints of all peers.
type Directory interface {
	Entries(directory.Ring) []directory.Entry
	// Stuck reports how many freed slots wait for other peers.
	Stuck() (slots int, since time.Time, why error)
}

// Attached returns the endpoints of this host.
type Attached interface {
	Get() []attach.Endpoint
	Find(word string) ([]string, error)
}

// Config configures a Service.
type Config struct {
	Domain    string
	Directory Directory
	Resolver  resolver.Names
	Attached  Attached
	Settings  *settings.Settings
	NodeAddr  live.Reader[slot.Slot]
	View      live.Reader[*view.View]
	PeerName  func(peer.ID) string
}

// Service answers and changes names. It is safe for concurrent use.
type Service struct{ cfg Config }

// New makes a service.
func New(cfg Config) *Service { return &Service{cfg} }

func bad(err error) error { return &api.Error{Code: api.CodeBadRequest, Message: err.Error()} }

// relative returns a name without the domain. Weave's users write names with it and without.
func (n *Service) relative(name string) (string, error) {
	short := strings.ToLower(n.Short(name))
	switch {
	case strings.HasSuffix(short, "."):
		return "", bad(fmt.Errorf("%s is outside the domain of this network, %s", name, n.cfg.Domain))
	case short != "" && short == n.cfg.Domain:
		return "", bad(fmt.Errorf("%s is the domain of this network itself: want a name in this domain, such as web or web.%[1]s", short))
	}
	if err := directory.CheckName(short); err != nil {
		return "", bad(err)
	}
	return short, nil
}

// Short returns a name without the domain. A name outside the domain stays as it is.
func (n *Service) Short(name string) string {
	whole, domain := strings.TrimSuffix(name, "."), "."+n.cfg.Domain
	if i := len(whole) - len(domain); i > 0 && strings.EqualFold(whole[i:], domain) {
		return whole[:i]
	}
	return name
}

// owns reports whether a name is an endpoint's own.
func (n *Service) owns(key, name string) bool {
	attached := n.cfg.Attached.Get()
	i := slices.IndexFunc(attached, func(e attach.Endpoint) bool { return e.Key() == key })
	return i >= 0 && attached[i].Owns(name)
}

// withdraw removes those names of a request from DNS that are endpoints' own names, and reports whether
// there was one.
func (n *Service) withdraw(v *settings.Values, given []settings.Name, name string) (any bool) {
	for _, g := range given {
		if g.Endpoint != "" && !slices.Contains(v.Withdrawn, g.Endpoint) && n.owns(g.Endpoint, name) {
			v.Withdrawn, any = append(v.Withdrawn, g.Endpoint), true
		}
	}
	return any
}

// restore gives an endpoint its own name back if it was withdrawn.
func (n *Service) restore(v *settings.Values, key, name string) bool {
	i := slices.Index(v.Withdrawn, key)
	if i < 0 || !n.owns(key, name) {
		return false
	}
	v.Withdrawn = slices.Delete(v.Withdrawn, i, i+1)
	return true
}

// AddName gives a container here, this host, or an address outside a name. If the name is the
// container's own one, and was withdrawn, DNS has it again.
func (n *Service) AddName(_ context.Context, req api.NameRequest) error {
	name, err := n.relative(req.Name)
	if err != nil {
		return err
	}
	given, err := n.targets(req)
	if err != nil {
		return err
	}
	return n.cfg.Settings.Change(func(v *settings.Values) error {
		for _, g := range given {
			if n.restore(v, g.Endpoint, name) {
				continue
			}
			if g.Name = name; !slices.Contains(v.Names, g) {
				v.Names = append(v.Names, g)
			}
			if g.Endpoint != "" && len(v.Aliases(g.Endpoint)) > directory.MaxAliases || v.Outside(name) > directory.MaxOutside {
				return &api.Error{Code: api.CodeBadRequest, Message: fmt.Sprintf(
					"an endpoint has at most %d further names, and a name at most %d addresses outside: `weft dns-remove` takes some back", directory.MaxAliases, directory.MaxOutside)}
			}
		}
		return nil
	})
}

// RemoveName removes a name that AddName gave, or a container's own name. So new clients do not find
// a container that is about to end. That persists over restarts of the agent, until the container is
// attached again.
func (n *Service) RemoveName(_ context.Context, req api.NameRequest) (err error) {
	name := ""
	if req.Name != "" {
		if name, err = n.relative(req.Name); err != nil {
			return err
		}
	}
	given, err := n.targets(req)
	if err != nil {
		return err
	}
	return n.cfg.Settings.Change(func(v *settings.Values) error {
		before := len(v.Names)
		v.Names = slices.DeleteFunc(v.Names, func(have settings.Name) bool {
			return (name == "" || have.Name == name) && slices.ContainsFunc(given, func(g settings.Name) bool {
				return g.Endpoint == have.Endpoint && g.Addr == have.Addr
			})
		})
		if withdrawn := n.withdraw(v, given, name); len(v.Names) == before && !withdrawn {
			return &api.Error{Code: api.CodeNotFound, Message: "no such name was given on this host, or is a container's own here (`weft status dns` lists all names; only the host that gave a name can remove it)"}
		}
		return nil
	})
}

// Expose lets the underlay reach containers through this host, or ends that access.
func (n *Service) Expose(_ context.Context, req api.ExposeRequest) (err error) {
	name := ""
	if req.Name != "" {
		if name, err = n.relative(req.Name); err != nil {
			return err
		}
	}
	return n.cfg.Settings.Change(func(v *settings.Values) error {
		v.Exposed = req.On
		given := settings.Name{Name: name, Endpoint: settings.NodeKey, Exposed: true}
		switch {
		case !req.On: // the name led to the exposed host
			v.Names = slices.DeleteFunc(v.Names, func(have settings.Name) bool { return have.Exposed })
		case name != "" && !slices.Contains(v.Names, given):
			v.Names = append(v.Names, given)
		}
		return nil
	})
}

// targets returns the subjects of a request: endpoints, this host, or addresses outside the network.
func (n *Service) targets(req api.NameRequest) (out []settings.Name, err error) {
	var keys []string // the keys of the container's interfaces
	if req.Container != "" {
		if keys, err = n.cfg.Attached.Find(req.Container); err != nil {
			return nil, err
		}
		switch {
		case len(req.Addresses) > 0: // the addresses choose the interfaces
		case len(keys) > 1:
			return nil, bad(fmt.Errorf("%s names several endpoints here (`weft ps`): give an address instead", req.Container))
		default:
			out = append(out, settings.Name{Endpoint: keys[0]})
		}
	}
	for _, addr := range req.Addresses {
		given, err := n.targetAt(addr, req.Container, keys)
		if err != nil {
			return nil, err
		}
		out = append(out, given)
	}
	if len(out) == 0 {
		return nil, bad(fmt.Errorf("name a container or an address"))
	}
	return out, nil
}

// targetAt returns the endpoint, this host or the outside address to which an address belongs. If the
// request names a container too, the address must belong to one of its keys.
func (n *Service) targetAt(addr netip.Addr, container string, keys []string) (settings.Name, error) {
	v := n.cfg.View.Get()
	if v == nil {
		return settings.Name{}, errStarting
	}
	s, inside := v.Ring.Universe.Slot(addr)
	key := ""
	if inside {
		key = n.keyAt(s)
	}
	switch {
	case keys != nil && !slices.Contains(keys, key):
		return settings.Name{}, bad(fmt.Errorf("%v is no address of %s (`weft ps`): leave out the address or the container", addr, container))
	case !inside:
		if err := directory.CheckOutside(addr); err != nil {
			return settings.Name{}, bad(err)
		}
		return settings.Name{Addr: addr}, nil
	case key == "":
		owner, _ := v.Ring.Owner(s)
		return settings.Name{}, &api.Error{Code: api.CodeNotFound, Message: fmt.Sprintf(
			"nothing on this host has the address %v: give the name on the host that has the address (it belongs to %s)", addr, n.cfg.PeerName(owner))}
	}
	return settings.Name{Endpoint: key}, nil
}

// keyAt returns the key of the endpoint with a slot on this host; empty if there is none.
func (n *Service) keyAt(s slot.Slot) string {
	if node := n.cfg.NodeAddr.Get(); node != 0 && s == node {
		return settings.NodeKey
	}
	for _, e := range n.cfg.Attached.Get() {
		if e.Slot == s {
			return e.Key()
		}
	}
	return ""
}

var errStarting = &api.Error{Code: api.CodeNotReady, Message: "not ready: the agent is starting"}

// Lookup returns the reachable addresses of a name, or the names of an address.
func (n *Service) Lookup(_ context.Context, req api.LookupRequest) ([]api.Name, error) {
	v := n.cfg.View.Get()
	if v == nil {
		return nil, errStarting
	}
	var out []api.Name
	missing := fmt.Sprintf("nothing that can be reached has the address %s and a name", req.Name)
	if addr, err := netip.ParseAddr(req.Name); err == nil {
		if s, inside := v.Ring.Universe.Slot(addr); inside {
			if e, ok := n.cfg.Resolver.At(s); ok {
				out = n.describe(v, []directory.Entry{e}, func(string) bool { return true })
			}
		}
	} else {
		name, err := n.relative(req.Name)
		if err != nil {
			return nil, err
		}
		entries, _ := n.cfg.Resolver.Lookup(name)
		out = n.describe(v, entries, func(have string) bool { return have == name })
		missing = fmt.Sprintf("%s is no name in %s that can be reached", req.Name, n.cfg.Domain)
	}
	if len(out) == 0 {
		return nil, &api.Error{Code: api.CodeNotFound, Message: missing + " (`weft status dns` lists all)"}
	}
	return out, nil
}

// Names lists all names in the DNS domain.
func (n *Service) Names(context.Context) ([]api.Name, error) {
	v := n.cfg.View.Get()
	if v == nil {
		return nil, nil
	}
	return n.describe(v, n.cfg.Directory.Entries(v.Ring), func(string) bool { return true }), nil
}

// describe lists the names of entries that a function chooses, sorted.
func (n *Service) describe(v *view.View, entries []directory.Entry, chosen func(name string) bool) []api.Name {
	out := []api.Name{}
	for _, e := range entries {
		for _, name := range e.Names() {
			if chosen(name) {
				out = append(out, api.Name{
					Name: name + "." + n.cfg.Domain, Addresses: e.Addrs(v.Ring.Universe), Endpoint: e.ID,
					Peer: e.Owner.String(), Nickname: v.Records[e.Owner].Nickname, Unreachable: !v.Present[e.Owner],
				})
			}
		}
	}
	slices.SortStableFunc(out, func(x, y api.Name) int { return strings.Compare(x.Name, y.Name) })
	return out
}

// stuckFor is how long freed slots wait for other peers before that is a problem.
const stuckFor = time.Minute

// Problems names the peers that keep freed addresses from being used again.
func (n *Service) Problems() []problem.Problem {
	slots, since, why := n.cfg.Directory.Stuck()
	if why == nil || time.Since(since) < stuckFor {
		return nil
	}
	return []problem.Problem{{
		Reason: problem.Address, About: "stuck",
		What:   fmt.Sprintf("%s %s not given again after being freed", words.Count(slots, "address"), words.Are(slots)),
		Effect: fmt.Sprintf("after %v some peers have not confirmed that they dropped the old names of these addresses: %v", time.Since(since).Round(time.Second), why),
		Fix:    "see the logs of the agents on those peers",
	}}
}
