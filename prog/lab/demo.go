package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"time"

	"weft/prog/lab/probe"
	"weft/prog/words"
)

// demoMarker fills every payload of the demo, so that the capture finds a payload that is sent in the
// clear.
const demoMarker = "the-quick-brown-fox-"

// demo is one run of the demo. Its output is real: it runs each command that it prints after $.
type demo struct {
	lab  *Lab
	out  io.Writer
	keep bool      // the lab is left running
	page *exec.Cmd // serves the page; nil until it has started
}

// Demo starts three hosts as the lab with this name, and shows on w what Weft does. It fails if one
// of its claims is not true. It removes the lab at the end, unless keep is true.
func Demo(ctx context.Context, w io.Writer, name string, keep bool) (err error) {
	d := &demo{out: w, keep: keep}
	start := time.Now()
	d.caption("Three hosts, two containers on each, on this machine")
	d.lab, err = Up(ctx, Options{Name: name, Containers: 2, Progress: func(line string) { fmt.Fprintln(w, "  "+line) }})
	if d.lab != nil && !(keep && err == nil) {
		defer func() {
			if e := d.lab.Down(context.WithoutCancel(ctx)); err == nil {
				err = e
			}
			if d.page != nil {
				_ = d.page.Wait() // the page has ended with the lab
			}
		}()
	}
	if err != nil {
		return err
	}
	for _, step := range []func(context.Context) error{d.status, d.picture, d.reach, d.names, d.policy, d.relay, d.kill} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	if keep {
		d.caption("The lab stays up. Try these commands:")
		d.keepHints()
		return nil
	}
	d.caption("All checks passed; removing the lab (after %.0f s; KEEP=1 leaves it running)", time.Since(start).Seconds())
	return nil
}

func (d *demo) caption(format string, args ...any) {
	fmt.Fprintf(d.out, "\n── %s\n\n", fmt.Sprintf(format, args...))
}

// show runs a command on a target, and prints the command and its output.
func (d *demo) show(ctx context.Context, target string, args ...string) error {
	fmt.Fprintf(d.out, "%s $ %s\n", target, strings.Join(args, " "))
	out, err := d.lab.Exec(ctx, target, nil, args...)
	for line := range strings.Lines(strings.TrimRight(out, "\n") + "\n") {
		if line != "\n" {
			line = "  " + line
		}
		fmt.Fprint(d.out, line)
	}
	fmt.Fprintln(d.out)
	return err
}

func (d *demo) status(ctx context.Context) error {
	d.caption("The hosts found each other by gossip; every pair shares a WireGuard tunnel")
	if err := d.tunnels(ctx); err != nil {
		return err
	}
	for _, args := range [][]string{{"weft", "status"}, {"weft", "status", "connections"}, {"weft", "status", "ipam"}} {
		if err := d.show(ctx, "h1", args...); err != nil {
			return err
		}
	}
	return nil
}

// tunnels waits until h1 has a tunnel to both other hosts. It sends packets, since the first packet
// starts WireGuard's handshake.
func (d *demo) tunnels(ctx context.Context) error {
	addrs, err := d.remoteAddrs(ctx)
	if err != nil {
		return err
	}
	ping := append([]string{"weft", "probe", "icmp", "--count", "1"}, addrs...)
	for deadline := time.Now().Add(15 * time.Second); ; {
		if _, err = d.lab.Exec(ctx, "h1/c1", nil, ping...); err == nil || time.Now().After(deadline) {
			return err
		}
	}
}

// remoteAddrs returns the addresses of the containers that are not on h1.
func (d *demo) remoteAddrs(ctx context.Context) ([]string, error) {
	var all []string
	for _, target := range []string{"h2/c1", "h2/c2", "h3/c1", "h3/c2"} {
		addrs, err := d.lab.Addrs(ctx, target)
		if err != nil {
			return nil, err
		}
		if len(addrs) < 2 {
			return nil, fmt.Errorf("lab: %s has the addresses %v: want one of each family", target, addrs)
		}
		all = append(all, addrs...)
	}
	slices.SortStableFunc(all, func(a, b string) int { return strings.Count(a, ":") - strings.Count(b, ":") })
	return all, nil
}

func (d *demo) reach(ctx context.Context) error {
	d.caption("A container reaches containers on other hosts, over IPv4 and IPv6")
	addrs, err := d.remoteAddrs(ctx)
	if err != nil {
		return err
	}
	capture, err := d.lab.Capture(ctx, demoMarker)
	if err != nil {
		return err
	}
	args := []string{"weft", "probe", "icmp", "--count", "10", "--interval", "50ms", "--size", "512", "--marker", demoMarker}
	if err := d.show(ctx, "h1/c1", append(args, addrs...)...); err != nil {
		return err
	}
	sum, err := capture.Stop()
	if err != nil {
		return err
	}
	d.caption("Meanwhile a packet capture of the hosts' own network saw this, and %q in %s", demoMarker, words.Count(sum.Marked, "packet"))
	if err := sum.Print(d.out); err != nil {
		return err
	}
	return CheckSilence(sum)
}

// names shows that containers find each other by name, including a name that was just added.
func (d *demo) names(ctx context.Context) error {
	d.caption("Every container has a DNS name; h3/c2 now gets another name")
	for _, args := range [][]string{{"cat", "/etc/resolv.conf"}, {"getent", "ahostsv4", "c2.h3"}} {
		if err := d.show(ctx, "h1/c1", args...); err != nil {
			return err
		}
	}
	addrs, err := d.lab.Addrs(ctx, "h3/c2")
	if err != nil {
		return err
	}
	if err := d.show(ctx, "h3", "weft", "dns-add", addrs[0], "-h", "shop"); err != nil {
		return err
	}
	given := time.Now()
	for {
		out, err := d.lab.Exec(ctx, "h1/c1", nil, "getent", "ahostsv4", "shop.weft.internal.")
		if err == nil && strings.Contains(out, addrs[0]) {
			break
		}
		if time.Since(given) > 5*time.Second {
			return fmt.Errorf("lab: h1/c1 does not find shop: %w: %s", err, out)
		}
	}
	fmt.Fprintf(d.out, "h1/c1 finds the name after %d ms:\n\n", time.Since(given).Milliseconds())
	if err := d.show(ctx, "h1/c1", "getent", "ahostsv6", "shop.weft.internal"); err != nil {
		return err
	}
	return d.show(ctx, "h1", "weft", "dns-lookup", addrs[0])
}

func (d *demo) kill(ctx context.Context) error {
	d.caption("The agent of h2 is killed (-9) while a TCP connection to h2/c1 is in use")
	addrs, err := d.lab.Addrs(ctx, "h2/c1")
	if err != nil {
		return err
	}
	listener, err := d.lab.Background(ctx, "h2/c1", probe.ListenReady, "weft", "probe", "listen")
	if err != nil {
		return err
	}
	defer listener.cancel()
	capture, err := d.lab.Capture(ctx, demoMarker)
	if err != nil {
		return err
	}
	flow, err := d.lab.startProcess(ctx, "h1/c1", nil,
		"weft", "probe", "tcp", "--json", "--count", "150", "--interval", "20ms", "--marker", demoMarker, addrs[0])
	if err != nil {
		return err
	}
	select {
	case <-time.After(time.Second): // by then the probe has sent a third of its messages
	case <-ctx.Done():
	}
	fmt.Fprintln(d.out, "$ weft lab kill --name "+d.lab.opts.Name+" h2")
	if err := d.lab.Kill(ctx, "h2", "agent"); err != nil {
		return err
	}
	out, err := flow.Wait()
	if err != nil {
		return fmt.Errorf("lab: traffic while the agent was down: %w\n%s", err, out)
	}
	var results []probe.Result
	if err := json.Unmarshal([]byte(out), &results); err != nil {
		return err
	}
	if err := probe.Print(d.out, results); err != nil {
		return err
	}
	sum, err := capture.Stop()
	if err != nil {
		return err
	}
	if err := CheckSilence(sum); err != nil {
		return err
	}
	return d.restart(ctx)
}

// restart checks that the agent was down all the time, and starts it again.
func (d *demo) restart(ctx context.Context) error {
	s, err := d.lab.Status(ctx)
	if err != nil {
		return err
	}
	if h2 := s.Hosts[1]; len(h2.Agent) != 0 {
		return fmt.Errorf("lab: the agent of h2 runs (pid %v): want none until it is started again", h2.Agent)
	}
	fmt.Fprintln(d.out, "\nNo message was lost or sent in the clear. The agent starts with its stored state:")
	fmt.Fprintln(d.out, "\n$ weft lab start --name "+d.lab.opts.Name+" h2")
	if err := d.lab.Start(ctx, "h2"); err != nil {
		return err
	}
	return d.show(ctx, "h2", "weft", "ps")
}

func (d *demo) keepHints() {
	for _, hint := range []string{
		"status",
		"exec h1 -- weft status peers",
		"exec h1/c1 -- sh",
		"ui h2",
		"link h1 h2 down",
		"reboot h3",
		"down",
	} {
		verb, args, _ := strings.Cut(hint, " ")
		fmt.Fprintln(d.out, strings.TrimRight(fmt.Sprintf("  bin/weft lab %s --name %s %s", verb, d.lab.opts.Name, args), " "))
	}
}
