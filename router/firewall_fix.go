package router

import (
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"

	"weft/router/nft"
)

// once adds what is not in a list yet.
func once(list []string, words ...string) []string {
	for _, w := range words {
		if !slices.Contains(list, w) {
			list = append(list, w)
		}
	}
	return list
}

// blockWarnings has one warning for each firewall.
func blockWarnings(needs []need, blocks []nft.Block) (out []string) {
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
		out = append(out, fmt.Sprintf("the firewall %s drops %s, in %s: let them pass by `%s`",
			f, strings.Join(what(needs, byFirewall[f]), ", "), strings.Join(chains, " and "), strings.Join(fixes(f, needs, byFirewall[f]), "; ")))
	}
	return out
}

// what is dropped; with its family, where the other one passes.
func what(needs []need, blocks []nft.Block) (out []string) {
	families := map[string]int{}
	const v4, v6 = 1, 2
	bit := func(n need) int {
		if n.packet.Src.Is4() {
			return v4
		}
		return v6
	}
	looked := map[string]int{}
	for _, n := range needs {
		looked[n.what] |= bit(n)
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
		if families[n] != looked[n] {
			text += [...]string{v4: " in IPv4", v6: " in IPv6"}[families[n]]
		}
		if strings.HasPrefix(n, udpGossip) && !tcp {
			text += ", which goes on by TCP and finds failures later"
		}
		out = append(out, text)
	}
	return out
}

// tableOf names a table as nft does.
func tableOf(b nft.Block) string {
	family := map[nftables.TableFamily]string{nftables.TableFamilyINet: "inet", nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6"}
	return family[b.Table.Family] + " " + b.Table.Name
}

// dockerUser is the chain that Docker leaves to people; older versions have it in IPv4 only.
const dockerUser = "DOCKER-USER"

// fixes are commands that let pass what is dropped, as people of that firewall write them.
func fixes(f nft.Firewall, needs []need, blocks []nft.Block) (out []string) {
	if f == nft.Firewalld {
		return zones(needs, blocks)
	}
	for _, b := range blocks {
		n := needs[b.Way]
		switch {
		case f == nft.UFW && n.port != answer: // each command is for both families
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

// insertion is the command that puts a rule of iptables in front of those that drop.
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

// zones are firewalld's commands: our links come into a zone that lets all pass, and a port
// is opened in the zone that the packet came to.
func zones(needs []need, blocks []nft.Block) (out []string) {
	ports := map[string][]string{}
	var order []string
	for _, b := range blocks {
		n := needs[b.Way]
		switch n.port {
		case answer: // passes by rules that firewalld makes at each reload
		case "":
			out = once(out, "firewall-cmd --permanent --zone=trusted --add-interface=weft+")
		default:
			for _, zone := range zonesOf(b) {
				order = once(order, zone)
				ports[zone] = once(ports[zone], "--add-port="+n.port)
			}
		}
	}
	for _, zone := range order {
		out = append(out, "firewall-cmd --permanent "+zone+strings.Join(ports[zone], " "))
	}
	return append(out, "firewall-cmd --reload")
}

// zonesOf are arguments that name the zones by whose chains a packet came, such as
// filter_IN_public, or IN_public with iptables; none of them: the default zone, unnamed.
func zonesOf(b nft.Block) (out []string) {
	for _, chain := range b.Passed {
		zone, ok := strings.CutPrefix(strings.TrimPrefix(chain, "filter_"), "IN_")
		if ok && !strings.HasPrefix(zone, "policy_") && slices.Contains(b.Chains, chain+"_allow") {
			out = append(out, "--zone="+zone+" ")
		}
	}
	if len(out) == 0 {
		return []string{""}
	}
	return out
}
