package nft

import (
	"fmt"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"weft/mesh/path"
	"weft/router/probe"
)

// These limit the probes that the kernel copies to the agent, in packets per second; each limit lets
// bursts of burst packets pass.
const (
	probeChain = "probe" // copies probes within these limits

	limitSource, burstSource = 50, 100    // of one source address
	limitPeers, burstPeers   = 5000, 5000 // of all known peers together
	limitOthers, burstOthers = 1000, 1000 // of all other sources together
)

// The kernel remembers so many sources of each family, and forgets a source after this time of silence.
// Peers send more often.
const (
	maxSources    = 16384
	forgetSources = time.Minute
)

// probes adds the rules that copy probes at the tunnel's port to router/probe. Their hook comes after
// the usual firewalls, so that a probe that a firewall drops does not count. The rules drop nothing:
// WireGuard itself ignores probes, and one buffer may hold a probe and WireGuard's packets behind it
// (GRO).
//
// If the source addresses are so many that the kernel cannot remember another one, the limit per
// source does not match, and the limits of all peers and of all others remain. So forged addresses
// of others cannot silence a known peer. A flood with the peer's own address can make its probes get lost;
// the tunnel's data still arrives.
func (g Guard) probes(h hostSets) (p Program) {
	if g.Port == 0 {
		return p
	}
	var limits, known []Rule
	for i, is4 := range []bool{true, false} {
		s := &Set{Name: "probes" + family(is4), Key: Key{addrKind(is4)}, Elements: encoded(nil), Size: maxSources, Timeout: forgetSources}
		p.Sets = append(p.Sets, s)
		limits = append(limits, rule(saddr.above(limitSource, burstSource, s), returns()))
		known = append(known, rule(implied(l4proto(unix.IPPROTO_UDP)), saddr.serviceIn(sport, unix.IPPROTO_UDP, h.peers[i]),
			limited(limitPeers, burstPeers), copied(), returns()))
	}
	rules := append(append(limits, known...), rule(limited(limitOthers, burstOthers), copied()))
	p.Chains = []*Chain{
		{Name: probeChain, Rules: rules},
		{"probes", nftables.ChainTypeFilter, nftables.ChainHookInput, "input", 200, []Rule{
			rule(dport.is(unix.IPPROTO_UDP, g.Port), magic(expr.CmpOpEq), notIif(tunnel), notIif(endpoints), goTo(probeChain)),
		}},
	}
	return p
}

// magic matches the beginning of the payload of a probe, or of anything else.
func magic(op expr.CmpOp) part { return beginning(op, path.Magic[:]) }

// beginning matches the beginning of UDP's payload.
func beginning(op expr.CmpOp, text []byte) part {
	return part{fmt.Sprintf("@th,64,%d %s%#x", 8*len(text), sign(op), text), []expr.Any{
		&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: 8, Len: uint32(len(text))},
		compare(op, text),
	}}
}

// above matches packets above a rate per address, which the kernel counts in a dynamic set.
func (f field) above(rate uint64, burst uint32, s *Set) part {
	is4 := s.Key[0].size == addr4.size
	return part{
		fmt.Sprintf("update @%s { %s %s limit rate over %d/second burst %v packets }", s.Name, ip(is4), f.word, rate, burst),
		append(f.load(is4), &expr.Dynset{
			SrcRegKey: reg, SetName: s.Name, Operation: unix.NFT_DYNSET_OP_UPDATE,
			Exprs: []expr.Any{&expr.Limit{Type: expr.LimitTypePkts, Rate: rate, Unit: expr.LimitTimeSecond, Burst: burst, Over: true}},
		}),
	}
}

// limited matches packets up to a rate.
func limited(rate uint64, burst uint32) part {
	return part{
		fmt.Sprintf("limit rate %d/second burst %v packets", rate, burst),
		[]expr.Any{&expr.Limit{Type: expr.LimitTypePkts, Rate: rate, Unit: expr.LimitTimeSecond, Burst: burst}},
	}
}

// copied copies the beginning of a packet to router/probe.
func copied() part {
	return part{fmt.Sprintf("log group %d snaplen %d", probe.Group, probe.Snapshot), []expr.Any{
		&expr.Log{Key: 1<<unix.NFTA_LOG_GROUP | 1<<unix.NFTA_LOG_SNAPLEN, Group: probe.Group, Snaplen: probe.Snapshot},
	}}
}
