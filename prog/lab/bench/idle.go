package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"weft/prog/lab"
)

// idleTime is how long the mesh is idle before the measurement, and during it.
const idleTime = 30 * time.Second

// idle measures the idle costs of a host's processes. Each of four hosts has three peers.
func idle(ctx context.Context, b *bench) (err error) {
	l, down, err := b.up(ctx, lab.Options{Name: "idle", Hosts: 4, Containers: 1})
	if err != nil {
		return err
	}
	defer down(&err)
	if err := sleep(ctx, idleTime); err != nil {
		return err
	}
	rows := []figure{
		{what: "agent, resident, MiB", atMost: 60},
		{what: "agent, processor, % of a core", atMost: 1},
		{what: "datapath, resident, MiB"},
		{what: "datapath, processor, % of a core"},
		{what: "datapath, highest resident, after three simultaneous TCP streams, MiB"},
	}
	status, err := l.Status(ctx)
	if err != nil {
		return err
	}
	before := make(map[string]float64)
	err = eachProcess(status, func(process string, _ int, host string, pid int) (err error) {
		before[process], err = processorTime(ctx, l, host, pid)
		return err
	})
	if err != nil {
		return err
	}
	if err := sleep(ctx, idleTime); err != nil {
		return err
	}
	err = eachProcess(status, func(process string, kind int, host string, pid int) error {
		used, err := processorTime(ctx, l, host, pid)
		if err != nil {
			return err
		}
		mib, err := residentMiB(ctx, l, host, pid, resident)
		rows[2*kind].ours.add(mib)
		rows[2*kind+1].ours.add(100 * (used - before[process]) / idleTime.Seconds())
		return err
	})
	if err != nil {
		return err
	}
	if err := idleNoMore(ctx, l, status, &rows[4].ours); err != nil {
		return err
	}
	if len(rows[2].ours) == 0 { // there is no datapath process, because the kernel has WireGuard
		rows = rows[:2]
	}
	printFigures(os.Stdout, "At rest, with three peers", "four hosts", rows...)
	return nil
}

// idleNoMore sends from one host to all others at once, and measures each datapath's peak memory.
func idleNoMore(ctx context.Context, l *lab.Lab, status lab.Status, most *samples) error {
	var group errgroup.Group
	for _, h := range l.Hosts()[1:] {
		group.Go(func() error { return oneStream(ctx, l, h+"/c1", &samples{}) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return eachProcess(status, func(_ string, kind int, host string, pid int) error {
		if kind == 0 {
			return nil
		}
		mib, err := residentMiB(ctx, l, host, pid, mostResident)
		most.add(mib)
		return err
	})
}

// eachProcess calls f for every agent, with kind 0, and for every datapath process, with kind 1.
func eachProcess(s lab.Status, f func(process string, kind int, host string, pid int) error) error {
	for _, h := range s.Hosts {
		for kind, pids := range [][]int{h.Agent, h.Datapath} {
			for _, pid := range pids {
				if err := f(fmt.Sprint(h.Name, "/", pid), kind, h.Name, pid); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// processorTime returns a process's processor time so far, in seconds.
func processorTime(ctx context.Context, l *lab.Lab, host string, pid int) (float64, error) {
	stat, err := l.Exec(ctx, host, nil, "cat", fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// proc(5): utime and stime are fields 14 and 15. The name in parentheses may contain anything.
	fields := strings.Fields(stat[strings.LastIndex(stat, ")")+1:])
	user, err := strconv.ParseFloat(fields[14-3], 64)
	if err != nil {
		return 0, err
	}
	system, err := strconv.ParseFloat(fields[15-3], 64)
	const ticks = 100 // ticks per second: USER_HZ is 100 on Linux for every architecture that Go supports
	return (user + system) / ticks, err
}

// These are fields of /proc/PID/status (proc(5)): current and peak memory.
const (
	resident     = "VmRSS:"
	mostResident = "VmHWM:"
)

func residentMiB(ctx context.Context, l *lab.Lab, host string, pid int, which string) (float64, error) {
	status, err := l.Exec(ctx, host, nil, "cat", fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(status) {
		if value, ok := strings.CutPrefix(line, which); ok {
			kib, err := strconv.ParseFloat(strings.Fields(value)[0], 64)
			return kib / 1024, err
		}
	}
	return 0, fmt.Errorf("/proc/PID/status of process %d on %s has no %q: the process has ended", pid, host, which)
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
