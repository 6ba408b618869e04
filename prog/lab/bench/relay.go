package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"time"

	"weft/prog/api"
	"weft/prog/lab"
)

const (
	relayRounds   = 5   // a tunnel that moved often stays on a relay for 3 s more with each move
	relayLeast    = 0.6 // budget: throughput over a relay, relative to the direct tunnel
	relayWait     = 2 * time.Minute
	roundTrips    = 1000
	roundTripRest = 2 * time.Millisecond // pause before a question, so that no queue forms
)

// relay measures the tunnel between h1 and h2, directly and over h3, by turns in one lab. The lab cuts the link
// between h1 and h2, so their tunnel goes over h3, and then heals it.
func relay(ctx context.Context, b *bench) (err error) {
	l, down, err := b.up(ctx, lab.Options{Name: "relay", Hosts: 3, Containers: 1})
	if err != nil {
		return err
	}
	defer down(&err)
	to, err := startEcho(ctx, b, l)
	if err != nil {
		return err
	}
	var rates, medians, p99s [2]samples // direct, and over the relay
	for range relayRounds {
		for i, state := range []string{api.ConnDirect, api.ConnRelayed} {
			if err := l.Link(ctx, "h1", "h2", state == api.ConnDirect); err != nil {
				return err
			}
			if err := becomes(ctx, l, state, to); err != nil {
				return err
			}
			median, p99, err := roundTripTimes(ctx, b, l, net.JoinHostPort(to, fmt.Sprint(clusterPort)))
			if err != nil {
				return err
			}
			medians[i].add(median)
			p99s[i].add(p99)
			if err := oneStream(ctx, l, "h2/c1", &rates[i]); err != nil {
				return err
			}
			if err := tunnelsAre(ctx, l, state); err != nil {
				return fmt.Errorf("after a measurement: %w", err)
			}
		}
	}
	var added samples
	for i := range medians[0] {
		added.add(medians[1][i] - medians[0][i])
	}
	printComparisons(os.Stdout, "A tunnel over a relay, compared with the direct one", "over a relay", "direct",
		comparison{what: "one TCP stream, Gbit/s", ours: rates[1], theirs: rates[0], atLeast: relayLeast},
		comparison{what: "round trip of UDP, median, ms", ours: medians[1], theirs: medians[0]},
		comparison{what: "round trip of UDP, p99, ms", ours: p99s[1], theirs: p99s[0]})
	printPairs(os.Stdout, fmt.Sprintf("A tunnel over a relay, relative to the direct one, in each of %d rounds", relayRounds),
		pairs{"one TCP stream", rates[1], rates[0], false},
		pairs{"round trip of UDP, median", medians[1], medians[0], false})
	printFigures(os.Stdout, "A tunnel over a relay: what it adds to the median round trip of UDP", "ms", figure{what: "over a relay, less the direct one of the same round", ours: added})
	return relayDrops(ctx, l)
}

// becomes waits until the tunnels of h1 and h2 have a state, and are measured. Packets go on meanwhile: under traffic
// agents notice a cut link at once.
func becomes(ctx context.Context, l *lab.Lab, state, to string) error {
	err := errors.New("no answer yet")
	for start := time.Now(); time.Since(start) < relayWait && ctx.Err() == nil; {
		if _, err = l.Exec(ctx, "h1/c1", nil, "weft", "probe", "icmp", "--count", "5", "--interval", "20ms", "--timeout", "100ms", to); err != nil {
			continue
		}
		if err = tunnelsAre(ctx, l, state); err == nil {
			return nil
		}
	}
	return fmt.Errorf("no %s tunnel within %v: %w", state, relayWait, errors.Join(err, ctx.Err()))
}

// tunnelsAre checks that the tunnels of h1 and h2 to each other have a state, and the MTU of the underlay.
func tunnelsAre(ctx context.Context, l *lab.Lab, state string) error {
	const underlay = 1500 // MTU
	for host, other := range map[string]string{"h1": "h2", "h2": "h1"} {
		r, err := l.Report(ctx, host)
		if err != nil {
			return err
		}
		at := slices.IndexFunc(r.Router.Connections, func(c api.Connection) bool { return c.Nickname == other })
		if at < 0 {
			return fmt.Errorf("%s has no connection to %s", host, other)
		}
		if c := r.Router.Connections[at]; c.State != state || c.RoundTrip == nil || c.PathMTU != underlay {
			return fmt.Errorf("the tunnel of %s to %s is %s (%s) with an MTU of %d, want %s and %d, measured", host, other, c.State, c.Info, c.PathMTU, state, underlay)
		}
	}
	return nil
}

// relayDrops prints what the relay forwards, and what it dropped because it was too much.
func relayDrops(ctx context.Context, l *lab.Lab) error {
	r, err := l.Report(ctx, "h3")
	if err != nil {
		return err
	}
	var forwarded, dropped uint64
	for _, pair := range r.Router.Relays {
		forwarded, dropped = forwarded+pair.Bytes, dropped+pair.Dropped
	}
	const mib = 1 << 20
	fmt.Printf("\nThe relay forwarded %d MiB since the last cut, and dropped %.1f MiB, which were too much in a second.\n", forwarded/mib, float64(dropped)/mib)
	if forwarded == 0 {
		return errors.New("the relay forwarded nothing: the figures are of another path")
	}
	return nil
}

// roundTripTimes returns the median and the 99th percentile of round trips between containers, in milliseconds.
func roundTripTimes(ctx context.Context, b *bench, l *lab.Lab, to string) (median, p99 float64, err error) {
	out, err := l.Exec(ctx, "h1/c1", nil, b.self, "round-trips", to)
	if err != nil {
		return 0, 0, err
	}
	_, err = fmt.Sscan(out, &median, &p99)
	return median, p99, err
}

// roundTripHelper sends small packets to echo, one at a time, and prints the median and the 99th percentile of the
// times until they came back, in milliseconds.
func roundTripHelper(ctx context.Context, args []string) error {
	c, err := (&net.Dialer{}).DialContext(ctx, "udp", args[0])
	if err != nil {
		return err
	}
	defer c.Close()
	var times samples
	packet := make([]byte, 16)
	for i := range roundTrips {
		time.Sleep(roundTripRest)
		start := time.Now()
		if err := c.SetDeadline(start.Add(time.Second)); err != nil {
			return err
		}
		if _, err := c.Write(packet); err != nil {
			return err
		}
		if _, err := c.Read(packet); err != nil {
			return fmt.Errorf("question %d: %w", i, err)
		}
		times.add(1000 * time.Since(start).Seconds())
	}
	slices.Sort(times)
	_, err = fmt.Println(times.median(), times[len(times)*99/100])
	return err
}
