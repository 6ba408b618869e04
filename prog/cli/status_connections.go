package cli

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"weft/prog/api"
)

const connectionsHelp = `Shows the tunnel to every other peer. -> marks peers to which a target of this host led.

ROUND TRIP and LOSS come from the agent's probes (- while nothing is measured). MTU is the largest
packet of the overlay that goes to the peer. HANDSHAKE is the age of WireGuard's last handshake.
RECEIVED and SENT are bytes, and bytes per second.

States: direct (packets travel both ways), relayed (they do, over another host: see INFO), pending (not measured yet), blocked (WireGuard's UDP port
does not answer, though gossip does), one-way (the peer does not hear this host), silent (nothing
comes from the peer), failed (no tunnel is possible; see INFO).`

// connectionStates has the states of connections, in the order in which they are counted.
var connectionStates = []string{api.ConnDirect, api.ConnRelayed, api.ConnPending, api.ConnBlocked, api.ConnOneWay, api.ConnSilent, api.ConnFailed}

// inState returns the number of tunnels in one of some states.
func inState(list []api.Connection, states ...string) (n int) {
	for _, c := range list {
		if slices.Contains(states, c.State) {
			n++
		}
	}
	return n
}

// countConnections returns the number of connections, in total and by state.
func countConnections(list []api.Connection) string {
	counts := map[string]int{}
	for _, c := range list {
		counts[c.State]++
	}
	var parts []string
	for _, state := range connectionStates {
		if n := counts[state]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, state))
		}
	}
	if len(parts) == 0 {
		return "0"
	}
	return fmt.Sprintf("%d (%s)", len(list), strings.Join(parts, ", "))
}

func printConnections(w io.Writer, r api.Report) { connectionsAt(w, r.Router.Connections, time.Now()) }

// connectionsAt prints the tunnels in Weave's order, with what was measured before Weave's info.
func connectionsAt(w io.Writer, list []api.Connection, now time.Time) {
	if len(list) == 0 {
		return
	}
	t := newTable(w)
	t.row("", "ADDRESS", "STATE", "ROUND TRIP", "LOSS", "MTU", "HANDSHAKE", "RECEIVED", "SENT", "INFO")
	for _, c := range list {
		roundTrip, loss, mtu, handshake := "-", "-", "-", "-"
		if c.RoundTrip != nil {
			roundTrip = milliseconds(*c.RoundTrip)
		}
		if c.Loss != nil {
			loss = fmt.Sprintf("%.0f%%", *c.Loss*100)
		}
		if c.MTU != 0 {
			mtu = fmt.Sprint(c.MTU)
		}
		if c.Handshake != nil {
			handshake = fmt.Sprintf("%v ago", max(0, now.Sub(*c.Handshake)).Round(time.Second))
		}
		t.row(arrow(c), c.Address.String(), c.State, roundTrip, loss, mtu, handshake,
			traffic(c.Received, c.ReceivedRate), traffic(c.Sent, c.SentRate), c.Info)
	}
	t.flush()
}

// arrow says in which direction a connection was made.
func arrow(c api.Connection) string {
	if c.Outbound {
		return "->"
	}
	return "<-"
}

// milliseconds prints a time in seconds. The network's own differences are about a tenth of a millisecond.
func milliseconds(seconds float64) string {
	if ms := seconds * 1000; ms < 99.95 {
		return fmt.Sprintf("%.1f ms", ms)
	}
	return fmt.Sprintf("%.0f ms", seconds*1000)
}

// traffic prints a number of bytes, and a rate in bytes per second.
func traffic(total int64, rate float64) string {
	return fmt.Sprintf("%s (%s/s)", bytesText(float64(total)), bytesText(rate))
}

// bytesText prints a number of bytes with a decimal unit.
func bytesText(n float64) string {
	if n < 999.5 {
		return fmt.Sprintf("%.0f B", n)
	}
	for _, unit := range []string{"kB", "MB", "GB", "TB"} {
		if n /= 1000; n < 99.95 {
			return fmt.Sprintf("%.1f %s", n, unit)
		} else if n < 999.5 {
			return fmt.Sprintf("%.0f %s", n, unit)
		}
	}
	return fmt.Sprintf("%.0f TB", n)
}

func printPeers(w io.Writer, r api.Report) {
	for _, p := range r.Router.Peers {
		fmt.Fprintf(w, "%s(%s)  %s  %s\n", p.ID, p.Nickname, p.State, join(p.Underlay, " "))
		if !p.Self {
			if p.Liveness != "" {
				fmt.Fprintf(w, "   %s: %s\n", p.Liveness, cmp.Or(strings.Join(p.Reasons, "; "), "nothing is known"))
			}
			continue
		}
		t := newTable(w)
		for _, c := range r.Router.Connections {
			t.row("   "+arrow(c), c.Address.String(), c.Peer+"("+c.Nickname+")", c.State)
		}
		t.flush()
	}
}
