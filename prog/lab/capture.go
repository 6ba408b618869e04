package lab

import (
	"context"
	"encoding/json"
	"fmt"

	"golang.org/x/sys/unix"

	"weft/prog/lab/probe"
	"weft/prog/words"
)

// Capture records the traffic of the whole underlay until it is stopped.
type Capture struct{ process *Process }

// Capture starts counting the frames that hosts send to the underlay, on both links, each once, and
// those that contain marker. When it returns, the capture runs.
func (l *Lab) Capture(ctx context.Context, marker string) (*Capture, error) {
	args := []string{"weft", "probe", "capture", "--incoming", "--json", "--duration", "0", "--marker", marker}
	underlay, err := l.node(UnderlayName).Info(ctx)
	if err != nil {
		return nil, l.explain(UnderlayName, err)
	}
	p, err := l.Background(ctx, UnderlayName, probe.CaptureReady, append(args, underlay.Ports...)...)
	if err != nil {
		return nil, err
	}
	return &Capture{p}, nil
}

// Stop ends the capture and returns its counters.
func (c *Capture) Stop() (probe.CaptureSummary, error) {
	var sum probe.CaptureSummary
	c.process.Signal(unix.SIGINT)
	out, err := c.process.Wait()
	if err != nil {
		return sum, fmt.Errorf("lab: capture: %w", err)
	}
	return sum, json.Unmarshal([]byte(out), &sum)
}

// CheckSilence returns an error if the underlay carried anything but Weft's tunnels, gossip, and
// the usual Ethernet control traffic. It also does so if the marker was sent in the clear, or if
// the capture is incomplete.
func CheckSilence(sum probe.CaptureSummary) error {
	tunnel := false
	for _, row := range sum.Flows {
		switch row.Name() {
		case "udp 6784":
			tunnel = true
		case "udp 6783", "tcp 6783", "arp", "nd", "mld":
		case probe.UnreachablePrefix + "udp 6783", probe.UnreachablePrefix + "udp 6784", probe.UnreachablePrefix + "tcp 6783":
			// These are ICMP errors of a host whose agent or datapath is down, or whose address was replaced.
		case probe.RedirectPrefix + "udp 6783", probe.RedirectPrefix + "udp 6784", probe.RedirectPrefix + "tcp 6783":
			// A host whose address was replaced gets packets for the old one, and knows the way to it.
		case "ipv4 fragment of protocol 17", "ipv6 fragment of protocol 17":
			// These are later fragments of tunnel packets, until a new path MTU is known. The first fragment is
			// named by its ports, so a datagram of a container cannot hide here.
		default:
			return fmt.Errorf("lab: the underlay carried %s of %s: only WireGuard, gossip, ARP, ND and MLD are allowed",
				words.Count(row.Packets, "packet"), row.Name())
		}
	}
	switch {
	case sum.Marked > 0:
		return fmt.Errorf("lab: %s on the underlay carried the payload in the clear", words.Count(sum.Marked, "packet"))
	case sum.Dropped > 0:
		return fmt.Errorf("lab: the capture missed %s, so it proves nothing: try again on an idle machine", words.Count(sum.Dropped, "packet"))
	case !tunnel:
		return fmt.Errorf("lab: the capture saw no tunnel packets, so it proves nothing: check the tunnels")
	}
	return nil
}
