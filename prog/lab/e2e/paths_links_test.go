package e2e

import (
	"slices"
	"testing"
	"time"

	"weft/mesh/meshtest/eventually"
	"weft/prog/api"
	"weft/prog/lab"
	"weft/prog/lab/labtest"
)

// tells returns what each host tells of its links, as host sees it.
func tells(t *testing.T, l *lab.Lab, host string) map[string]api.Peer {
	t.Helper()
	out := map[string]api.Peer{}
	for _, p := range report(t, l, host).Router.Peers {
		out[p.Nickname] = p
	}
	return out
}

// Two hosts whose link is cut tell all hosts of it, and of its end. A host that may not relay tells that, until it is
// launched without the flag.
func TestHostsTellOfCutLinks(t *testing.T) {
	labtest.Waits(t)
	labtest.Need(t, "nft", "nftables")
	l := labtest.New(t, lab.Options{Hosts: 3})
	measured(t, l)
	for _, h := range l.Hosts() {
		for _, p := range tells(t, l, h) {
			if len(p.Cut) > 0 || p.NoRelay {
				t.Errorf("all is well, but %s says that %s does not reach %v, and refuses to relay: %v", h, p.Nickname, p.Cut, p.NoRelay)
			}
		}
	}
	between(t, l, `iifname { "h1", "h2" } oifname { "h1", "h2" } udp dport 6784 drop`)
	eventually.True(t, 40*time.Second, "h3 knows that h1 and h2 do not reach each other", func() bool {
		all := tells(t, l, "h3")
		return slices.Equal(all["h1"].Cut, []string{all["h2"].ID}) && slices.Equal(all["h2"].Cut, []string{all["h1"].ID}) && len(all["h3"].Cut) == 0
	})
	between(t, l)
	eventually.True(t, 30*time.Second, "h3 knows that h1 and h2 reach each other again", func() bool {
		all := tells(t, l, "h3")
		return len(all["h1"].Cut) == 0 && len(all["h2"].Cut) == 0
	})
	for _, refuses := range []bool{true, false} {
		run(t, l, "h2", "weft", "stop")
		flag := "--no-relay"
		if !refuses {
			flag += "=false"
		}
		run(t, l, "h2", "weft", "launch", flag)
		eventually.True(t, 20*time.Second, "h1 knows whether h2 relays after a launch with "+flag, func() bool {
			return tells(t, l, "h1")["h2"].NoRelay == refuses
		})
	}
}
