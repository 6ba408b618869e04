package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"weft/prog/lab"
)

const (
	tunnelRounds = 20
	tunnelTime   = 500 * time.Millisecond // duration of a measurement
	tunnelRest   = time.Second            // pause before a measurement, so that agents and kernels finish applying policies
)

// policyTunnel measures small packets between containers on two hosts, whose agents enforce the
// policies that are applied on one host. It measures each number of policies repeatedly, in random
// order.
func policyTunnel(ctx context.Context, b *bench) (err error) {
	l, down, err := b.up(ctx, lab.Options{Name: "policy", Hosts: 2, Containers: 1})
	if err != nil {
		return err
	}
	defer down(&err)
	to, err := startEcho(ctx, b, l)
	if err != nil {
		return err
	}
	const none, again, few, many = 0, 1, 2, 3
	policies := []int{none: 0, again: 0, few: 10, many: clusterPolicies}
	rates := make([]samples, len(policies))
	now := 0
	for range tunnelRounds {
		for _, i := range rand.Perm(len(policies)) {
			if err := changePolicies(ctx, l, now, policies[i]); err != nil {
				return err
			}
			now = policies[i]
			rate, err := volleys(ctx, b, l, net.JoinHostPort(to, fmt.Sprint(clusterPort)))
			if err != nil {
				return fmt.Errorf("with %d policies: %w", now, err)
			}
			rates[i].add(rate / 1000)
		}
	}
	printComparisons(os.Stdout, "Policies: small packets between containers on two hosts", "thousands a second, there and back", "without policies",
		comparison{what: "none again (noise)", ours: rates[again], theirs: rates[none]},
		comparison{what: "10 policies", ours: rates[few], theirs: rates[none]},
		comparison{what: fmt.Sprintf("%d policies", clusterPolicies), ours: rates[many], theirs: rates[none]})
	printPairs(os.Stdout, fmt.Sprintf("Policies: rate between two hosts under more policies, relative to fewer, in each of %d rounds", tunnelRounds),
		pairs{"no policies, relative to no policies (noise)", rates[again], rates[none], false},
		pairs{"10 policies, relative to none", rates[few], rates[none], true},
		pairs{fmt.Sprintf("%d policies, relative to 10", clusterPolicies), rates[many], rates[few], true})
	return nil
}

// changePolicies applies or deletes policies, so that their number in the lab becomes after.
func changePolicies(ctx context.Context, l *lab.Lab, before, after int) error {
	for _, step := range []struct {
		verb        string
		first, last int
	}{{"delete", after, before}, {"apply", before, after}} {
		if step.first >= step.last {
			continue
		}
		var text strings.Builder
		for n := step.first; n < step.last; n++ {
			text.WriteString(tunnelPolicy(n))
		}
		if _, err := l.Exec(ctx, "h1", strings.NewReader(text.String()), "weft", "policy", step.verb, "-f", "-", "--wait"); err != nil {
			return err
		}
	}
	return sleep(ctx, tunnelRest)
}

// tunnelPolicy returns the manifest of policy n. Policy 0 isolates every container in both directions.
// All other policies select no container.
func tunnelPolicy(n int) string {
	chosen := "{}"
	if n > 0 {
		chosen = fmt.Sprintf("{matchLabels: {app: app%d}}", n)
	}
	return fmt.Sprintf(`---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p%d}
spec:
  podSelector: %s
  policyTypes: [Ingress, Egress]
  ingress:
  - from: [{podSelector: {matchLabels: {app: app%d}}}]
    ports: [{protocol: TCP, port: 8000}]
  - from: [{podSelector: {}}]
    ports: [{protocol: UDP, port: %d}]
  egress:
  - to: [{ipBlock: {cidr: 198.18.%d.0/24}}]
  - to: [{podSelector: {}}]
`, n, chosen, n+1, clusterPort, n%256)
}

// volleys returns how many packets per second go from a container to another and back.
func volleys(ctx context.Context, b *bench, l *lab.Lab, to string) (float64, error) {
	if _, err := l.Exec(ctx, "h1/c1", nil, b.self, "volley", to, "200ms"); err != nil { // warm up
		return 0, err
	}
	out, err := l.Exec(ctx, "h1/c1", nil, b.self, "volley", to, tunnelTime.String())
	if err != nil {
		return 0, err
	}
	return strconv.ParseFloat(strings.TrimSpace(out), 64)
}

// underway is the number of packets in flight: enough to keep both processors busy, and few enough
// that no queue overflows. Beyond the tunnel's capacity, the benchmark would measure the sender's
// back pressure.
const underway = 32

// volley sends small packets for a while, one for each packet that comes back, and prints the packets
// per second.
func volley(ctx context.Context, args []string) error {
	most, err := time.ParseDuration(args[1])
	if err != nil {
		return err
	}
	c, err := (&net.Dialer{}).DialContext(ctx, "udp", args[0])
	if err != nil {
		return err
	}
	defer c.Close()
	packet := make([]byte, 16)
	start, back, send := time.Now(), 0, underway
	for time.Since(start) < most {
		for range send {
			if _, err := c.Write(packet); err != nil {
				return fmt.Errorf("send: %w", err)
			}
		}
		send = 1
		if err := c.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
			return err
		}
		switch _, err := c.Read(packet); {
		case err == nil:
			back++
		case errors.Is(err, os.ErrDeadlineExceeded):
			send = underway // no packet came back for a while: all are lost
		default:
			return err
		}
	}
	_, err = fmt.Println(float64(back) / time.Since(start).Seconds())
	return err
}

const echoReady = "listening"

// startEcho starts echo in h2/c1, and returns the address of that container.
func startEcho(ctx context.Context, b *bench, l *lab.Lab) (string, error) {
	to, err := l.Addrs(ctx, "h2/c1")
	if err != nil {
		return "", err
	}
	_, err = l.Background(ctx, "h2/c1", echoReady, b.self, "echo", fmt.Sprint(clusterPort))
	return to[0], err
}

// echo sends every UDP packet back to its sender.
func echo(ctx context.Context, args []string) error {
	c, err := (&net.ListenConfig{}).ListenPacket(ctx, "udp", ":"+args[0])
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { c.Close() })
	fmt.Fprintln(os.Stderr, echoReady)
	packet := make([]byte, 64)
	for {
		n, from, err := c.ReadFrom(packet)
		if err == nil {
			_, err = c.WriteTo(packet[:n], from)
		}
		if err != nil {
			if ctx.Err() != nil {
				return nil // the context ended, so the read failed
			}
			return err
		}
	}
}
