// Package problem defines a Problem: what is wrong with a host, its effect on users, and what to do.
// A component reports a Problem where it knows all three. The outputs (command line, log, Kubernetes
// event, metric, JSON) format it. A Problem is a plain value; the package keeps no state.
package problem

import (
	"cmp"
	"unicode"
	"unicode/utf8"
)

// Problem is one fault of a host that users notice.
type Problem struct {
	// Reason is the kind of problem, by which events and metrics can be filtered.
	Reason string
	// About identifies the problem among the problems with the same Reason. It stays the same while
	// the text changes. If it is empty, the text identifies the problem.
	About string
	// What is the cause, Effect its effect on users, Fix what to do. Each is a sentence without a
	// full stop. Fix begins with a verb. Effect and Fix may be empty.
	What, Effect, Fix string
	// Elsewhere is set if only users of other hosts notice the problem. Then this host creates no
	// event.
	Elsewhere bool
}

// These are the reasons of problems of a host's network. The reasons of Kubernetes problems are in
// prog/kube.
const (
	Host       = "HostConfiguration" // the firewall or the CNI configuration of this host prevents connections or new containers
	DataPath   = "DataPath"
	Address    = "Address" // an address belongs to another peer, or cannot be used
	Policy     = "PolicyUnread"
	LeftOut    = "LeftOut"     // names or labels of an endpoint exceed the bounds of the directory
	Port       = "PortBlocked" // a port is blocked between this host and another host
	Flapping   = "PeerFlapping"
	Membership = "Membership" // a ban, or a token that admitted too many hosts
	PathMTU    = "PathMTU"    // the path MTU to another host is below what the tunnel needs
	CopiedDisk = "CopiedDisk" // another host has this host's identity
	TurnedAway = "TurnedAway" // a host was refused, for example because it has another secret
)

// Key returns a key that identifies the problem as long as it lasts.
func (p Problem) Key() [2]string { return [2]string{p.Reason, cmp.Or(p.About, p.String())} }

// String returns the problem on one line: "cause: effect. What to do", or "cause: what to do".
func (p Problem) String() string {
	text := p.What
	if p.Effect != "" {
		text += ": " + p.Effect
	}
	switch {
	case p.Fix == "":
	case p.Effect == "":
		text += ": " + p.Fix
	default:
		text += ". " + sentence(p.Fix)
	}
	return text
}

// sentence returns a text with a capital first letter.
func sentence(text string) string {
	first, size := utf8.DecodeRuneInString(text)
	return string(unicode.ToUpper(first)) + text[size:]
}
