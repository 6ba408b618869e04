package router

import (
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"weft/ipam/slot"
	"weft/mesh/topology"
	"weft/router/nft"
	"weft/router/routertest"
)

// firewallHost makes a host with an underlay and a configuration, for tests that load another firewall.
func firewallHost(t *testing.T) (routertest.Namespace, Config) {
	t.Helper()
	ns := routertest.New(t)
	ns.Do(func() {
		under := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "under"}, PeerName: "wire"}
		if err := netlink.LinkAdd(under); err != nil {
			t.Fatal(err)
		}
		for _, text := range []string{"192.0.2.1/24", "2001:db8::1/64"} {
			a, _ := netlink.ParseAddr(text)
			a.Flags = 0x02 // IFA_F_NODAD: the address is usable without a delay of seconds
			if err := netlink.AddrAdd(under, a); err != nil {
				t.Fatal(err)
			}
		}
		if err := netlink.LinkSetUp(under); err != nil {
			t.Fatal(err)
		}
		for _, gateway := range []string{"192.0.2.254", "2001:db8::fe"} {
			if err := netlink.RouteAdd(&netlink.Route{LinkIndex: under.Index, Gw: net.ParseIP(gateway)}); err != nil {
				t.Fatal(err)
			}
		}
	})
	c := Config{Universe: universe, Node: 1<<16 + 1, Own: []slot.Range{{Start: 1 << 16, End: 2 << 16}}, IPv6: true, Resolver: true, Port: 6784, Gossip: 6783}
	for _, a := range []string{"192.0.2.2", "2001:db8::2"} {
		c.Tunnels = append(c.Tunnels, topology.Tunnel{Endpoint: netip.AddrPortFrom(netip.MustParseAddr(a), 6784)})
	}
	return ns, c
}

// smallUniverse makes the universe one of 65,536 slots, of which this host owns half.
func smallUniverse(c *Config) {
	c.Universe = slot.Universe{V4: netip.MustParsePrefix("10.50.0.0/16"), V6: netip.MustParsePrefix("fd50::/112")}
	c.Node, c.Own = 5, []slot.Range{{Start: 1, End: 1 << 15}}
}

// withoutPeers removes all peers.
func withoutPeers(c *Config) { c.Tunnels = nil }

// relaying makes this host the relay of a pair of hosts in each family.
func relaying(c *Config) {
	leg := func(host, own string) nft.Leg {
		return nft.Leg{Host: netip.MustParseAddrPort(host), Own: netip.MustParseAddrPort(own)}
	}
	c.Relays.Pairs = []nft.Pair{
		{leg("192.0.2.7:20001", "192.0.2.1:6784"), leg("192.0.2.8:20002", "192.0.2.1:6784")},
		{leg("[2001:db8::7]:20001", "[2001:db8::1]:6784"), leg("[2001:db8::8]:20002", "[2001:db8::1]:6784")},
	}
}

// load loads rules: either text in nft's language, or the file that a firewall generated, which is
// name.nft, or name.v4 and name.v6.
func load(t *testing.T, ns routertest.Namespace, name string) {
	t.Helper()
	if strings.Contains(name, "\n") {
		loadRules(t, ns, name)
		return
	}
	for suffix, program := range map[string][]string{".nft": {"nft", "-f"}, ".v4": {"iptables-nft-restore"}, ".v6": {"ip6tables-nft-restore"}} {
		file := filepath.Join("testdata", "firewalls", name+suffix)
		if _, err := os.Stat(file); err == nil {
			run(t, ns, append(program, file)...)
		}
	}
}

func run(t *testing.T, ns routertest.Namespace, command ...string) {
	t.Helper()
	program, err := exec.LookPath(command[0])
	if err != nil {
		t.Skipf("%s is not installed: apt-get install nftables iptables", command[0])
	}
	ns.Do(func() {
		if out, err := exec.Command(program, command[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("the command %v failed: %v: %s", command, err, out)
		}
	})
}

func warningsIn(t *testing.T, ns routertest.Namespace, c Config) (out []string) {
	t.Helper()
	ns.Do(func() {
		found, err := firewalls(c.needs())
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range found {
			out = append(out, p.String())
		}
	})
	return out
}

// zonedRules is the ruleset of firewalld with FirewallBackend=iptables, without its last chain.
const zonedRules = `table ip filter {
	chain INPUT { type filter hook input priority 0; ct state established accept; iifname "weft*" accept; tcp dport 6783 accept; udp dport 6783 accept; jump INPUT_ZONES; reject; }
	chain INPUT_ZONES { iifname "under" goto IN_dmz; goto IN_public; }
	chain IN_public { jump IN_public_allow; }
	chain IN_public_allow { accept; }
	chain IN_dmz { jump IN_dmz_allow; reject; }
`

// forwardingZones is the part of firewalld's ruleset that forwards, without its last chain.
const forwardingZones = `table inet firewalld {
	chain filter_FORWARD { type filter hook forward priority 10; iifname "weft*" accept; oifname "weft*" accept; jump filter_FORWARD_ZONES; reject; }
	chain filter_FORWARD_ZONES { iifname "under" goto filter_FWD_dmz; goto filter_FWD_public; }
	chain filter_FWD_public { jump filter_FWD_public_allow; }
	chain filter_FWD_public_allow { accept; }
	chain filter_FWD_dmz { jump filter_FWD_dmz_allow; reject; }
`

// A warning names the firewall that drops packets, its chains, and the commands that make it accept
// the packets. After these commands there is no warning any longer. The firewalls themselves
// generated the rules.
func TestWarningsNameTheFirewallAndTheCommandsThatOpenIt(t *testing.T) {
	udpOnly := []string{"over UDP from other hosts (UDP 6783) (gossip continues over TCP"}
	for name, c := range map[string]struct {
		rules  string   // the name of a file, or, with a line break, nft's own language
		want   []string // parts of the one warning; empty: no warning
		not    []string
		fixed  string // the file of the rules after the commands; empty: the test runs the commands
		change func(*Config)
	}{
		"firewalld": {
			rules: "firewalld", fixed: "firewalld-fixed",
			want: []string{
				"firewalld drops", "inet firewalld filter_FORWARD", "inet firewalld filter_INPUT", "containers to other hosts,", "name server,", "the encrypted tunnel from other hosts (UDP 6784)",
				"firewall-cmd --permanent --zone=trusted --add-interface=weft+; firewall-cmd --permanent --zone=public --add-port=6783/tcp --add-port=6783/udp --add-port=6784/udp; firewall-cmd --reload",
			},
			not: []string{"IPv4", "IPv6", "to other hosts (", "continues over TCP"},
		},
		"ufw": {
			rules: "ufw", fixed: "ufw-fixed",
			want: []string{
				"ufw drops", "ip filter FORWARD", "ip6 filter INPUT", "ufw route allow in on weft+; ufw route allow out on weft+", "ufw allow in on weft+ to any port 53",
				"ufw allow 6783/tcp; ufw allow 6783/udp; ufw allow 6784/udp",
			},
			not: []string{"IPv4", "IPv6", "replies", "pings"},
		},
		"Docker in both families": { // Docker 20.10 has no chain DOCKER-USER in IPv6
			rules: "docker",
			want:  []string{"Docker drops", "iptables -I DOCKER-USER -i weft+ -j ACCEPT", "ip6tables -I FORWARD -o weft+ -j ACCEPT"},
			not:   []string{"6783", "name server"},
		},
		"iptables": {
			rules: "iptables", want: []string{"iptables drops", "in IPv6", "ip6tables -I INPUT -p udp --dport 6784 -j ACCEPT", "ip6tables -I OUTPUT -o weft+ -j ACCEPT"},
		},
		"iptables in other tables": {
			rules: "iptables-tables", want: []string{"iptables drops", "iptables -t mangle -I FORWARD -o weft+ -j ACCEPT", "iptables -t raw -I OUTPUT -p udp --dport 6784 -j ACCEPT"},
		},
		"nftables with a chain in capitals": {
			rules: "table ip fw {\n chain FORWARD { type filter hook forward priority 0; policy drop; }\n}\n",
			want:  []string{"nftables drops", `nft insert rule ip fw FORWARD iifname "weft*" accept`},
		},
		"firewalld with the iptables backend and the underlay in another zone": {
			rules: zonedRules + "chain IN_dmz_allow {\n}\n}\n", fixed: zonedRules + "chain IN_dmz_allow {\n udp dport 6784 accept\n}\n}\n",
			want: []string{"firewalld drops", "`firewall-cmd --permanent --zone=dmz --add-port=6784/udp; firewall-cmd --reload`"},
		},
		"nftables": {
			rules: "table inet mine {\n set inner { type ifname; elements = { \"lo\" }; }\n chain in { type filter hook input priority 0; policy accept;\n" +
				"iif lo accept; iifname @inner accept; ct state vmap { established : accept, related : accept, invalid : drop }\nmeta l4proto { icmp, ipv6-icmp } accept\n" +
				"tcp dport { 22, 53, 6000-7000 } accept\n udp dport { 6784, 53 } accept; reject\n}\n}\n",
			want: append(udpOnly, "inet mine in", "nft insert rule inet mine in udp dport 6783 accept"),
			not:  []string{"name server", "pings", "tunnel", "TCP 6783"},
		},
		"nftables with rules by address": {
			rules: "table ip mine {\n chain over { type filter hook forward priority 10; policy drop;\n ct state established accept; ip saddr 10.32.0.0/12 ip daddr 10.0.0.0-10.31.255.255 accept\n }\n}\n",
			want:  []string{"containers to other hosts in IPv4", `nft insert rule ip mine over iifname "weft*" accept`},
		},
		"iptables without conntrack": {
			rules: "iptables-stateless", want: []string{
				"gossip over TCP: replies from other hosts (TCP 6783) in IPv4", "iptables -I INPUT -p tcp --sport 6783 ! --syn -j ACCEPT",
				"iptables -t mangle -I PREROUTING -i weft+ -j ACCEPT",
			},
			not: []string{"gossip over TCP from", "tunnel", "-o weft+"},
		},
		"nftables without conntrack": {
			rules: "table inet mine {\n chain o { type filter hook output priority 0; policy drop;\n oifname \"weft*\" accept; meta l4proto { tcp, udp } th dport 6000-7000 accept\n }\n}\n",
			want:  []string{"drops gossip over TCP: replies to other hosts (TCP 6783), in", "`nft insert rule inet mine o tcp sport 6783 tcp flags ack accept`"},
		},
		"nftables in prerouting and postrouting": {
			rules: "table inet mine {\n chain first { type filter hook prerouting priority -300;\n iifname \"weft*\" drop\n }\n" +
				"chain last { type filter hook postrouting priority 0;\n oifname \"weft*\" drop; udp dport 6784 drop\n }\n}\n",
			want: []string{
				"containers to other hosts,", "pings", "replies from containers", "the encrypted tunnel to other hosts (UDP 6784)", `insert rule inet mine first iifname "weft*" accept`,
				`insert rule inet mine last oifname "weft*" accept`, "insert rule inet mine last udp dport 6784 accept",
			},
			not: []string{"ct state", "first oifname", "last iifname", "gossip"},
		},
		"rules that match the source ports of the tunnel and of gossip": {
			rules: "table inet mine {\n chain i { type filter hook input priority 0; policy drop;\n ct state established accept; iifname \"weft*\" accept\n" +
				"tcp dport 6783 accept; udp sport 6783 udp dport 6783 accept; udp sport 6784 udp dport 6784 accept\n }\n}\n",
		},
		"a small universe whose CIDR is accepted": {
			rules: "table inet mine {\n chain f { type filter hook forward priority 0; policy drop;\n" +
				"ip saddr 10.50.0.0/16 ip daddr 10.50.0.0/16 accept; ip6 saddr fd50::/112 ip6 daddr fd50::/112 accept\n }\n}\n",
			change: smallUniverse,
		},
		"a small universe of which half the CIDR is dropped": {
			rules: "table ip mine {\n chain f { type filter hook forward priority 0;\n ip saddr 10.50.128.0/17 ip daddr 10.50.0.0/17 drop\n }\n}\n",
			want:  []string{"other hosts to containers in IPv4"}, not: []string{"between containers"},
			change: smallUniverse,
		},
		"a catch-all element that drops, beside elements that accept": {
			rules: "table inet mine {\n set few { type inet_service; elements = { 1, * }; }\n chain f { type filter hook forward priority 0;\n" +
				"iifname vmap { \"weft*\" : accept, * : drop }; oifname vmap { \"weft*\" : accept, * : drop }\n }\n" +
				"chain i { type filter hook input priority 0; policy drop;\n iifname \"weft*\" accept; tcp dport @few accept\n" +
				"udp dport vmap { * : drop, 6784 : accept, 6783 : accept, 53 : drop }\n }\n}\n",
		},
		"a catch-all element that drops gossip": {
			rules: "table inet mine {\n chain i { type filter hook input priority 0;\n udp dport vmap { * : drop, 6784 : accept, 53 : accept }\n }\n}\n",
			want:  udpOnly, not: []string{"tunnel", "name server"},
		},
		"rules that accept neighbours only, without peers": {
			rules: "table inet mine {\n chain i { type filter hook input priority 0; policy drop;\n ct state established accept; iifname \"weft*\" accept\n" +
				"ip saddr 192.0.2.0/24 accept; ip6 saddr 2001:db8::/64 accept\n }\n}\n",
			change: withoutPeers,
		},
		"rules that drop reserved addresses, without peers": {
			rules:  "table inet mine {\n chain i { type filter hook input priority 0;\n ip saddr { 198.51.100.0/24, 203.0.113.0/24 } drop\n }\n}\n",
			change: withoutPeers,
		},
		"rules that drop all but port 22, without peers": {
			rules: "table inet mine {\n chain i { type filter hook input priority 0; policy drop;\n ct state established accept; iifname \"weft*\" accept; tcp dport 22 accept\n }\n}\n",
			want:  []string{"gossip over TCP from", "tunnel"}, not: []string{"IPv4", "IPv6"},
			change: withoutPeers,
		},
		"a dormant table": {
			rules: "table inet mine {\n flags dormant\n chain f { type filter hook forward priority 0; policy drop; }\n}\n",
		},
		"rules that depend on marks and rates": {
			rules: "table inet mine {\n chain f { type filter hook forward priority 0; policy drop;\n meta mark 1 accept\n }\n" +
				"chain i { type filter hook input priority 0; limit rate over 10/second drop; meta mark 1 drop; }\n}\n",
		},
		"firewalld on a relay, with the underlay in another zone": {
			rules:  forwardingZones + "chain filter_FWD_dmz_allow {\n}\n}\n",
			fixed:  forwardingZones + "chain filter_FWD_dmz_allow { oifname \"under\" accept; }\n}\n",
			want:   []string{"firewalld drops", "`firewall-cmd --permanent --zone=dmz --add-forward; firewall-cmd --reload`"},
			change: relaying,
		},
		"Docker on a relay": {
			rules:  "docker",
			want:   []string{"Docker drops", "tunnels between other hosts, which this host relays", "iptables -I DOCKER-USER -p udp --sport 6784 -j ACCEPT", "ip6tables -I FORWARD -p udp --sport 6784 -j ACCEPT"},
			change: relaying,
		},
		"nftables on a relay between a host and another relay": {
			rules: "table inet mine {\n chain f { type filter hook forward priority 0; policy drop; iifname \"weft*\" accept; oifname \"weft*\" accept\n }\n}\n",
			want:  []string{"drops tunnels between other hosts", "mine f udp sport 6784 accept", "mine f udp dport 6784 accept"},
			not:   []string{"containers"},
			change: func(c *Config) {
				relaying(c)
				for i := range c.Relays.Pairs {
					c.Relays.Pairs[i][1] = nft.Leg{Host: netip.AddrPortFrom(c.Relays.Pairs[i][1].Host.Addr(), 6784), Own: netip.AddrPortFrom(c.Relays.Pairs[i][1].Own.Addr(), 20007)}
				}
			},
		},
		"an accept before a later drop": {
			rules: "table inet mine {\n chain f { type filter hook forward priority 0; iifname \"weft*\" accept; oifname \"weft*\" accept; drop; }\n}\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			ns, config := firewallHost(t)
			if c.change != nil {
				c.change(&config)
			}
			load(t, ns, c.rules)
			warnings := warningsIn(t, ns, config)
			if len(c.want) == 0 {
				if len(warnings) > 0 {
					t.Errorf("the warnings are %q; want none", warnings)
				}
				return
			}
			if len(warnings) != 1 {
				t.Fatalf("the warnings are %q; want one", warnings)
			}
			for _, part := range c.want {
				if !strings.Contains(warnings[0], part) {
					t.Errorf("%q is missing; want it in the warning %s", part, warnings[0])
				}
			}
			for _, part := range c.not {
				if strings.Contains(warnings[0], part) {
					t.Errorf("%q is unexpected; want it not in the warning %s", part, warnings[0])
				}
			}
			if c.fixed != "" {
				run(t, ns, "nft", "flush", "ruleset")
				load(t, ns, c.fixed)
			} else {
				commands := regexp.MustCompile("`(.*)`").FindStringSubmatch(warnings[0])[1]
				run(t, ns, "sh", "-ec", commands)
			}
			if warnings := warningsIn(t, ns, config); len(warnings) > 0 {
				t.Errorf("after the commands, warnings %q are left; want none", warnings)
			}
		})
	}
}
