// Package hops turns what the kernels reported of one packet into hops that people read, and says where the packet ended.
//
// It only takes and returns values. Nothing here sends a packet or asks a host.
package hops

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"weft/prog/api"
	"weft/router/link"
	"weft/router/nft"
	"weft/router/packet"
	"weft/router/policy"
	"weft/router/trace"
)

// Place is a host at which a packet is followed.
type Place struct {
	Name     string // the host's name for output
	Links    map[int]string
	From, To bool   // whether the source or the destination is a container of this host
	Tunnel   string // what is known of the tunnel to the other host
	NoRoute  string // why the kernel has no route, if it has none
}

// The ends of a packet at one host.
const (
	EndDropped    = "dropped"
	EndUnroutable = "unroutable"
	EndDelivered  = "delivered" // to a container here, or to this host
	EndTunnel     = "tunnel"
	EndOutside    = "outside"
)

// Part is what one host saw.
type Part struct {
	There []api.TraceHop `json:"there"`
	End   string         `json:"end,omitempty"` // one of the constants above; empty: not known yet
	Why   string         `json:"why,omitempty"` // why it was dropped

	Back    []api.TraceHop `json:"back,omitempty"`
	BackEnd string         `json:"backEnd,omitempty"`
	BackWhy string         `json:"backWhy,omitempty"`
	Answer  trace.Answer   `json:"answer"`
	Missing bool           `json:"missing,omitempty"` // the kernel could not report everything
}

// Done reports whether nothing more can happen here.
func (p Part) Done() bool {
	return p.End == EndDropped || p.BackEnd != ""
}

// Assemble returns what the events of one host mean.
func Assemble(at Place, traced trace.Packet, events []trace.Event) (p Part) {
	there, back := -1, -1
	for _, e := range events {
		if !e.Answer && there < 0 {
			there = e.Packet
		}
		if e.Answer && back < 0 {
			back = e.Packet
		}
	}
	if there < 0 {
		return p
	}
	begun := events[slices.IndexFunc(events, func(e trace.Event) bool { return e.Packet == there })].At
	w := follow(events, there)
	w.begun = begun
	p.There, p.End, p.Why = w.hops(at)
	if back < 0 {
		return p
	}
	w = follow(events, back)
	w.begun = begun
	p.Answer, _ = traced.AnswerOf(w.network, w.transport)
	p.Back, p.BackEnd, p.BackWhy = w.answer(at, p.Answer)
	return p
}

// walk is the way of one packet through a host's hooks.
type walk struct {
	begun              time.Duration
	times              map[string]time.Duration // when each hook began
	passed             map[string]bool          // the hooks whose last chain accepted the packet
	in, out            int
	dropped            *trace.Event
	queued             *trace.Event
	last               time.Duration
	others             []string // chains of other programs that accepted the packet
	network, transport []byte   // the headers at the beginning
	src, dst           netip.Addr
	newSrc, newDst     netip.Addr
}

// follow follows one packet.
func follow(events []trace.Event, number int) walk {
	w := walk{times: map[string]time.Duration{}, passed: map[string]bool{}}
	for i, e := range events {
		if e.Packet != number {
			continue
		}
		w.last = e.At
		if src, dst, ok := packet.Addresses(e.Network); ok {
			if !w.src.IsValid() {
				w.src, w.dst, w.network, w.transport = src, dst, e.Network, e.Transport
			}
			w.newSrc, w.newDst = src, dst
		}
		if w.in == 0 {
			w.in = e.In
		}
		if e.Out != 0 {
			w.out = e.Out
		}
		if hook, last, ok := e.Hook(); ok {
			if _, known := w.times[hook]; !known {
				w.times[hook] = e.At
			}
			if last && e.Kind == trace.End {
				w.passed[hook] = true
			}
			continue
		}
		decides := e.Kind == trace.End || e.Kind == trace.Rule && e.Handle != 0
		switch {
		case !decides:
		case e.Verdict == trace.Drop:
			w.dropped = &events[i]
		case e.Verdict == trace.Queue:
			w.queued = &events[i]
		case e.Verdict == trace.Accept && e.Table != nft.TableName:
			if name := chainName(e); !slices.Contains(w.others, name) {
				w.others = append(w.others, name)
			}
		}
	}
	return w
}

// chainName names a chain as nft does.
func chainName(e trace.Event) string {
	family := map[uint8]string{unix.NFPROTO_INET: "inet", unix.NFPROTO_IPV4: "ip", unix.NFPROTO_IPV6: "ip6"}[e.Family]
	return strings.TrimSpace(family + " " + e.Table + " " + e.Chain)
}

// hops returns the hops of the packet, in the order of the kernel: it routes before it forwards.
func (w walk) hops(at Place) (list []api.TraceHop, end, why string) {
	add := func(when time.Duration, stage, what, verdict, detail string) {
		list = append(list, api.TraceHop{Host: at.Name, At: (when - w.begun).Seconds(), Stage: stage, What: what, Verdict: verdict, Detail: detail})
	}
	stage, what := w.arrival(at)
	add(w.begun, stage, what, "", "")
	hook, routed := w.route()
	if w.newDst != w.dst {
		add(routed, api.StageNAT, fmt.Sprintf("destination %v becomes %v", w.dst, w.newDst), "", "")
	}
	out := at.Links[w.out]
	switch {
	case hook == "input":
		add(routed, api.StageRoute, "to this host", "", "")
	case hook != "":
		add(routed, api.StageRoute, "by link "+out, "", "")
	case w.dropped == nil && w.passed["prerouting"]:
		why = "the kernel does not route it: " + at.NoRoute
		add(w.last, api.StageRoute, why, "drop", "`ip route get` shows more; a wrong source address or an old iptables rule may also be the cause")
		return list, EndUnroutable, why
	}
	if len(w.others) > 0 {
		add(routed, api.StageFirewall, "passed other programs' chains: "+strings.Join(w.others, ", "), "accept", "")
	}
	verdict := ""
	if w.dropped != nil {
		verdict, _, _ = describe(*w.dropped)
	}
	for _, one := range []struct {
		here  bool
		stage string
	}{{at.From, api.StageEgress}, {at.To, api.StageIngress}} {
		if !one.here || hook == "" || verdict != "" && verdict != api.StageEgress && verdict != api.StageIngress {
			continue
		}
		if verdict == one.stage {
			break
		}
		if verdict == "" && !w.passed[hook] {
			continue
		}
		add(w.last, one.stage, "policies", "accept", "")
	}
	if w.dropped != nil {
		stage, text, detail := describe(*w.dropped)
		add(w.dropped.At, stage, text, "drop", detail)
		return list, EndDropped, text
	}
	stage, what, end = w.departure(at.Links[w.out])
	switch {
	case end != "":
		if end == EndTunnel {
			what += at.Tunnel
		}
		add(w.last, stage, what, "accept", w.translated())
	case w.queued != nil:
		add(w.last, api.StageFirewall, "given to a program by a queue: "+chainName(*w.queued), "queue", "")
	}
	return list, end, ""
}

// route returns the hook to which the kernel routed the packet, and when; empty if it did not.
func (w walk) route() (hook string, at time.Duration) {
	at = w.last
	for _, one := range []string{"input", "forward", "output"} {
		if t, ok := w.times[one]; ok {
			hook, at = one, t
		}
	}
	return hook, at
}

// arrival says how the packet came to this host.
func (w walk) arrival(at Place) (stage, what string) {
	switch in := at.Links[w.in]; {
	case w.in == 0:
		return api.StageSource, "sent by the host itself"
	case in == link.Device:
		return api.StageTunnel, "arrived from the tunnel " + in
	case strings.HasPrefix(in, link.EndpointPrefix):
		return api.StageSource, "from the container, on link " + in
	default:
		return api.StageSource, "arrived on link " + in
	}
}

// departure says where a packet went that all rules accepted; end is empty if it did not get that far.
func (w walk) departure(out string) (stage, what, end string) {
	switch {
	case w.passed["input"]:
		return api.StageDestination, "delivered to this host", EndDelivered
	case !w.passed["postrouting"]:
		return "", "", ""
	case out == link.Device:
		return api.StageTunnel, "into the tunnel", EndTunnel
	case strings.HasPrefix(out, link.EndpointPrefix):
		return api.StageDestination, "to the container, on link " + out, EndDelivered
	}
	return api.StageOutside, "left by link " + out, EndOutside
}

func (w walk) translated() string {
	if w.newSrc == w.src {
		return ""
	}
	return fmt.Sprintf("source %v becomes %v", w.src, w.newSrc)
}

// describe says which rule dropped a packet.
func describe(e trace.Event) (stage, text, detail string) {
	name := chainName(e)
	by := "by the policy of chain "
	if e.Kind == trace.Rule {
		by = fmt.Sprintf("by rule %d of chain ", e.Handle)
	}
	if e.Table == nft.TableName && e.Family == unix.NFPROTO_INET {
		if d, ok := nft.DropChain(e.Chain); ok {
			return d.String(), "denied by policies, in chain " + e.Chain, ""
		}
		return api.StageGuard, "dropped " + by + e.Chain + " of Weft's guard", "`weft bundle` has the rules"
	}
	return api.StageFirewall, "dropped " + by + name + ", which is not Weft's", fmt.Sprintf("`nft -a list chain %s` shows the rule; `weft status` names the fix for known firewalls", name)
}

// answer returns one hop for the answer.
func (w walk) answer(at Place, a trace.Answer) (list []api.TraceHop, end, why string) {
	hop := api.TraceHop{Host: at.Name, At: (w.last - w.begun).Seconds(), Stage: api.StageAnswer, What: fmt.Sprintf("%s from %v", a.What, w.src)}
	out := at.Links[w.out]
	switch {
	case w.dropped != nil:
		var stage string
		stage, why, hop.Detail = describe(*w.dropped)
		end, hop.Verdict = EndDropped, "drop"
		hop.What += ": " + why
		if stage == policy.Egress.String() || stage == policy.Ingress.String() {
			why += " (" + stage + ")"
		}
	case w.passed["input"]:
		end, hop.Verdict = EndDelivered, "accept"
		hop.What += ", to this host"
	case w.passed["postrouting"]:
		hop.Verdict = "accept"
		if end = EndOutside; out == link.Device {
			end = EndTunnel
		} else if strings.HasPrefix(out, link.EndpointPrefix) {
			end = EndDelivered
		}
		hop.What += ", by link " + out
	}
	return []api.TraceHop{hop}, end, why
}
