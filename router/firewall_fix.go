package router

import (
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"

	"weft/router/nft"
	"weft/router/problem"
)

// once appends the words that the list does not contain yet.
func once(list []string, words ...string) []string {
	for _, w := range words {
		if !slices.Contains(list, w) {
			list = append(list, w)
		}
	}
	return list
}

// blockProblems returns one problem for each firewall that drops packets.
func blockProblems(needs []need, blocks []nft.Block) (out []problem.Problem) {
	byFirewall := map[nft.Firewall][]nft.Block{}
	var order []nft.Firewall
	for _, b := range blocks {
		if byFirewall[b.Firewall] == nil {
			order = append(order, b.Firewall)
		}
		byFirewall[b.Firewall] = append(byFirewall[b.Firewall], b)
	}
	for _, f := range order {
		var chains []string
		for _, b := range byFirewall[f] {
			chains = once(chains, tableOf(b)+" "+b.Chain)
		}
		out = append(out, problem.Problem{
			Reason: problem.Host,
			What:   fmt.Sprintf("the firewall %s drops %s, in %s", f, strings.Join(describe(needs, byFirewall[f]), ", "), strings.Join(chains, " and ")),
			Fix:    fmt.Sprintf("allow these packets with `%s`", strings.Join(fixes(f, needs, byFirewall[f]), "; ")),
		})
	}
	return out
}

// describe names the needs that are dropped. It adds the address family if the firewall accepts the
// packets of the other family.
func describe(needs []need, blocks []nft.Block) (out []string) {
	families := map[string]int{}
	const v4, v6 = 1, 2
	bit := func(n need) int {
		if n.packet.Src.Is4() {
			return v4
		}
		return v6
	}
	all := map[string]int{}
	for _, n := range needs {
		all[n.what] |= bit(n)
	}
	var names []string
	for _, b := range blocks {
		n := needs[b.Way]
		families[n.what] |= bit(n)
		names = once(names, n.what)
	}
	tcp := slices.ContainsFunc(names, func(n string) bool { return strings.HasPrefix(n, "gossip over TCP") })
	for _, n := range names {
		text := n
		if families[n] != all[n] {
			text += [...]string{v4: " in IPv4", v6: " in IPv6"}[families[n]]
		}
		if strings.HasPrefix(n, udpGossip) && !tcp {
			text += " (gossip continues over TCP, but detects failed peers later)"
		}
		out = append(out, text)
	}
	return out
}

// tableOf names a table in nft's syntax.
func tableOf(b nft.Block) string {
	family := map[nftables.TableFamily]string{nftables.TableFamilyINet: "inet", nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6"}
	return family[b.Table.Family] + " " + b.Table.Name
}

// dockerUser is the chain that Docker reserves for the administrator; older versions have it in
// IPv4 only.
const dockerUser = "DOCKER-USER"

// fixes returns the commands that accept the dropped packets, in the syntax of that firewall's
// users.
func fixes(f nft.Firewall, needs []need, blocks []nft.Block) (out []string) {
	if f == nft.Firewalld {
		return zones(needs, blocks)
	}
	for _, b := range blocks {
		n := needs[b.Way]
		switch {
		case f == nft.UFW && n.port != replies: // each command applies to both families
			for _, arguments := range n.ufw {
				out = once(out, "ufw "+arguments)
			}
		case f != nft.Plain:
			for _, match := range n.iptables {
				out = once(out, insertion(f, b)+" "+match+" -j ACCEPT")
			}
		default:
			for _, match := range n.nft {
				out = once(out, fmt.Sprintf("nft insert rule %s %s %s accept", tableOf(b), b.Chain, match))
			}
		}
	}
	return out
}

// insertion returns the iptables command that inserts a rule before the rules that drop the
// packets.
func insertion(f nft.Firewall, b nft.Block) string {
	program, chain := "iptables", b.Chain
	if b.Table.Family == nftables.TableFamilyIPv6 {
		program = "ip6tables"
	}
	if b.Table.Name != "filter" {
		program += " -t " + b.Table.Name
	}
	if f == nft.Docker && slices.Contains(b.Chains, dockerUser) {
		chain = dockerUser
	}
	return program + " -I " + chain
}

// zones returns firewalld's commands. They put Weft's links into the zone "trusted", which accepts
// everything, and open a port in the zone that the packet arrived in.
func zones(needs []need, blocks []nft.Block) (out []string) {
	ports := map[string][]string{}
	var order []string
	for _, b := range blocks {
		n := needs[b.Way]
		switch n.port {
		case replies: // accepted by rules that firewalld installs at each reload
		case "":
			out = once(out, "firewall-cmd --permanent --zone=trusted --add-interface=weft+")
		default:
			for _, zone := range zonesOf(b) {
				order = once(order, zone)
				argument := "--add-port=" + n.port
				if n.port == through {
					argument = "--add-forward"
				}
				ports[zone] = once(ports[zone], argument)
			}
		}
	}
	for _, zone := range order {
		out = append(out, "firewall-cmd --permanent "+zone+strings.Join(ports[zone], " "))
	}
	return append(out, "firewall-cmd --reload")
}

// zonesOf returns arguments that name the zones whose chains a packet traversed, such as filter_IN_public,
// or IN_public with the iptables backend. A forwarded packet traverses filter_FWD_public, or
// filter_FWDI_public before firewalld 1.0. If there are no such chains, zonesOf returns an empty argument,
// which means the default zone.
func zonesOf(b nft.Block) (out []string) {
	for _, chain := range b.Passed {
		kind, zone, _ := strings.Cut(strings.TrimPrefix(chain, "filter_"), "_")
		if slices.Contains([]string{"IN", "FWD", "FWDI"}, kind) && !strings.HasPrefix(zone, "policy_") && slices.Contains(b.Chains, chain+"_allow") {
			out = append(out, "--zone="+zone+" ")
		}
	}
	if len(out) == 0 {
		return []string{""}
	}
	return out
}
