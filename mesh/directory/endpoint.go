// Package directory holds every endpoint of the mesh: its addresses, names and labels, and its
// peer.
//
// A peer writes only its own endpoints. They are one Set: a value with a version, signed by the
// peer's identity. So there are no tombstones: an endpoint that the newest set lacks is gone. A
// change travels as a Delta, which names its base version and has the signature of the resulting
// set. A peer that lacks the base version fetches the whole set.
//
// A Directory holds the newest set of every peer. An entry is valid only while the ring says that
// its peer owns all its slots. So no peer can announce the endpoints of another peer, and the
// endpoints of a removed peer become invalid when its slots are taken over.
//
// All types are values, or belong to one goroutine at a time. The package reads no clock, network
// or disk.
package directory

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"weft/ipam/slot"
	"weft/mesh/peer"
)

// Endpoint is a peer's announcement of one of its endpoints. Name, Namespace and Aliases are lower
// case.
type Endpoint struct {
	ID        string            `cbor:"1,keyasint"`           // unique on its peer: CONTAINER/INTERFACE, or "node" for the host itself
	Slots     []slot.Slot       `cbor:"2,keyasint,omitempty"` // the slots of its addresses
	Name      string            `cbor:"3,keyasint,omitempty"` // NAME or NAME.NAMESPACE in the DNS domain; may contain dots
	Namespace string            `cbor:"4,keyasint,omitempty"`
	Labels    map[string]string `cbor:"5,keyasint,omitempty"` // policies select endpoints by labels
	Aliases   []string          `cbor:"6,keyasint,omitempty"` // further names in the DNS domain; sorted
	Ports     []Port            `cbor:"7,keyasint,omitempty"` // named ports that the endpoint declares
	// Generation is the version of the set in which the endpoint was new. It distinguishes
	// endpoints that use one ID in succession.
	Generation uint64 `cbor:"8,keyasint,omitempty"`
	// IPv4Only is set if the endpoint's host has no IPv6 in the overlay.
	IPv4Only bool `cbor:"9,keyasint,omitempty"`
	// Outside are addresses outside the universe that have only a name here, for example of a
	// printer or an external database. Policies ignore them.
	Outside []netip.Addr `cbor:"10,keyasint,omitempty"`
}

// Port is a named port, for SRV records (RFC 2782) and policies.
type Port struct {
	Name     string `cbor:"1,keyasint" json:"name"`     // IANA_SVC_NAME (RFC 6335): at most 15 of a-z, 0-9 and -, with at least one letter
	Protocol string `cbor:"2,keyasint" json:"protocol"` // tcp, udp or sctp
	Number   uint16 `cbor:"3,keyasint" json:"port"`
}

// Entry is an endpoint and its peer, as returned by the directory.
type Entry struct {
	Endpoint
	Owner peer.ID
}

// Addrs returns the addresses of the endpoint, IPv4 before IPv6. An Outside address that lies in
// the universe is ignored: only the owner of its slot may announce it.
func (e Endpoint) Addrs(u slot.Universe) []netip.Addr {
	out := make([]netip.Addr, 0, 2*len(e.Slots)+len(e.Outside))
	for _, s := range e.Slots {
		out = append(out, u.Addr4(s))
	}
	if !e.IPv4Only {
		for _, s := range e.Slots {
			out = append(out, u.Addr6(s))
		}
	}
	for _, a := range e.Outside {
		if _, inside := u.Slot(a); !inside {
			out = append(out, a)
		}
	}
	return out
}

// Names returns the endpoint's names in the DNS domain, relative to it, the main name first. A name
// with a dot has no short form within a namespace: it could be NAME.NAMESPACE of another endpoint.
func (e Endpoint) Names() []string {
	var out []string
	if e.Name != "" && e.Namespace != "" {
		out = append(out, e.Name+"."+e.Namespace)
	}
	if e.Name != "" && (e.Namespace == "" || !strings.Contains(e.Name, ".")) {
		out = append(out, e.Name)
	}
	for _, a := range e.Aliases {
		if !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}

// Same reports whether e and o are equal.
func (e Endpoint) Same(o Endpoint) bool {
	return e.ID == o.ID && e.Name == o.Name && e.Namespace == o.Namespace && e.Generation == o.Generation && e.IPv4Only == o.IPv4Only &&
		slices.Equal(e.Slots, o.Slots) && maps.Equal(e.Labels, o.Labels) && slices.Equal(e.Aliases, o.Aliases) &&
		slices.Equal(e.Ports, o.Ports) && slices.Equal(e.Outside, o.Outside)
}

// These bounds limit the data that a peer can make others store. Kubernetes has smaller bounds:
// label keys of 317 bytes, values of 63, names of 253.
const (
	maxID        = 320
	maxName      = 230 // NAME.DOMAIN has at most 253 bytes (RFC 1035)
	maxSlots     = 16
	maxLabels    = 256
	maxLabelSize = 320
	maxLabelsAll = 32 << 10 // keys and values together; an endpoint that reaches all bounds is smaller than maxEndpoint
	MaxAliases   = 64
	maxPorts     = 64
	MaxOutside   = 16
)

// CheckName returns an error if a name is invalid in the DNS domain. A valid name has one or more
// labels of 1 to 63 lower-case letters, digits, hyphens and underscores (RFC 1035, RFC 2181).
func CheckName(name string) error {
	if len(name) > maxName {
		return fmt.Errorf("name %.40q… has %d bytes, at most %d are allowed", name, len(name), maxName)
	}
	for label := range strings.SplitSeq(name, ".") {
		bad := func(c rune) bool { return (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' }
		switch {
		case label == "" || len(label) > 63:
			return fmt.Errorf("name %q: each part between dots must have 1 to 63 characters", name)
		case strings.ContainsFunc(label, bad):
			return fmt.Errorf("name %q: only letters, digits, hyphens and underscores are allowed", name)
		case label[0] == '-' || label[len(label)-1] == '-':
			return fmt.Errorf("name %q: a part must not begin or end with a hyphen", name)
		}
	}
	return nil
}

// Check returns an error if the port is invalid.
func (p Port) Check() error {
	bad := func(c rune) bool { return (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' }
	switch {
	case p.Name == "" || len(p.Name) > 15 || strings.ContainsFunc(p.Name, bad):
		return fmt.Errorf("port name %.40q: want 1 to 15 lower-case letters, digits and hyphens, for example http", p.Name)
	case !strings.ContainsFunc(p.Name, func(c rune) bool { return c >= 'a' && c <= 'z' }):
		return fmt.Errorf("port name %q: want at least one letter, for example http", p.Name)
	case p.Name[0] == '-' || p.Name[len(p.Name)-1] == '-' || strings.Contains(p.Name, "--"):
		return fmt.Errorf("port name %q: hyphens must be single, between other characters", p.Name)
	case p.Protocol != "tcp" && p.Protocol != "udp" && p.Protocol != "sctp":
		return fmt.Errorf("port %s: protocol %q is not tcp, udp or sctp", p.Name, p.Protocol)
	case p.Number == 0:
		return fmt.Errorf("port %s: its number must be 1 to 65535", p.Name)
	}
	return nil
}

// CheckLabel returns an error if an endpoint cannot have a label.
func CheckLabel(key, value string) error {
	switch {
	case key == "" || len(key) > maxLabelSize || len(value) > maxLabelSize:
		return fmt.Errorf("label %.40q: its key must have 1 to %d bytes, its value at most %d", key, maxLabelSize, maxLabelSize)
	case !peer.Printable(key) || !peer.Printable(value):
		return fmt.Errorf("label %q: control characters are not allowed", key)
	}
	return nil
}

// checkLabels returns an error if an endpoint cannot have these labels.
func checkLabels(labels map[string]string) error {
	if len(labels) > maxLabels {
		return fmt.Errorf("%d labels, at most %d are allowed", len(labels), maxLabels)
	}
	size := 0
	for k, v := range labels {
		if err := CheckLabel(k, v); err != nil {
			return err
		}
		size += len(k) + len(v)
	}
	if size > maxLabelsAll {
		return fmt.Errorf("labels of %d bytes, at most %d are allowed", size, maxLabelsAll)
	}
	return nil
}

// CheckOutside returns an error if an address cannot have a name.
func CheckOutside(a netip.Addr) error {
	if !a.IsValid() || a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() || a.IsLinkLocalUnicast() || a.Zone() != "" {
		return fmt.Errorf("%v cannot have a name: it is no address that several hosts can reach", a)
	}
	return nil
}

// Check returns an error if the endpoint cannot be published.
func (e Endpoint) Check() error {
	if e.ID == "" || len(e.ID) > maxID || !peer.Printable(e.ID) {
		return fmt.Errorf("endpoint %.40q: invalid id", e.ID)
	}
	for _, n := range []struct {
		what       string
		have, most int
	}{
		{"slots", len(e.Slots), maxSlots},
		{"aliases", len(e.Aliases), MaxAliases},
		{"ports", len(e.Ports), maxPorts},
		{"outside addresses", len(e.Outside), MaxOutside},
	} {
		if n.have > n.most {
			return fmt.Errorf("endpoint %s: %d %s, at most %d are allowed", e.ID, n.have, n.what, n.most)
		}
	}
	if e.Name == "" && e.Namespace != "" && CheckName(e.Namespace) != nil {
		return fmt.Errorf("endpoint %s: namespace: %w", e.ID, CheckName(e.Namespace))
	}
	for _, n := range e.Names() {
		if err := CheckName(n); err != nil {
			return fmt.Errorf("endpoint %s: %w", e.ID, err)
		}
	}
	if err := checkLabels(e.Labels); err != nil {
		return fmt.Errorf("endpoint %s: %w", e.ID, err)
	}
	for _, p := range e.Ports {
		if err := p.Check(); err != nil {
			return fmt.Errorf("endpoint %s: %w", e.ID, err)
		}
	}
	for _, a := range e.Outside {
		if err := CheckOutside(a); err != nil {
			return fmt.Errorf("endpoint %s: %w", e.ID, err)
		}
	}
	return nil
}
