package probe_test

import (
	"context"
	"fmt"
	"net/netip"
	"sync/atomic"
	"testing"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"weft/mesh/path"
	"weft/router/nft"
	"weft/router/probe"
)

// BenchmarkProbe measures one probe over a veth pair: Send, the kernel's work at both ends, and Receive.
// Two hosts answer each other, as at rest: every probe wakes its receiver. cpu-us/op is the processor time
// of the process; it contains the kernel's part, which runs in the context of the sender.
func BenchmarkProbe(b *testing.B) {
	for _, f := range families {
		b.Run(f.name, func(b *testing.B) {
			ctx, stop := context.WithCancel(b.Context())
			defer stop()
			left, right := openHost(b), openHost(b)
			connect(b, left.ns, right.ns, 1500, "under", "under", addrsA, addrsB)
			unlimited(b, left)
			unlimited(b, right)
			text := payload("sealed, and about as long as the usual small message of a path: 96 bytes")
			var n atomic.Int64
			answer := func(h *host, to string) func(probe.Datagram) {
				dst := netip.AddrPortFrom(netip.MustParseAddr(to), port)
				return func(d probe.Datagram) {
					if n.Add(1) >= int64(b.N) {
						stop()
					} else if err := h.conn.Send(dst, d.To, text, 0); err != nil {
						b.Error(err)
						stop()
					}
				}
			}
			var both errgroup.Group
			both.Go(func() error { return left.conn.Receive(ctx, answer(left, f.b)) })
			both.Go(func() error { return right.conn.Receive(ctx, answer(right, f.a)) })
			b.ReportAllocs()
			b.ResetTimer()
			before := cpu(b)
			left.send(f.b, "", "begin", 0)
			if err := both.Wait(); err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(cpu(b)-before)/1000/float64(b.N), "cpu-us/op")
		})
	}
}

// cpu returns the processor time of this process in nanoseconds.
func cpu(b *testing.B) int64 {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return unix.TimevalToNsec(u.Utime) + unix.TimevalToNsec(u.Stime)
}

// unlimited replaces the rules that receive probes by the same rules with a limit that is never reached.
func unlimited(b *testing.B, h *host) {
	b.Helper()
	h.ns.Do(func() {
		if err := h.kernel.Apply(nft.Build(nft.Guard{Universe: universe})); err != nil {
			b.Fatal(err)
		}
	})
	loadRules(b, h.ns, fmt.Sprintf(`table inet unlimited {
		set sources4 { type ipv4_addr; size 16384; flags dynamic,timeout; timeout 1m; }
		set sources6 { type ipv6_addr; size 16384; flags dynamic,timeout; timeout 1m; }
		chain probe {
			update @sources4 { ip saddr limit rate over 1000000/second burst 100000 packets } return
			update @sources6 { ip6 saddr limit rate over 1000000/second burst 100000 packets } return
			log group %d snaplen %d
		}
		chain probes {
			type filter hook input priority 200;
			udp dport %d @th,64,24 %#x iifname != "weft" iifname != "weft-*" goto probe
		}
	}`, probe.Group, probe.Snapshot, port, path.Magic[:]))
}
