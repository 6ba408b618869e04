package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"weft/prog/lab"
)

const (
	packetRounds = 12
	beginRounds  = 4
	flowsTime    = 500 * time.Millisecond // duration of a measurement
)

// flowsLab is a lab of two hosts, of which h1 has two containers. Its agents are launched with flows and
// with --no-flows by turns: two labs would differ by some percent.
type flowsLab struct {
	*lab.Lab
	near, far     string // echo servers on the host of the client, and on the other host
	with, without flowsSamples
}

// flowsSamples are the measurements with flows, or without.
type flowsSamples struct{ near, far, begun, cpu, mib samples }

// flowsBench measures small packets and new connections between containers, with flows and without. It
// also measures the agent while as many connections begin as one client can make.
func flowsBench(ctx context.Context, b *bench) (err error) {
	up, down, err := b.up(ctx, lab.Options{Name: "flows", Hosts: 2, Containers: 2})
	if err != nil {
		return err
	}
	defer down(&err)
	l := &flowsLab{Lab: up}
	if err := l.serve(ctx, b); err != nil {
		return err
	}
	// New connections come last: the agent reads their counters for a while.
	for kind, measure := range []func(context.Context, *bench, *flowsSamples) error{l.packets, l.begin} {
		for round := range []int{packetRounds, beginRounds}[kind] {
			for i := range 2 { // A B, then B A, so that a trend of the machine's load affects both
				into := &l.with
				if (i+round)%2 == 1 {
					into = &l.without
				}
				if err := l.launch(ctx, into == &l.with); err != nil {
					return err
				}
				if err := measure(ctx, b, into); err != nil {
					return err
				}
			}
		}
	}
	printComparisons(os.Stdout, "Flows: between two containers, with flows and with `--no-flows`", "thousands a second", "`--no-flows`",
		comparison{what: "packets there and back, on one host", ours: l.with.near, theirs: l.without.near, atLeast: 0.97},
		comparison{what: "packets there and back, on two hosts", ours: l.with.far, theirs: l.without.far, atLeast: 0.97},
		comparison{what: "new UDP connections, on one host", ours: l.with.begun, theirs: l.without.begun})
	printPairs(os.Stdout, "Flows: rates with flows, relative to `--no-flows`, in each round",
		pairs{"packets there and back, on one host", l.with.near, l.without.near, true},
		pairs{"packets there and back, on two hosts", l.with.far, l.without.far, true},
		pairs{"new UDP connections, on one host", l.with.begun, l.without.begun, false})
	printFigures(os.Stdout, "Flows: the agent during these new connections", "one host",
		figure{what: "processor with flows, % of a core", ours: l.with.cpu},
		figure{what: "processor with `--no-flows`, % of a core", ours: l.without.cpu},
		figure{what: "resident with flows, MiB", ours: l.with.mib},
		figure{what: "resident with `--no-flows`, MiB", ours: l.without.mib})
	return nil
}

// serve starts the servers.
func (l *flowsLab) serve(ctx context.Context, b *bench) error {
	for target, to := range map[string]*string{"h1/c2": &l.near, "h2/c1": &l.far} {
		addrs, err := l.Addrs(ctx, target)
		if err != nil {
			return err
		}
		*to = net.JoinHostPort(addrs[0], fmt.Sprint(clusterPort))
		if _, err := l.Background(ctx, target, echoReady, b.self, "echo", fmt.Sprint(clusterPort)); err != nil {
			return err
		}
	}
	return nil
}

// launch launches both agents again. Without flows the kernel does not count bytes either.
func (l *flowsLab) launch(ctx context.Context, flows bool) error {
	count := map[bool]string{true: "1", false: "0"}[flows]
	var group errgroup.Group
	for _, host := range l.Hosts() {
		group.Go(func() error {
			_, err := l.Exec(ctx, host, nil, "sh", "-ec", fmt.Sprintf(
				"weft stop; weft launch --no-flows=%v; echo %s > /proc/sys/net/netfilter/nf_conntrack_acct", !flows, count))
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return sleep(ctx, tunnelRest)
}

// packets measures packets on one host, and on two hosts.
func (l *flowsLab) packets(ctx context.Context, b *bench, into *flowsSamples) error {
	for to, rates := range map[string]*samples{l.near: &into.near, l.far: &into.far} {
		rate, err := volleys(ctx, b, l.Lab, to)
		if err != nil {
			return err
		}
		rates.add(rate / 1000)
	}
	return nil
}

// begin measures new connections, and the agent meanwhile.
func (l *flowsLab) begin(ctx context.Context, b *bench, into *flowsSamples) error {
	s, err := l.Status(ctx)
	if err != nil {
		return err
	}
	agent := s.Hosts[0].Agent[0]
	before, err := processorTime(ctx, l.Lab, "h1", agent)
	if err != nil {
		return err
	}
	start := time.Now()
	out, err := l.Exec(ctx, "h1/c1", nil, b.self, "connections", l.near, (2 * flowsTime).String())
	if err != nil {
		return err
	}
	rate, err := strconv.ParseFloat(strings.TrimSpace(out), 64)
	if err != nil {
		return err
	}
	after, err := processorTime(ctx, l.Lab, "h1", agent)
	if err != nil {
		return err
	}
	into.begun.add(rate / 1000)
	into.cpu.add(100 * (after - before) / time.Since(start).Seconds())
	mib, err := residentMiB(ctx, l.Lab, "h1", agent, resident)
	into.mib.add(mib)
	return err
}

// connections opens one UDP socket after the other for a while, each for one packet there and back, and
// prints how many a second.
func connections(ctx context.Context, args []string) error {
	most, err := time.ParseDuration(args[1])
	if err != nil {
		return err
	}
	start, n := time.Now(), 0
	packet := make([]byte, 16)
	for ; time.Since(start) < most; n++ {
		c, err := (&net.Dialer{}).DialContext(ctx, "udp", args[0])
		if err != nil {
			return err
		}
		if _, err = c.Write(packet); err == nil {
			err = c.SetReadDeadline(time.Now().Add(time.Second))
		}
		if err == nil {
			_, err = c.Read(packet)
		}
		c.Close()
		if err != nil {
			return err
		}
	}
	_, err = fmt.Println(float64(n) / time.Since(start).Seconds())
	return err
}
