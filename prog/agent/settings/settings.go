// Package settings owns the settings that the operator changes while the agent runs: names,
// exposure, and excluded addresses. A change is stored before any component sees it.
//
// Settings are safe for concurrent use. One change is made at a time, and readers share the last
// Values, which are never changed.
package settings

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"weft/prog/agent/live"
	"weft/prog/kube"
)

// NodeKey is the key of this host itself, in place of an endpoint's key. Keys of endpoints contain a
// slash.
const NodeKey = "node"

// Name is a name that an operator gave: to an endpoint here, to this host, or to an address
// outside the network.
type Name struct {
	Name     string     `json:"name"`               // relative to the domain, lower case
	Endpoint string     `json:"endpoint,omitempty"` // its key, or NodeKey
	Addr     netip.Addr `json:"addr,omitzero"`      // if there is no endpoint
	Exposed  bool       `json:"exposed,omitempty"`  // given by expose, and taken back by hide
}

// Values are all settings.
type Values struct {
	Exposed bool           `json:"exposed"`
	Exclude []netip.Prefix `json:"exclude,omitempty"` // the excluded ranges that the operator gave last
	Names   []Name         `json:"names,omitempty"`
	// Withdrawn lists the keys of running endpoints whose own names are not in DNS.
	Withdrawn []string `json:"withdrawn,omitempty"`
	// Founding is the content of the cluster's Secret when this host made its ring. The operator does
	// not set it.
	Founding *kube.Founding `json:"founding,omitempty"`
}

// Aliases lists the names that an operator gave to an endpoint.
func (v Values) Aliases(key string) (out []string) {
	for _, n := range v.Names {
		if n.Endpoint == key {
			out = append(out, n.Name)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Outside counts the addresses outside the network that have a name.
func (v Values) Outside(name string) (n int) {
	for _, g := range v.Names {
		if g.Endpoint == "" && g.Name == name {
			n++
		}
	}
	return n
}

// Named reports whether an operator has given a name to an endpoint, or withdrawn its own name.
func (v Values) Named(key string) bool {
	return len(v.Aliases(key)) > 0 || slices.Contains(v.Withdrawn, key)
}

// Store keeps the settings over a restart.
type Store interface {
	Settings(into any) error
	SaveSettings(v any) error
}

// Settings owns the Values.
type Settings struct {
	live.Value[Values]

	store    Store
	changing sync.Mutex // held while a change is made
}

// Load reads the settings from a store. exclude replaces the stored excluded ranges, unless it is
// nil.
func Load(store Store, exclude []netip.Prefix) (*Settings, error) {
	s := &Settings{store: store}
	var v Values
	if err := store.Settings(&v); err != nil {
		return nil, fmt.Errorf("settings: %w", err)
	}
	if exclude != nil {
		v.Exclude = exclude
		if err := store.SaveSettings(v); err != nil {
			return nil, err
		}
	}
	s.Set(v)
	return s, nil
}

// Change lets f change a copy of the settings. Unless f returns an error, Change stores the copy, and
// then publishes it.
func (s *Settings) Change(f func(*Values) error) error {
	s.changing.Lock()
	defer s.changing.Unlock()
	next := s.Get()
	next.Names, next.Withdrawn = slices.Clone(next.Names), slices.Clone(next.Withdrawn)
	if err := f(&next); err != nil {
		return err
	}
	if err := s.store.SaveSettings(next); err != nil {
		return err
	}
	s.Set(next)
	return nil
}

// Forget deletes the names of an endpoint that ended. It waits for a change that has begun before.
func (s *Settings) Forget(key string) error {
	s.changing.Lock()
	named := s.Get().Named(key)
	s.changing.Unlock()
	if !named {
		return nil
	}
	return s.Change(func(v *Values) error {
		v.Names = slices.DeleteFunc(v.Names, func(n Name) bool { return n.Endpoint == key })
		v.Withdrawn = slices.DeleteFunc(v.Withdrawn, func(k string) bool { return k == key })
		return nil
	})
}
