package check

import (
	"fmt"
	"slices"
	"strings"

	"weft/prog/api"
	"weft/prog/words"
	"weft/router/problem"
)

// measured is what the report does not have.
type measured struct {
	quiet    map[string][]string // the same, of peers whose tunnels work by the measurements of the tunnels themselves
	silent   map[string][]string // by area (ipv4, ipv6, mtu): names of the peers from which no answer came, with the reason
	asked    map[string]int      // by area: addresses that were asked
	answered map[string]bool     // names of the peers from which an answer came
	dns      error
	sysctls  []string // those that have another value than they need
	links    []string // links of endpoints that are down or missing
	disk     error
}

// fatal are the reasons of problems that keep containers from communicating. Others are warnings.
var fatal = []string{problem.DataPath, problem.Address, problem.Port, problem.CopiedDisk}

// evaluate makes the checks of one host, in a fixed order of areas. Each area has at least one result.
func evaluate(r api.Report, m measured) []api.Check {
	e := &evaluation{report: r}
	e.ready()
	e.problems()
	e.tunnels(m)
	e.answers(m)
	e.services(m)
	return e.sorted()
}

// order is the order of areas in output.
var order = []string{
	api.AreaReady, api.AreaMembers, api.AreaTunnels, api.AreaGossip, api.AreaMTU, api.AreaIPv4, api.AreaIPv6, api.AreaAddresses, api.AreaDNS, api.AreaPolicies,
	api.AreaFirewall, api.AreaSysctls, api.AreaDisk, api.AreaVersions, api.AreaCNI, api.AreaEndpoints, api.AreaFlows, api.AreaKubernetes,
}

// evaluation collects the checks of one host.
type evaluation struct {
	report api.Report
	list   []api.Check
}

func (e *evaluation) add(result, area, what, effect, fix string) {
	e.list = append(e.list, api.Check{Area: area, Result: result, What: what, Effect: effect, Fix: fix})
}

// pass adds a result, unless the area has a worse one.
func (e *evaluation) pass(area, what string) {
	if !slices.ContainsFunc(e.list, func(c api.Check) bool { return c.Area == area }) {
		e.add(api.CheckPass, area, what, "", "")
	}
}

func (e *evaluation) sorted() []api.Check {
	slices.SortStableFunc(e.list, func(a, b api.Check) int { return slices.Index(order, a.Area) - slices.Index(order, b.Area) })
	return e.list
}

func (e *evaluation) ready() {
	if !e.report.Ready {
		e.add(api.CheckFail, api.AreaReady, "this host is not ready: "+e.report.NotReady, "new containers are not attached", "see the other checks; if they name no cause, see the agent's log (`weft logs`)")
	}
	e.pass(api.AreaReady, "containers can be attached")
}

// problems adds what the agent itself has found.
func (e *evaluation) problems() {
	for _, p := range e.report.Problems {
		area, result := p.Area, api.CheckWarn
		if p.Reason == problem.PathMTU {
			area = api.AreaMTU
		}
		if area == api.AreaFirewall || slices.Contains(fatal, p.Reason) {
			result = api.CheckFail
		}
		e.add(result, area, p.What, p.Effect, p.Fix)
	}
	for _, x := range e.report.Rejections {
		e.add(api.CheckWarn, api.AreaMembers, x.Addr+" was turned away", x.Reason, "give that host a token of this network (`weft token create`), or ignore it if it is no host of yours")
	}
}

// named reports whether a check with a result and a word in its text already names a peer.
func (e *evaluation) named(c api.Connection, result, word string) bool {
	return slices.ContainsFunc(e.list, func(one api.Check) bool {
		return one.Result == result && strings.Contains(one.What+one.Effect, nameOf(c)) && strings.Contains(one.What, word)
	})
}

// tunnels adds the tunnels that do not work, unless a problem already says why.
func (e *evaluation) tunnels(m measured) {
	states, gossip := map[string]int{}, 0
	for _, c := range e.report.Router.Connections {
		states[c.State]++
		if c.Gossip {
			gossip++
		}
		name := nameOf(c)
		state := e.peerState(c.Peer)
		stopped := state == "stopped" || state == "left" // its gossip is silent as well
		switch {
		case stopped:
			e.add(api.CheckWarn, api.AreaTunnels, fmt.Sprintf("the agent of %s was stopped", name), "its containers keep their connections, and learn of no changes", "start it there (`weft launch`), or remove the host (`weft rmpeer "+c.Peer+"`)")
		case c.State == api.ConnDirect || c.State == api.ConnRelayed || e.named(c, api.CheckFail, ""):
		case c.State == api.ConnPending && m.answered[name]: // these packets were the first
			states[api.ConnDirect]++
		case c.State == api.ConnPending:
			e.add(api.CheckWarn, api.AreaTunnels, fmt.Sprintf("the tunnel to %s is not measured yet: %s", name, c.Info), "", "try again in some seconds")
		case c.State == api.ConnSilent:
			e.add(api.CheckFail, api.AreaTunnels, fmt.Sprintf("%s answers neither through its tunnel nor by gossip", name), "containers do not reach those of that host", "make sure that it runs and has a network; if it is gone for good: `weft rmpeer "+c.Peer+"`")
		default:
			e.add(api.CheckFail, api.AreaTunnels, fmt.Sprintf("the tunnel to %s does not work (%s): %s", name, c.State, c.Info), "containers of this host and of that host do not reach each other", "see `weft status connections`, and open the UDP ports of WireGuard between the two hosts")
		}
		if !c.Gossip && !stopped && c.State != api.ConnSilent && !e.named(c, api.CheckFail, "gossip") {
			e.add(api.CheckFail, api.AreaGossip, fmt.Sprintf("gossip does not reach %s", name), "this host does not learn of changes on that host", "make sure that its agent runs, and open TCP and UDP 6783 between the two hosts")
		}
	}
	total := len(e.report.Router.Connections)
	what := fmt.Sprintf("%d direct", states[api.ConnDirect])
	if n := states[api.ConnRelayed]; n > 0 {
		what += fmt.Sprintf(", %d over relays", n)
	}
	if total == 0 {
		what = "there is no other host"
	}
	e.pass(api.AreaTunnels, "all tunnels work: "+what)
	e.pass(api.AreaGossip, fmt.Sprintf("gossip reaches %d of %s", gossip, words.Count(total, "peer")))
	e.pass(api.AreaMembers, words.Count(total+1, "host")+" known, none was turned away")
}

func nameOf(c api.Connection) string { return c.Peer + "(" + c.Nickname + ")" }

func (e *evaluation) peerState(id string) string {
	for _, p := range e.report.Router.Peers {
		if p.ID == id {
			return p.State
		}
	}
	return ""
}

// answers adds the peers that did not answer through their tunnels.
func (e *evaluation) answers(m measured) {
	for _, area := range []string{api.AreaIPv4, api.AreaIPv6, api.AreaMTU} {
		what, effect := "no answer through the tunnel over "+strings.ToUpper(area[:2])+area[2:], "containers do not reach those hosts in this family"
		if area == api.AreaMTU {
			what, effect = "packets of the tunnel's full size are not answered", "connections hang once they send much"
		}
		if list := m.silent[area]; len(list) > 0 {
			e.add(api.CheckFail, area, fmt.Sprintf("%s: %s", what, strings.Join(list, "; ")), effect, "see the tunnels and the firewall; `weft status connections` has each tunnel's MTU")
		}
		if list := m.quiet[area]; len(list) > 0 {
			e.add(api.CheckWarn, area, fmt.Sprintf("%s, though the tunnel works: %s", what, strings.Join(list, "; ")), "that host ignores echo requests, or has no IPv6, or containers do not reach those of that host",
				"run `weft check` on that host, and `weft check --containers`, which tests with containers")
		}
	}
	e.pass(api.AreaIPv4, fmt.Sprintf("%s answered through the tunnels", words.Count(m.asked[api.AreaIPv4], "address")))
	if e.report.Router.IPv6 {
		e.pass(api.AreaIPv6, fmt.Sprintf("%s answered through the tunnels", words.Count(m.asked[api.AreaIPv6], "address")))
	} else {
		e.add(api.CheckWarn, api.AreaIPv6, "this host has no IPv6", "its containers have only IPv4", "set net.ipv6.conf.all.disable_ipv6=0 and start the agent again, if containers need IPv6")
	}
	if m.asked[api.AreaMTU] == 0 {
		e.pass(api.AreaMTU, fmt.Sprintf("no other host was tested; the MTU of the overlay is %d", e.report.Router.MTU))
	}
	e.pass(api.AreaMTU, fmt.Sprintf("packets of full size pass to %s; the MTU of the overlay is %d", words.Count(m.asked[api.AreaMTU], "address"), e.report.Router.MTU))
}

// services adds what belongs to this host alone.
func (e *evaluation) services(m measured) {
	r := e.report
	if r.IPAM.Conflict != "" {
		e.add(api.CheckFail, api.AreaAddresses, r.IPAM.Conflict, "the two parts of the network do not reach each other", "run `weft reset` on the hosts of the smaller part, and launch them again (`weft status ipam`)")
	}
	if r.Ready && r.IPAM.Free == 0 {
		e.add(api.CheckWarn, api.AreaAddresses, "this host owns no free address", "a new container waits until another host gives some", "see `weft status ipam`; a network that is full needs a larger --ipalloc-range")
	}
	e.pass(api.AreaAddresses, fmt.Sprintf("%s in use, %d free", words.Count(r.IPAM.Active, "address"), r.IPAM.Free))
	e.dns(m)
	if !r.Policy.Current {
		e.add(api.CheckWarn, api.AreaPolicies, "the kernel does not have the newest policies yet", "changed policies are not in force here", "try again in some seconds; if it stays, see the agent's log (`weft logs`)")
	}
	e.pass(api.AreaPolicies, fmt.Sprintf("all policies are in force: %d, which isolate %s here", r.Policy.Policies-r.Policy.Audit, words.Count(r.Policy.Isolated, "endpoint")))
	e.pass(api.AreaFirewall, "no other program drops Weft's packets, and Weft's rules are in place")
	if len(m.sysctls) > 0 {
		e.add(api.CheckFail, api.AreaSysctls, "another program changes "+strings.Join(m.sysctls, ", "), "packets of containers are not forwarded until the agent sets it again", "find that program (`grep -r forward /etc/sysctl.conf /etc/sysctl.d`), and set the value there")
	}
	e.pass(api.AreaSysctls, "this host forwards packets")
	if m.disk != nil {
		e.add(api.CheckFail, api.AreaDisk, m.disk.Error(), "the addresses of new containers cannot be kept", "make room on that disk, or mount it writable")
	}
	e.pass(api.AreaDisk, "the state can be written")
	e.add(api.CheckPass, api.AreaVersions, "Weft "+r.Version, "", "")
	if r.CNI == nil {
		e.pass(api.AreaCNI, "no CNI configuration is installed here: none is wanted")
	} else {
		e.pass(api.AreaCNI, fmt.Sprintf("%s calls %s", r.CNI.Config, strings.Join(r.CNI.Plugins, ", ")))
	}
	e.pass(api.AreaFlows, "no problem with the list of connections")
	if len(m.links) > 0 {
		e.add(api.CheckFail, api.AreaEndpoints, "links of containers are down or missing: "+strings.Join(m.links, ", "), "these containers are cut off", "set each up (`ip link set LINK up`), or start its container again")
	}
	e.pass(api.AreaEndpoints, words.Count(len(r.Endpoints), "endpoint")+" attached")
}

func (e *evaluation) dns(m measured) {
	d := e.report.DNS
	switch {
	case d.Off:
		e.pass(api.AreaDNS, "the name server is off (--no-dns)")
		return
	case d.Problem != "":
		e.add(api.CheckFail, api.AreaDNS, "the name server does not listen: "+d.Problem, "containers resolve no names", "end the program that uses port 53 of the node address (`ss -lntup sport = :53`)")
	case m.dns != nil:
		e.add(api.CheckFail, api.AreaDNS, "the name server does not answer: "+m.dns.Error(), "containers resolve no names", "see the agent's log (`weft logs`)")
	}
	if d.NoUpstream != "" {
		e.add(api.CheckWarn, api.AreaDNS, d.NoUpstream, "containers resolve no names outside the network", "name a server in this host's resolv.conf, or with --dns-forward")
	}
	for _, u := range d.Upstreams {
		if u.Error != "" && !u.Own {
			e.add(api.CheckWarn, api.AreaDNS, fmt.Sprintf("the server %s did not answer its last query: %s", u.Server, u.Error), "names outside the network may not be resolved", "see whether this host reaches that server")
		}
	}
	e.pass(api.AreaDNS, fmt.Sprintf("the name server answers, and knows %s", words.Count(d.Entries, "name")))
}
