package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"weft/prog/lab"
)

const (
	flowsRounds = 25
	flowsTime   = 500 * time.Millisecond // duration of a measurement
)

// flowsLab is a lab of two hosts, of which h1 has two containers.
type flowsLab struct {
	*lab.Lab
	near, far string // echo servers on the host of the client, and on the other host
	agent     int    // the process of h1's agent
	rates     [3]samples
	cpu, mib  samples
}

// flowsBench measures small packets and new connections between containers in two labs, one of which
// remembers flows. It also measures the agent while as many connections begin as one client can make.
func flowsBench(ctx context.Context, b *bench) (err error) {
	labs := []*flowsLab{{}, {}}
	for i, flags := range [][]string{nil, {"--no-flows"}} {
		l, down, err := b.up(ctx, lab.Options{Name: []string{"flows", "noflows"}[i], Hosts: 2, Containers: 2, Launch: flags})
		if err != nil {
			return err
		}
		defer down(&err)
		labs[i].Lab = l
		if err := labs[i].serve(ctx, b); err != nil {
			return err
		}
	}
	for kind := range labs[0].rates { // new connections last: the agent reads their counters for a while
		for round := range flowsRounds {
			for i := range labs { // A B, then B A, so that a trend of the machine's load affects both
				if err := labs[(i+round)%2].measure(ctx, b, kind); err != nil {
					return err
				}
			}
		}
	}
	with, without := labs[0], labs[1]
	printComparisons(os.Stdout, "Flows: between two containers, with flows and with `--no-flows`", "thousands a second", "`--no-flows`",
		comparison{what: "packets there and back, on one host", ours: with.rates[0], theirs: without.rates[0], atLeast: 0.97},
		comparison{what: "packets there and back, on two hosts", ours: with.rates[1], theirs: without.rates[1], atLeast: 0.97},
		comparison{what: "new UDP connections, on one host", ours: with.rates[2], theirs: without.rates[2]})
	printPairs(os.Stdout, fmt.Sprintf("Flows: rates with flows, relative to `--no-flows`, in each of %d rounds", flowsRounds),
		pairs{"packets there and back, on one host", with.rates[0], without.rates[0], true},
		pairs{"packets there and back, on two hosts", with.rates[1], without.rates[1], true},
		pairs{"new UDP connections, on one host", with.rates[2], without.rates[2], false})
	printFigures(os.Stdout, "Flows: the agent during these new connections", "one host",
		figure{what: "processor with flows, % of a core", ours: with.cpu},
		figure{what: "resident with flows, MiB", ours: with.mib},
		figure{what: "resident with `--no-flows`, MiB", ours: without.mib})
	return nil
}

// serve starts the servers, and finds the agent.
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
	s, err := l.Status(ctx)
	if err != nil {
		return err
	}
	for _, h := range s.Hosts {
		if h.Name == "h1" && len(h.Agent) == 1 {
			l.agent = h.Agent[0]
		}
	}
	return nil
}

// measure adds one sample of a kind: packets on one host, packets on two hosts, or new connections.
func (l *flowsLab) measure(ctx context.Context, b *bench, kind int) error {
	if kind < 2 {
		rate, err := volleys(ctx, b, l.Lab, []string{l.near, l.far}[kind])
		l.rates[kind].add(rate / 1000)
		return err
	}
	before, err := processorTime(ctx, l.Lab, "h1", l.agent)
	if err != nil {
		return err
	}
	begin := time.Now()
	out, err := l.Exec(ctx, "h1/c1", nil, b.self, "connections", l.near, flowsTime.String())
	if err != nil {
		return err
	}
	rate, err := strconv.ParseFloat(strings.TrimSpace(out), 64)
	if err != nil {
		return err
	}
	after, err := processorTime(ctx, l.Lab, "h1", l.agent)
	if err != nil {
		return err
	}
	l.rates[kind].add(rate / 1000)
	l.cpu.add(100 * (after - before) / time.Since(begin).Seconds())
	mib, err := residentMiB(ctx, l.Lab, "h1", l.agent, resident)
	l.mib.add(mib)
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
