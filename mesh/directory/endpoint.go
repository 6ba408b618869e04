// Package directory is every endpoint of the mesh: its addresses, its name, its
// labels, and the peer that it is on.
//
// Only the owner writes. The endpoints of one peer are one Set: a value with a
// version, signed by the peer's identity, so that there are no tombstones: what the
// newest set does not hold is gone. A change travels as a Delta, which names the
// version that it builds on and carries the signature over what comes out; who lacks
// that version fetches the whole set.
//
// A Directory holds the newest set of every peer. An entry counts only while the ring
// says that its peer owns all its slots: nobody can speak for another's endpoints, and
// what a removed peer said ends with what it owned.
//
// Everything here is a value or belongs to one goroutine at a time; nothing reads a
// clock, the network or the disk.
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

// Endpoint is what a peer tells the mesh about one of its endpoints. Name, Namespace
// and Aliases are lower case.
type Endpoint struct {
	ID        string            `cbor:"1,keyasint"`           // unique on its peer: CONTAINER/INTERFACE, or "node" for the host itself
	Slots     []slot.Slot       `cbor:"2,keyasint,omitempty"` // its addresses
	Name      string            `cbor:"3,keyasint,omitempty"` // NAME or NAME.NAMESPACE in the DNS domain; labels may be several
	Namespace string            `cbor:"4,keyasint,omitempty"`
	Labels    map[string]string `cbor:"5,keyasint,omitempty"` // what policy selects by
	Aliases   []string          `cbor:"6,keyasint,omitempty"` // further names in the DNS domain, sorted
	Ports     []Port            `cbor:"7,keyasint,omitempty"` // named ports that it declares
	// Generation tells lives of one ID apart: the version of the set in which it was new.
	Generation uint64 `cbor:"8,keyasint,omitempty"`
	// IPv4Only says that its host carries no IPv6 in the overlay.
	IPv4Only bool `cbor:"9,keyasint,omitempty"`
	// Outside are addresses outside the universe that only have a name: of a printer, or a
	// database that is no endpoint. No policy sees them.
	Outside []netip.Addr `cbor:"10,keyasint,omitempty"`
}

// Port is a port with a name, for SRV (RFC 2782) and for policy.
type Port struct {
	Name     string `cbor:"1,keyasint" json:"name"`     // IANA_SVC_NAME (RFC 6335): at most 15 of a-z, 0-9 and -, one a letter
	Protocol string `cbor:"2,keyasint" json:"protocol"` // tcp, udp or sctp
	Number   uint16 `cbor:"3,keyasint" json:"port"`
}

// Entry is an endpoint with its peer, as the directory tells of it.
type Entry struct {
	Endpoint
	Owner peer.ID
}

// Addrs are the addresses of the endpoint, IPv4 before IPv6. What is said to be outside, and
// is inside, is left out: only who owns a slot says what it is.
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

// Names are the endpoint's names in the DNS domain, relative to it, the first one first. In a
// namespace, a name with a dot has no short form: it would be NAME.NAMESPACE of another one.
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

// Bounds, so that a peer cannot make others hold what it likes. Kubernetes' own are
// within them: label keys of 317 bytes, values of 63, names of 253.
const (
	maxID        = 320
	maxName      = 230 // NAME.DOMAIN has at most 253 bytes (RFC 1035)
	maxSlots     = 16
	maxLabels    = 256
	maxLabelSize = 320
	maxLabelsAll = 32 << 10 // keys and values together; an endpoint of all bounds has less than maxEndpoint
	MaxAliases   = 64
	maxPorts     = 64
	MaxOutside   = 16
)

// CheckName reports why a name cannot be one in the DNS domain: it is one or more labels of
// 1 to 63 lower-case letters, digits, hyphens and underscores (RFC 1035, RFC 2181).
func CheckName(name string) error {
	if len(name) > maxName {
		return fmt.Errorf("name %.40q… has %d bytes, at most %d are allowed", name, len(name), maxName)
	}
	for label := range strings.SplitSeq(name, ".") {
		bad := func(c rune) bool { return (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' }
		switch {
		case label == "" || len(label) > 63:
			return fmt.Errorf("name %q: each part between dots has 1 to 63 characters", name)
		case strings.ContainsFunc(label, bad):
			return fmt.Errorf("name %q: only letters, digits, hyphens and underscores are allowed", name)
		case label[0] == '-' || label[len(label)-1] == '-':
			return fmt.Errorf("name %q: no part begins or ends with a hyphen", name)
		}
	}
	return nil
}

// Check reports why a port cannot be declared.
func (p Port) Check() error {
	bad := func(c rune) bool { return (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' }
	switch {
	case p.Name == "" || len(p.Name) > 15 || strings.ContainsFunc(p.Name, bad):
		return fmt.Errorf("port name %.40q: want 1 to 15 lower-case letters, digits and hyphens, such as http", p.Name)
	case !strings.ContainsFunc(p.Name, func(c rune) bool { return c >= 'a' && c <= 'z' }):
		return fmt.Errorf("port name %q: want at least one letter, as in http", p.Name)
	case p.Name[0] == '-' || p.Name[len(p.Name)-1] == '-' || strings.Contains(p.Name, "--"):
		return fmt.Errorf("port name %q: hyphens stand alone, between others", p.Name)
	case p.Protocol != "tcp" && p.Protocol != "udp" && p.Protocol != "sctp":
		return fmt.Errorf("port %s: protocol %q is not tcp, udp or sctp", p.Name, p.Protocol)
	case p.Number == 0:
		return fmt.Errorf("port %s: its number is 1 to 65535", p.Name)
	}
	return nil
}

// CheckLabel reports why a label cannot be an endpoint's.
func CheckLabel(key, value string) error {
	switch {
	case key == "" || len(key) > maxLabelSize || len(value) > maxLabelSize:
		return fmt.Errorf("label %.40q: its key has 1 to %d bytes, its value at most %d", key, maxLabelSize, maxLabelSize)
	case !peer.Printable(key) || !peer.Printable(value):
		return fmt.Errorf("label %q: control characters are not allowed", key)
	}
	return nil
}

// checkLabels reports why labels cannot be an endpoint's.
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

// CheckOutside reports why an address cannot have a name.
func CheckOutside(a netip.Addr) error {
	if !a.IsValid() || a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() || a.IsLinkLocalUnicast() || a.Zone() != "" {
		return fmt.Errorf("%v is no address that several hosts could reach", a)
	}
	return nil
}

// Check reports why an endpoint cannot be published.
func (e Endpoint) Check() error {
	if e.ID == "" || len(e.ID) > maxID || !peer.Printable(e.ID) {
		return fmt.Errorf("endpoint %.40q: unusable id", e.ID)
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
