package lab

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// relay cuts the link between two hosts, and shows that the third one carries their tunnel.
func (d *demo) relay(ctx context.Context) error {
	d.caption("The link between h1 and h2 is cut: h3 forwards their packets, which it cannot read")
	addrs, err := d.lab.Addrs(ctx, "h2/c1")
	if err != nil {
		return err
	}
	capture, err := d.lab.Capture(ctx, demoMarker)
	if err != nil {
		return err
	}
	ping := func(args ...string) []string {
		return append(append([]string{"weft", "probe", "icmp", "--interval", "20ms", "--marker", demoMarker}, args...), addrs...)
	}
	fmt.Fprintln(d.out, "$ weft lab link --name "+d.lab.opts.Name+" h1 h2 down")
	if err := d.lab.Link(ctx, "h1", "h2", false); err != nil {
		return err
	}
	cut := time.Now()
	for {
		out, err := d.lab.Exec(ctx, "h1/c1", nil, ping("--count", "1", "--timeout", "100ms")...)
		if err == nil {
			break
		}
		if time.Since(cut) > 10*time.Second {
			return fmt.Errorf("lab: h1/c1 does not reach h2/c1 over the relay: %w: %s", err, out)
		}
	}
	fmt.Fprintf(d.out, "h1/c1 reaches h2/c1 again after %.1f s:\n\n", time.Since(cut).Seconds())
	if err := d.show(ctx, "h1/c1", ping("--count", "20")...); err != nil {
		return err
	}
	if err := d.show(ctx, "h1", "weft", "status", "connections"); err != nil {
		return err
	}
	fmt.Fprintln(d.out, "$ weft lab link --name "+d.lab.opts.Name+" h1 h2 up")
	if err := d.lab.Link(ctx, "h1", "h2", true); err != nil {
		return err
	}
	for back := time.Now(); ; {
		out, err := d.lab.Exec(ctx, "h1", nil, "weft", "status", "connections")
		if err == nil && !strings.Contains(out, " via ") {
			fmt.Fprintf(d.out, "The tunnel uses the link again after %.1f s.\n", time.Since(back).Seconds())
			break
		}
		if time.Since(back) > 20*time.Second {
			return fmt.Errorf("lab: the tunnel does not leave the relay: %w: %s", err, out)
		}
	}
	sum, err := capture.Stop()
	if err != nil {
		return err
	}
	return CheckSilence(sum)
}
