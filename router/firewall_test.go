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
	"weft/router/routertest"
)

// guarded is a host with the underlay of join, where another firewall may be loaded.
func guarded(t *testing.T) (routertest.Namespace, Config) {
	t.Helper()
	ns := routertest.New(t)
	ns.Do(func() {
		under := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "under"}, PeerName: "wire"}
		if err := netlink.LinkAdd(under); err != nil {
			t.Fatal(err)
		}
		for _, text := range []string{"192.0.2.1/24", "2001:db8::1/64"} {
			a, _ := netlink.ParseAddr(text)
			a.Flags = 0x02 // nodad
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

// small makes the universe one of 65,536 slots, of which half are this host's.
func small(c *Config) {
	c.Universe = slot.Universe{V4: netip.MustParsePrefix("10.50.0.0/16"), V6: netip.MustParsePrefix("fd50::/112")}
	c.Node, c.Own = 5, []slot.Range{{Start: 1, End: 1 << 15}}
}

// alone is a host that knows no other.
func alone(c *Config) { c.Tunnels = nil }

// load puts rules in force: nft's own language, or what a firewall made, which is name.nft,
// or name.v4 and name.v6.
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
		t.Skipf("no %s: apt-get install nftables iptables", command[0])
	}
	ns.Do(func() {
		if out, err := exec.Command(program, command[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", command, err, out)
		}
	})
}

func warningsIn(t *testing.T, ns routertest.Namespace, c Config) (out []string) {
	t.Helper()
	ns.Do(func() {
		var err error
		if out, err = firewalls(c.needs()); err != nil {
			t.Fatal(err)
		}
	})
	return out
}

// zoned is what firewalld's chains lead to with FirewallBackend=iptables, but for the last one.
const zoned = `table ip filter {
	chain INPUT { type filter hook input priority 0; ct state established accept; iifname "weft*" accept; tcp dport 6783 accept; udp dport 6783 accept; jump INPUT_ZONES; reject; }
	chain INPUT_ZONES { iifname "under" goto IN_dmz; goto IN_public; }
	chain IN_public { jump IN_public_allow; }
	chain IN_public_allow { accept; }
	chain IN_dmz { jump IN_dmz_allow; reject; }
`

// What a firewall closes is told with the firewall, the chains and commands; when those were
// followed, nothing is told any more. The rules are what the programs themselves made.
func TestFirewallsAreToldWithWhatOpensThem(t *testing.T) {
	udpOnly := []string{"over UDP from other hosts (UDP 6783), which goes on by TCP"}
	for name, c := range map[string]struct {
		rules    string   // the file; or, with a line break, nft's own language
		want     []string // in the one warning
		not      []string
		followed string // the rules after the commands; empty: the test runs them
		but      func(*Config)
	}{
		"firewalld": {
			rules: "firewalld", followed: "firewalld-fixed",
			want: []string{
				"firewalld drops", "inet firewalld filter_FORWARD", "inet firewalld filter_INPUT", "send to other hosts,", "name server,", "the encrypted tunnel from other hosts (UDP 6784)",
				"firewall-cmd --permanent --zone=trusted --add-interface=weft+; firewall-cmd --permanent --zone=public --add-port=6783/tcp --add-port=6783/udp --add-port=6784/udp; firewall-cmd --reload",
			},
			not: []string{"IPv4", "IPv6", "to other hosts (", "goes on by TCP"},
		},
		"ufw": {
			rules: "ufw", followed: "ufw-fixed",
			want: []string{
				"ufw drops", "ip filter FORWARD", "ip6 filter INPUT", "ufw route allow in on weft+; ufw route allow out on weft+", "ufw allow in on weft+ to any port 53",
				"ufw allow 6783/tcp; ufw allow 6783/udp; ufw allow 6784/udp",
			},
			not: []string{"IPv4", "IPv6", "answers", "pings"},
		},
		"Docker in both families": { // 20.10 has no DOCKER-USER in IPv6
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
		"firewalld by iptables, with the underlay in a zone of its own": {
			rules: zoned + "chain IN_dmz_allow {\n}\n}\n", followed: zoned + "chain IN_dmz_allow {\n udp dport 6784 accept\n}\n}\n",
			want: []string{"firewalld drops", "`firewall-cmd --permanent --zone=dmz --add-port=6784/udp; firewall-cmd --reload`"},
		},
		"nftables": {
			rules: "table inet mine {\n set inner { type ifname; elements = { \"lo\" }; }\n chain in { type filter hook input priority 0; policy accept;\n" +
				"iif lo accept; iifname @inner accept; ct state vmap { established : accept, related : accept, invalid : drop }\nmeta l4proto { icmp, ipv6-icmp } accept\n" +
				"tcp dport { 22, 53, 6000-7000 } accept\n udp dport { 6784, 53 } accept; reject\n}\n}\n",
			want: append(udpOnly, "inet mine in", "nft insert rule inet mine in udp dport 6783 accept"),
			not:  []string{"name server", "pings", "tunnel", "TCP 6783"},
		},
		"nftables by address": {
			rules: "table ip mine {\n chain over { type filter hook forward priority 10; policy drop;\n ct state established accept; ip saddr 10.32.0.0/12 ip daddr 10.0.0.0-10.31.255.255 accept\n }\n}\n",
			want:  []string{"send to other hosts in IPv4", `nft insert rule ip mine over iifname "weft*" accept`},
		},
		"iptables without connections": {
			rules: "iptables-stateless", want: []string{
				"gossip over TCP: answers from other hosts (TCP 6783) in IPv4", "iptables -I INPUT -p tcp --sport 6783 ! --syn -j ACCEPT",
				"iptables -t mangle -I PREROUTING -i weft+ -j ACCEPT",
			},
			not: []string{"gossip over TCP from", "tunnel", "-o weft+"},
		},
		"nftables without connections": {
			rules: "table inet mine {\n chain o { type filter hook output priority 0; policy drop;\n oifname \"weft*\" accept; meta l4proto { tcp, udp } th dport 6000-7000 accept\n }\n}\n",
			want:  []string{"drops gossip over TCP: answers to other hosts (TCP 6783), in", "`nft insert rule inet mine o tcp sport 6783 tcp flags ack accept`"},
		},
		"nftables in front of routing and behind it": {
			rules: "table inet mine {\n chain first { type filter hook prerouting priority -300;\n iifname \"weft*\" drop\n }\n" +
				"chain last { type filter hook postrouting priority 0;\n oifname \"weft*\" drop; udp dport 6784 drop\n }\n}\n",
			want: []string{
				"send to other hosts,", "pings", "containers' answers", "the encrypted tunnel to other hosts (UDP 6784)", `insert rule inet mine first iifname "weft*" accept`,
				`insert rule inet mine last oifname "weft*" accept`, "insert rule inet mine last udp dport 6784 accept",
			},
			not: []string{"ct state", "first oifname", "last iifname", "gossip"},
		},
		"what comes from the port of the tunnel and of gossip": {
			rules: "table inet mine {\n chain i { type filter hook input priority 0; policy drop;\n ct state established accept; iifname \"weft*\" accept\n" +
				"tcp dport 6783 accept; udp sport 6783 udp dport 6783 accept; udp sport 6784 udp dport 6784 accept\n }\n}\n",
		},
		"a small universe that may pass by its CIDR": {
			rules: "table inet mine {\n chain f { type filter hook forward priority 0; policy drop;\n" +
				"ip saddr 10.50.0.0/16 ip daddr 10.50.0.0/16 accept; ip6 saddr fd50::/112 ip6 daddr fd50::/112 accept\n }\n}\n",
			but: small,
		},
		"a small universe whose CIDR is dropped": {
			rules: "table ip mine {\n chain f { type filter hook forward priority 0;\n ip saddr 10.50.128.0/17 ip daddr 10.50.0.0/17 drop\n }\n}\n",
			want:  []string{"other hosts send to containers in IPv4"}, not: []string{"each other"},
			but: small,
		},
		"a catch-all after what it does not catch": {
			rules: "table inet mine {\n set few { type inet_service; elements = { 1, * }; }\n chain f { type filter hook forward priority 0;\n" +
				"iifname vmap { \"weft*\" : accept, * : drop }; oifname vmap { \"weft*\" : accept, * : drop }\n }\n" +
				"chain i { type filter hook input priority 0; policy drop;\n iifname \"weft*\" accept; tcp dport @few accept\n" +
				"udp dport vmap { * : drop, 6784 : accept, 6783 : accept, 53 : drop }\n }\n}\n",
		},
		"a catch-all": {
			rules: "table inet mine {\n chain i { type filter hook input priority 0;\n udp dport vmap { * : drop, 6784 : accept, 53 : accept }\n }\n}\n",
			want:  udpOnly, not: []string{"tunnel", "name server"},
		},
		"neighbours only, without a peer yet": {
			rules: "table inet mine {\n chain i { type filter hook input priority 0; policy drop;\n ct state established accept; iifname \"weft*\" accept\n" +
				"ip saddr 192.0.2.0/24 accept; ip6 saddr 2001:db8::/64 accept\n }\n}\n",
			but: alone,
		},
		"reserved addresses, without a peer yet": {
			rules: "table inet mine {\n chain i { type filter hook input priority 0;\n ip saddr { 198.51.100.0/24, 203.0.113.0/24 } drop\n }\n}\n",
			but:   alone,
		},
		"all but port 22, without a peer yet": {
			rules: "table inet mine {\n chain i { type filter hook input priority 0; policy drop;\n ct state established accept; iifname \"weft*\" accept; tcp dport 22 accept\n }\n}\n",
			want:  []string{"gossip over TCP from", "tunnel"}, not: []string{"IPv4", "IPv6"},
			but: alone,
		},
		"a dormant table": {
			rules: "table inet mine {\n flags dormant\n chain f { type filter hook forward priority 0; policy drop; }\n}\n",
		},
		"nothing known for certain": {
			rules: "table inet mine {\n chain f { type filter hook forward priority 0; policy drop;\n meta mark 1 accept\n }\n" +
				"chain i { type filter hook input priority 0; limit rate over 10/second drop; meta mark 1 drop; }\n}\n",
		},
		"an accept before a later drop": {
			rules: "table inet mine {\n chain f { type filter hook forward priority 0; iifname \"weft*\" accept; oifname \"weft*\" accept; drop; }\n}\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			ns, config := guarded(t)
			if c.but != nil {
				c.but(&config)
			}
			load(t, ns, c.rules)
			told := warningsIn(t, ns, config)
			if len(c.want) == 0 {
				if len(told) > 0 {
					t.Errorf("told %q", told)
				}
				return
			}
			if len(told) != 1 {
				t.Fatalf("told %q; want one warning", told)
			}
			for _, part := range c.want {
				if !strings.Contains(told[0], part) {
					t.Errorf("%q is missing in %s", part, told[0])
				}
			}
			for _, part := range c.not {
				if strings.Contains(told[0], part) {
					t.Errorf("%q is in %s", part, told[0])
				}
			}
			if c.followed != "" {
				run(t, ns, "nft", "flush", "ruleset")
				load(t, ns, c.followed)
			} else {
				commands := regexp.MustCompile("`(.*)`").FindStringSubmatch(told[0])[1]
				run(t, ns, "sh", "-ec", commands)
			}
			if told := warningsIn(t, ns, config); len(told) > 0 {
				t.Errorf("after all that was said: %q", told)
			}
		})
	}
}
