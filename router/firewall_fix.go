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
	var ports []string
	links := false
	for _, b := range blocks {
		n := needs[b.Way]
		program := "iptables"
		if b.Table.Family == nftables.TableFamilyIPv6 {
			program = "ip6tables"
		}
		switch f {
		case nft.Firewalld:
			if n.port != "" {
				ports = once(ports, "--add-port="+n.port)
			} else {
				links = true
			}
		case nft.UFW: // each command is for both families
			for _, arguments := range n.ufw {
				out = once(out, "ufw "+arguments)
			}
		case nft.Docker, nft.IPTables:
			chain := b.Chain
			if f == nft.Docker && slices.Contains(b.Chains, dockerUser) {
				chain = dockerUser
			}
			for _, match := range n.iptables {
				out = once(out, program+" -I "+chain+" "+match+" -j ACCEPT")
			}
		default:
			for _, match := range n.nft {
				out = once(out, fmt.Sprintf("nft insert rule %s %s %s accept", tableOf(b), b.Chain, match))
			}
		}
	}
	if f != nft.Firewalld {
		return out
	}
	if links {
		out = append(out, "firewall-cmd --permanent --zone=trusted --add-interface=weft+")
	}
	if len(ports) > 0 { // of the default zone
		out = append(out, "firewall-cmd --permanent "+strings.Join(ports, " "))
	}
	return append(out, "firewall-cmd --reload")
}
