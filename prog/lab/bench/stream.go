package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"weft/prog/lab"
	"weft/prog/lab/probe"
)

const (
	streamRounds   = 20
	streamDuration = "2s"
)

// stream measures one TCP stream between containers on two hosts in three equal labs: with Weft; with
// Weft and wireguard-go's own program in place of weft datapath, which is the only difference; and
// with wireguard-go set up by hand (see plain.go), which shows the cost of Weft's nftables rules.
func stream(ctx context.Context, b *bench) (err error) {
	program := filepath.Join(b.tmp, "wireguard-go")
	if out, err := exec.CommandContext(ctx, "go", "build", "-o", program, "golang.zx2c4.com/wireguard").CombinedOutput(); err != nil {
		return fmt.Errorf("build wireguard-go: %w\n%s", err, out)
	}
	ours, down, err := b.up(ctx, lab.Options{Name: "weft", Hosts: 2, Containers: 1})
	if err != nil {
		return err
	}
	defer down(&err)
	if kind, err := ours.Exec(ctx, "h1", nil, "weft", "report", "-f", "{{.router.datapath}}"); err != nil || strings.TrimSpace(kind) != "userspace" {
		return errors.Join(err, fmt.Errorf("the datapath is %q, want userspace: run this benchmark on a kernel without WireGuard", kind))
	}
	replaced, down, err := b.up(ctx, lab.Options{Name: "replaced", Hosts: 2, Containers: 1})
	if err != nil {
		return err
	}
	defer down(&err)
	if err := replaceDatapath(ctx, replaced, program); err != nil {
		return err
	}
	plain, down, err := b.up(ctx, lab.Options{Name: "plain", Hosts: 2, Containers: 1, Bare: true})
	if err != nil {
		return err
	}
	defer down(&err)
	if err := b.setUpPlain(ctx, plain, program); err != nil {
		return err
	}
	rates := make([]samples, 3)
	for range streamRounds {
		for i, l := range []*lab.Lab{ours, replaced, plain} {
			if err := oneStream(ctx, l, "h2/c1", &rates[i]); err != nil {
				return err
			}
		}
	}
	printComparisons(os.Stdout, "One TCP stream between containers on two hosts", "Gbit/s", "wireguard-go",
		comparison{what: "wireguard-go instead of `weft datapath`, on the same hosts", ours: rates[0], theirs: rates[1], atLeast: 1},
		comparison{what: "wireguard-go set up by hand, without a firewall", ours: rates[0], theirs: rates[2]})
	return nil
}

// replaceDatapath runs wireguard-go's program in place of weft datapath. The agent uses any device
// that answers.
func replaceDatapath(ctx context.Context, l *lab.Lab, program string) error {
	for _, host := range l.Hosts() {
		if err := l.Stop(ctx, host); err != nil { // stop the agent first, or it would start another datapath
			return err
		}
		if err := l.Kill(ctx, host, "datapath"); err != nil {
			return err
		}
		// The device is busy until the kernel has cleaned up after the killed process.
		if _, err := l.Exec(ctx, host, nil, "sh", "-c", "for i in $(seq 50); do "+program+" weft && exit; sleep 0.1; done; exit 1"); err != nil {
			return err
		}
		if err := l.Start(ctx, host); err != nil {
			return err
		}
	}
	s, err := l.Status(ctx)
	if err != nil {
		return err
	}
	for _, h := range s.Hosts {
		if len(h.Datapath) > 0 {
			return fmt.Errorf("%s runs `weft datapath` instead of wireguard-go: its figures would be wrong", h.Name)
		}
	}
	to, err := l.Addrs(ctx, "h2/c1")
	if err != nil {
		return err
	}
	return firstPing(ctx, l, "h1/c1", to[0])
}

// setUpPlain runs plainWireGuard on both hosts.
func (b *bench) setUpPlain(ctx context.Context, l *lab.Lab, program string) error {
	for i, host := range l.Hosts() {
		netns, err := l.NetNS(ctx, host+"/c1")
		if err != nil {
			return err
		}
		if _, err := l.Exec(ctx, host, nil, b.self, "plain-wireguard", program, fmt.Sprint(i+1), netns); err != nil {
			return err
		}
	}
	return nil
}

// oneStream sends from h1/c1 to another container for streamDuration.
func oneStream(ctx context.Context, l *lab.Lab, server string, into *samples) error {
	to, err := l.Addrs(ctx, server)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx) // cancel stops the listener
	defer cancel()
	if _, err := l.Background(ctx, server, probe.ListenReady, "weft", "probe", "listen"); err != nil {
		return err
	}
	out, err := l.Exec(ctx, "h1/c1", nil, "weft", "probe", "tcp", "--bulk", "--json", "--duration", streamDuration, to[0])
	if err != nil {
		return err
	}
	var r probe.BulkResult
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		return err
	}
	into.add(r.Gbits)
	return nil
}
