// Package problem holds what hurts the users of a host as a value: what is wrong, which effect
// that has, and what ends it. A component raises a Problem where it knows all three; the edges
// (command line, log, Kubernetes event, metric, JSON) render it.
package problem

import (
	"cmp"
	"unicode"
	"unicode/utf8"
)

// Problem is one of them.
type Problem struct {
	// Reason is a name for those that filter: in events and metrics.
	Reason string
	// About stays the same while the problem lasts, however its text changes; empty: the text.
	About string
	// What is wrong, the Effect on users, and the Fix: each a sentence without its full stop. The
	// Fix begins with a verb. Effect and Fix may be empty.
	What, Effect, Fix string
	// Elsewhere says that it hurts users of other hosts only: this host makes no event of it.
	Elsewhere bool
}

// Reasons of problems of a host's network. Those of Kubernetes are in prog/kube.
const (
	Host       = "HostConfiguration" // firewall, CNI configuration
	DataPath   = "DataPath"
	Address    = "Address" // it is another peer's, or cannot be used
	Policy     = "PolicyUnread"
	LeftOut    = "LeftOut"     // the directory has no room for all that an endpoint says
	Port       = "PortBlocked" // between this host and another one
	Flapping   = "PeerFlapping"
	PathMTU    = "PathMTU"    // the path to another host carries less than the tunnel needs
	CopiedDisk = "CopiedDisk" // another host has this identity
	TurnedAway = "TurnedAway" // a host with another secret, for example
)

// Key identifies a problem for as long as it lasts.
func (p Problem) Key() [2]string { return [2]string{p.Reason, cmp.Or(p.About, p.String())} }

// String is the problem in one line: "cause: effect. What to do", or "cause: what to do".
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

// sentence begins a text with a capital letter.
func sentence(text string) string {
	first, size := utf8.DecodeRuneInString(text)
	return string(unicode.ToUpper(first)) + text[size:]
}
