package e2e

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"weft/mesh/meshtest/eventually"
	"weft/prog/api"
	"weft/prog/lab"
	"weft/prog/lab/labtest"
)

// relayOf returns the host over which the tunnel between two hosts goes, once both ends say the same one of the given
// hosts.
func relayOf(t *testing.T, l *lab.Lab, a, b string, hosts ...string) (relay string) {
	t.Helper()
	took := eventually.Nil(t, 40*time.Second, fmt.Sprintf("the tunnel of %s and %s goes over one of %v", a, b, hosts), func() error {
		there, back := connectionTo(t, l, a, b), connectionTo(t, l, b, a)
		for _, c := range []api.Connection{there, back} {
			if c.State != api.ConnRelayed {
				return fmt.Errorf("it is %s: %s", c.State, c.Info)
			}
		}
		for _, h := range hosts {
			if over := "(" + h + ")"; len(there.Via) == 1 && strings.HasSuffix(there.Info, over) && slices.Equal(there.Via, back.Via) {
				relay = h
				return nil
			}
		}
		return fmt.Errorf("there: %s; back: %s", there.Info, back.Info)
	})
	t.Logf("the tunnel of %s and %s goes over %s after %v", a, b, relay, took)
	return relay
}

// The hosts of relays lose their power, and a relay is banned, under traffic. Each time another host takes over within
// seconds. The banned host forwards nothing more.
func TestRelaysThatFailAreReplaced(t *testing.T) {
	labtest.Waits(t)
	labtest.Need(t, "nft", "nftables")
	l := labtest.New(t, lab.Options{Hosts: 5, Containers: 1, Underlay: "4"})
	measured(t, l)
	staysSilent(t, l)
	listen(t, l, "h2/c1")
	tcp := startFlow(t, l, "tcp", "h1/c1", "h2/c1")
	cutLink(t, l, "h1", "h2")
	rest := []string{"h3", "h4", "h5"}
	replaced := func(how string, limit time.Duration, fail func(relay string)) string {
		t.Helper()
		relay := relayOf(t, l, "h1", "h2", rest...)
		udp := startFlow(t, l, "udp", "h1/c1", "h2/c1")
		since := time.Now()
		fail(relay)
		rest = slices.DeleteFunc(rest, func(h string) bool { return h == relay })
		relayOf(t, l, "h1", "h2", rest...)
		for _, s := range udp.stop(t) {
			if most := s.longest(since); most > limit {
				t.Errorf("the relay %s %s: packets arrived again after %v, want within %v", relay, how, most, limit)
			}
		}
		return relay
	}
	replaced("lost its power", 5*time.Second, func(relay string) {
		if err := l.PowerOff(t.Context(), relay); err != nil {
			t.Fatal(err)
		}
	})
	banned := replaced("was banned", 5*time.Second, func(relay string) { run(t, l, "h1", "weft", "rmpeer", "--ban", relay) })
	forwarded := func() (bytes uint64) {
		for _, pair := range report(t, l, banned).Router.Relays {
			bytes += pair.Bytes
		}
		return bytes
	}
	before := forwarded()
	run(t, l, "h1/c1", append([]string{"weft", "probe", "udp", "--count", "50", "--interval", "20ms"}, addrs(t, l, "h2/c1")...)...)
	if after := forwarded(); after > before {
		t.Errorf("the banned host forwarded %d bytes, and %d a second later; want no more", before, after)
	}
	tcp.stop(t)
}

// fromAllPorts is the tool that sends a datagram like those of WireGuard to ADDR:PORT from each port that can stand for a
// host of a relay.
func fromAllPorts(args []string) error {
	to, err := net.ResolveUDPAddr("udp4", args[0])
	if err != nil {
		return err
	}
	datagram := append([]byte{4, 0, 0, 0}, make([]byte, strangeSize-4)...)
	for port := 20000; port < 28192; port++ {
		c, err := net.DialUDP("udp4", &net.UDPAddr{Port: port}, to)
		if err != nil {
			return err
		}
		_, err = c.Write(datagram)
		c.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// strangeSize is the size of datagrams that no tunnel sends.
const strangeSize = 1003

// A relay of hosts that joined with tokens does not have the key that only the two share. It does not forward what others
// send: neither a host that is no member, nor a member that is no end of the pair.
func TestARelayCannotReadNorIsItOpenToOthers(t *testing.T) {
	labtest.Waits(t)
	labtest.Need(t, "nft", "nftables")
	l := labtest.New(t, lab.Options{Hosts: 5, Containers: 1, Bare: true, Underlay: "4"})
	launchFounder(t, l, "--no-relay") // it has the secret
	for _, h := range []string{"h2", "h3", "h4"} {
		joinBy(t, l, h, newToken(t, l, "h1"), "192.0.2.1")
	}
	for _, h := range []string{"h1", "h2", "h3", "h4"} {
		eventually.True(t, 30*time.Second, h+" has three tunnels", func() bool {
			c := report(t, l, h).Router.Connections
			return len(c) == 3 && !slices.ContainsFunc(c, func(c api.Connection) bool { return c.State != api.ConnDirect })
		})
	}
	plugEach(t, l, "h2", "h3")
	capture, err := l.Capture(t.Context(), marker)
	if err != nil {
		t.Fatal(err)
	}
	cut := []string{`iifname "h2" oifname "h3" drop`, `iifname "h3" oifname "h2" drop`}
	between(t, l, cut...)
	relayOf(t, l, "h2", "h3", "h4")
	reachEachOther(t, l, "h2", "h3")
	silent(t, capture)
	a, b := deviceOf(t, l, "h2"), deviceOf(t, l, "h3")
	shared := a.Peers[b.Public]
	if shared == "" || shared != b.Peers[a.Public] {
		t.Fatalf("h2 and h3 have the keys %q and %q for each other, want one key", shared, b.Peers[a.Public])
	}
	if got := deviceOf(t, l, "h4"); slices.Contains([]string{got.Peers[a.Public], got.Peers[b.Public]}, shared) {
		t.Error("the relay has the key that h2 and h3 share, want that it does not")
	}
	key, err := base64.StdEncoding.DecodeString(shared)
	if err != nil {
		t.Fatal(err)
	}
	for h, want := range map[string]bool{"h2": true, "h4": false} {
		if got := stores(t, l.StateDir(h), key); got != want {
			t.Errorf("the key that h2 and h3 share is in the state of %s: %v, want %v", h, got, want)
		}
	}
	between(t, l, append(cut, fmt.Sprintf(`iifname "h4" udp length %d counter`, 8+strangeSize), fmt.Sprintf(`oifname "h4" udp length %d counter`, 8+strangeSize))...)
	for _, h := range []string{"h5", "h1"} {
		if err := tool(t, l, h, "from-all-ports", "192.0.2.4:6784"); err != nil {
			t.Fatal(err)
		}
	}
	out := run(t, l, lab.UnderlayName, "nft", "list", "table", "bridge", "middle")
	if !regexp.MustCompile(`iifname "h4" .* packets 0 bytes`).MatchString(out) || !strings.Contains(out, "packets 16384 ") {
		t.Errorf("the switch counted the following, want that the relay got 16384 datagrams and forwarded none:\n%s", out)
	}
}

// stores reports whether a file of a state directory contains a key, as it is or encoded.
func stores(t *testing.T, dir string, key []byte) (found bool) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		for _, form := range [][]byte{key, []byte(base64.StdEncoding.EncodeToString(key)), []byte(hex.EncodeToString(key))} {
			found = found || bytes.Contains(data, form)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}
