package attach

import (
	"cmp"
	"net"
	"net/netip"
	"slices"
	"strings"

	"weft/ipam/slot"
	"weft/mesh/directory"
	"weft/prog/agent/settings"
	"weft/prog/agent/view"
	"weft/prog/api"
	"weft/router/endpoint"
)

// Endpoint is one attached container: the request that attached it, and its address. The store keeps the
// request beside the address.
type Endpoint struct {
	api.AttachRequest
	Slot slot.Slot
	MTU  int // MTU of the container's interface; 0: attached by an earlier agent
}

// Key identifies an endpoint on this host.
func (e Endpoint) Key() string { return e.ref().Key() }

func (e Endpoint) ref() api.EndpointRef {
	return api.EndpointRef{ContainerID: e.ContainerID, Interface: e.Interface}
}

// Title returns an endpoint's name for output: its name with its namespace, else its key.
func (e Endpoint) Title() string {
	return cmp.Or(strings.Trim(e.Namespace+"/"+e.Name, "/"), e.Key())
}

// Plug returns the host side of an endpoint.
func (e Endpoint) Plug(u slot.Universe, ipv6 bool) endpoint.Endpoint {
	mac, _ := net.ParseMAC(e.MAC) // Attach has checked the MAC
	p := endpoint.Endpoint{HostLink: e.HostLink, ContainerMAC: mac, Addr4: u.Addr4(e.Slot), MTU: e.MTU}
	if ipv6 {
		p.Addr6 = u.Addr6(e.Slot)
	}
	return p
}

func addresses(p endpoint.Endpoint) []netip.Addr {
	out := []netip.Addr{p.Addr4}
	if p.Addr6.IsValid() {
		out = append(out, p.Addr6)
	}
	return out
}

// Entry returns an endpoint's entry in the directory, without parts that exceed the directory's
// limits.
func (e Endpoint) Entry() directory.Endpoint {
	d := directory.Endpoint{
		ID: e.Key(), Slots: []slot.Slot{e.Slot},
		Name: strings.ToLower(e.Name), Namespace: strings.ToLower(e.Namespace), Labels: e.Labels,
	}
	for _, p := range e.Ports {
		d.Ports = append(d.Ports, directory.Port(p))
	}
	return d
}

// Owns reports whether an endpoint was attached with a name, with or without its namespace. An empty
// name matches any endpoint with a name.
func (e Endpoint) Owns(name string) bool {
	own, _ := e.Entry().Fit() // a name that does not fit is not in the directory
	return own.Name != "" && (name == "" || slices.Contains(own.Names(), name))
}

// describe returns an endpoint for output.
func (e Endpoint) describe(v *view.View, s settings.Values, ipv6 bool) api.Endpoint {
	key := e.Key()
	out := api.Endpoint{
		ContainerID: e.ContainerID, Interface: e.Interface, Source: e.Source, Network: e.Network,
		Name: e.Name, Namespace: e.Namespace, HostLink: e.HostLink, MAC: e.MAC, Addresses: []netip.Addr{},
		Labels: e.Labels, Ports: e.Ports, Aliases: s.Aliases(key), Withdrawn: slices.Contains(s.Withdrawn, key),
	}
	if v != nil && !v.Ring.IsZero() {
		_, out.Lost = v.Lost[key]
		out.Addresses = addresses(e.Plug(v.Ring.Universe, ipv6))
	}
	return out
}
