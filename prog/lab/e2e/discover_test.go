package e2e

import (
	"bytes"
	"crypto/ed25519"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"weft/mesh/discovery"
	"weft/mesh/member"
	"weft/mesh/meshtest/eventually"
	"weft/mesh/secret"
	"weft/prog/agent/discover"
	"weft/prog/api"
	"weft/prog/lab"
	"weft/prog/lab/labtest"
)

// forgedPort is the gossip port in forged announcements. No host uses it.
const forgedPort = 7999

// announceForged sends announcements, as of a host that has a ring, to both groups and to further
// addresses: SECRET LINK ADDR… It is no error if the host refuses to send one.
func announceForged(args []string) error {
	token, err := secret.Parse(args[0])
	if err != nil {
		return err
	}
	key, root := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, ed25519.SeedSize)), token.Secret.Root()
	identity, cluster := key.Public().(ed25519.PublicKey), member.ClusterOf(root.Public().(ed25519.PublicKey))
	packet := discovery.Announcement{
		Kind: discovery.HasRing, Network: discovery.NetworkOf(cluster[:]), Gossip: forgedPort, Identity: identity,
		Certificate: member.Certify(root, identity, member.Holder).Encode(),
	}.Sign(key)
	for _, to := range append([]string{"239.255.67.85", "ff12::7765:6674%" + args[1]}, args[2:]...) {
		c, err := net.Dial("udp", net.JoinHostPort(to, strconv.Itoa(discover.Port)))
		if err != nil {
			continue
		}
		for range 5 {
			_, _ = c.Write(packet)
			time.Sleep(20 * time.Millisecond)
		}
		c.Close()
	}
	return nil
}

// discovering launches hosts with --discover and a token, all at the same time.
func discovering(t *testing.T, l *lab.Lab, token string, hosts ...string) {
	t.Helper()
	var all sync.WaitGroup
	for _, h := range hosts {
		all.Go(func() {
			if out, err := l.Exec(t.Context(), h, strings.NewReader(token), "weft", "launch", "--discover", "--token", "-"); err != nil {
				t.Errorf("launch --discover on %s returned %v, want success: %s", h, err, out)
			}
		})
	}
	all.Wait()
}

// oneNetwork waits until hosts have tunnels to each other, and to no other host, and one ring.
func oneNetwork(t *testing.T, l *lab.Lab, hosts ...string) (ring string) {
	t.Helper()
	for _, h := range hosts {
		eventually.Nil(t, 20*time.Second, h+" is in one network with "+strings.Join(hosts, ", "), func() error {
			r := report(t, l, h)
			direct, peers := 0, 0
			for _, p := range r.Router.Peers {
				if p.State != "left" { // as a host that was reset
					peers++
				}
			}
			for _, c := range r.Router.Connections {
				if c.State == api.ConnDirect {
					direct++
				}
			}
			if ring == "" {
				ring = r.IPAM.Ring
			}
			if r.IPAM.Ring == "" || r.IPAM.Ring != ring || direct != len(hosts)-1 || peers != len(hosts) {
				return fmt.Errorf("ring %s, want %s; %d direct connections, %d peers", r.IPAM.Ring, ring, direct, peers)
			}
			return nil
		})
	}
	return ring
}

// hears reports whether a host has taken a forged announcement as a target.
func hears(t *testing.T, l *lab.Lab, host string) bool {
	t.Helper()
	return slices.ContainsFunc(report(t, l, host).Router.Targets, func(g api.Target) bool {
		return strings.HasSuffix(g.Host, ":"+strconv.Itoa(forgedPort))
	})
}

// Hosts with one secret that are launched at the same time, without any target, form one network.
// Others on the LAN stay apart. A host with a token of the network finds it.
func TestHostsOnALANFindEachOther(t *testing.T) {
	l := bare(t, 5)
	ours, other := strings.TrimSpace(run(t, l, "h1", "weft", "token", "new")), strings.TrimSpace(run(t, l, "h1", "weft", "token", "new"))
	var apart sync.WaitGroup
	apart.Go(func() { discovering(t, l, other, "h4") })
	discovering(t, l, ours, "h1", "h2", "h3")
	apart.Wait()
	ring := oneNetwork(t, l, "h1", "h2", "h3")
	if alone := oneNetwork(t, l, "h4"); alone == ring {
		t.Error("the host of another network has the same ring, want another one")
	}
	plugEach(t, l, "h1", "h2", "h3")
	reachEachOther(t, l, "h1", "h2", "h3")
	says(t, run(t, l, "h1", "weft", "status", "targets"), "192.0.2.2:6783", "192.0.2.3:6783", "found on the LAN")

	// Neither hosts without the secret nor containers can announce anything. Their announcements would be
	// valid, but for the secret or the link.
	if err := tool(t, l, "h1/c1", "announce", ours, "eth0", "192.0.2.1", "192.0.2.2", addrs(t, l, "h1/c1")[0]); err != nil {
		t.Fatal(err)
	}
	if err := tool(t, l, "h5", "announce", other, "eth0"); err != nil {
		t.Fatal(err)
	}
	// All hosts got the last packet at the same time, after those of the container.
	eventually.True(t, 5*time.Second, "the host of the other network takes the announcement from the LAN", func() bool { return hears(t, l, "h4") })
	for _, h := range []string{"h1", "h2", "h3"} {
		if hears(t, l, h) {
			t.Errorf("%s has taken an announcement of a container, or of another network", h)
		}
	}

	says(t, fails(t, l, "h5", "", "weft", "launch", "--discover"), "needs a token")
	discovering(t, l, newToken(t, l, "h2"), "h5")
	if joined := oneNetwork(t, l, "h1", "h2", "h3", "h5"); joined != ring {
		t.Errorf("the host with a token has the ring %s, want %s", joined, ring)
	}
	for _, h := range []string{"h1", "h5"} { // found hosts are not stored
		run(t, l, h, "weft", "stop")
		run(t, l, h, "weft", "launch", "--discover=false")
		if targets := report(t, l, h).Router.Targets; len(targets) != 0 {
			t.Errorf("%s, launched without --discover, has the targets %v, want none", h, targets)
		}
	}
	if again := oneNetwork(t, l, "h1", "h2", "h3", "h5"); again != ring {
		t.Errorf("after a restart the ring is %s, want %s", again, ring)
	}
}

// If no announcement passes while hosts start, each founds a network. Once announcements pass, both hosts say so,
// and what to do. That mends it.
func TestNetworksFoundedApartAreReported(t *testing.T) {
	labtest.Need(t, "nft", "nftables")
	l := bare(t, 2)
	ours := strings.TrimSpace(run(t, l, "h1", "weft", "token", "new"))
	for _, h := range l.Hosts() {
		run(t, l, h, "nft", "add table inet firewall; add chain inet firewall in { type filter hook input priority 0; }; add rule inet firewall in udp dport 6785 drop")
	}
	discovering(t, l, ours, "h1", "h2")
	first := report(t, l, "h1").IPAM.Ring
	if second := report(t, l, "h2").IPAM.Ring; first == second {
		t.Fatal("the hosts have one ring although no announcement passes")
	}
	for _, h := range l.Hosts() {
		run(t, l, h, "nft", "delete", "table", "inet", "firewall")
	}
	for _, h := range l.Hosts() {
		eventually.True(t, 30*time.Second, h+" reports the two networks", func() bool {
			return strings.Contains(report(t, l, h).IPAM.Conflict, "several networks were founded")
		})
	}
	says(t, run(t, l, "h2", "sh", "-c", "weft status || true"), "several networks were founded", "weft reset")
	run(t, l, "h2", "weft", "reset")
	discovering(t, l, ours, "h2")
	if now := oneNetwork(t, l, "h1", "h2"); now != first {
		t.Errorf("the ring is %s, want that of the host that was not reset, %s", now, first)
	}
}
