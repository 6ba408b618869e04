package config

import (
	"fmt"
	"strconv"
	"strings"

	"weft/ipam/paxos"
	"weft/mesh/peer"
	"weft/router/nft"
)

// Init names the peers that found the address ring. With the zero Init, this peer founds if it was
// launched without targets. Otherwise this peer and its targets vote, unless one of them has a ring.
type Init struct {
	Expect   int       // the number of voters; 0: the targets and this peer
	Seeds    []peer.ID // the peers that found the ring without a vote
	Observer bool      // this peer waits for a ring and never votes
}

// ParseInit reads consensus=N, seed=ID,… or observer, as in Weave Net.
func ParseInit(s string) (i Init, err error) {
	kind, value, _ := strings.Cut(s, "=")
	switch {
	case s == "":
		return i, nil
	case kind == "consensus":
		if i.Expect, err = strconv.Atoi(value); err != nil || i.Expect < 1 || i.Expect > paxos.MaxVoters {
			err = fmt.Errorf("want a number of peers from 1 to %d", paxos.MaxVoters)
		}
	case kind == "seed":
		for text := range strings.SplitSeq(value, ",") {
			id, e := peer.ParseID(text)
			if e != nil {
				return i, fmt.Errorf("--ipalloc-init %s: %w (`weft id` prints a host's id)", s, e)
			}
			i.Seeds = append(i.Seeds, id)
		}
	case s == "observer":
		i.Observer = true
	default:
		err = fmt.Errorf("want consensus=N, seed=ID,ID… or observer")
	}
	if err != nil {
		return i, fmt.Errorf("--ipalloc-init %s: %w", s, err)
	}
	return i, nil
}

// Exemptions that the operator can take away.
const (
	ExemptOwnHost    = "own-host"
	ExemptResolver   = "dns"
	ExemptICMPErrors = "icmp-errors"
)

// ParseExempt reads the list of exemptions: traffic that policies do not apply to.
func ParseExempt(words []string) (e nft.Exempt, err error) {
	for _, w := range words {
		switch w {
		case ExemptOwnHost:
			e.OwnHost = true
		case ExemptResolver:
			e.Resolver = true
		case ExemptICMPErrors:
			e.ICMPErrors = true
		case "none":
			if len(words) > 1 {
				return e, fmt.Errorf("none cannot be combined with other exemptions")
			}
		default:
			return e, fmt.Errorf("%q is none of %s, %s, %s and none", w, ExemptOwnHost, ExemptResolver, ExemptICMPErrors)
		}
	}
	return e, nil
}
