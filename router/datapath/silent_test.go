package datapath

import (
	"crypto/ecdh"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/tuntest"
)

// newDevice returns wireguard-go over loopback, without a TUN device.
func newDevice(tb testing.TB) *device.Device {
	tb.Helper()
	key := make([]byte, 32)
	_, _ = rand.Read(key)
	dev := device.NewDevice(tuntest.NewChannelTUN().TUN(), conn.NewDefaultBind(), device.NewLogger(device.LogLevelSilent, ""))
	tb.Cleanup(dev.Close)
	configure(tb, dev, fmt.Sprintf("private_key=%x\nlisten_port=0\n", key))
	if err := dev.Up(); err != nil {
		tb.Fatal(err)
	}
	return dev
}

func configure(tb testing.TB, dev *device.Device, text string) {
	tb.Helper()
	if err := dev.IpcSet(text); err != nil {
		tb.Fatal(err)
	}
}

// silentPeers returns the configuration of peers that never answer.
func silentPeers(tb testing.TB, n, keepalive int) string {
	tb.Helper()
	sink, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { sink.Close() })
	var text strings.Builder
	for i := range n {
		key, err := ecdh.X25519().GenerateKey(rand.Reader)
		if err != nil {
			tb.Fatal(err)
		}
		fmt.Fprintf(&text, "public_key=%s\nendpoint=%v\npersistent_keepalive_interval=%d\nallowed_ip=10.%d.%d.0/24\n",
			hex.EncodeToString(key.PublicKey().Bytes()), sink.LocalAddr(), keepalive, i>>8, i&255)
	}
	return text.String()
}

func TestCountPeersReturnsTheNumberOfConfiguredPeers(t *testing.T) {
	dev := newDevice(t)
	if n := countPeers(dev); n != 0 {
		t.Errorf("countPeers is %d; want 0", n)
	}
	configure(t, dev, silentPeers(t, 300, 0))
	if n := countPeers(dev); n != 300 {
		t.Errorf("countPeers is %d; want 300", n)
	}
}

// processor returns the CPU time that this process has used.
func processor() time.Duration {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkSilentPeers reports how much processor time 5,000 silent peers take, in percent of a
// core. This includes the agent's reads of their state. Run it with:
//
//	go test ./router/datapath -run '^$' -bench SilentPeers -benchtime 1x
func BenchmarkSilentPeers(b *testing.B) {
	const peers = 5000
	for _, c := range []struct {
		name      string
		limit     int64
		keepalive int
	}{
		{"keepalive,limit=512MiB", minMemory, 25}, // earlier releases had this limit
		{"keepalive", memoryLimit(peers, 1<<30/10*9), 25},
		{"no-keepalive", memoryLimit(peers, 1<<30/10*9), 0},
	} {
		b.Run(c.name, func(b *testing.B) {
			defer debug.SetGCPercent(debug.SetGCPercent(400))
			defer debug.SetMemoryLimit(debug.SetMemoryLimit(c.limit))
			dev := newDevice(b)
			configure(b, dev, silentPeers(b, peers, c.keepalive))
			time.Sleep(8 * time.Second) // wait for the first retry to each peer
			for b.Loop() {
				from, start := processor(), time.Now()
				for range 10 { // the agent reads all peers at this interval, which makes most of the garbage
					time.Sleep(2 * time.Second)
					countPeers(dev)
				}
				b.ReportMetric(100*float64(processor()-from)/float64(time.Since(start)), "%core")
			}
			runtime.GC()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			b.ReportMetric(float64(m.HeapInuse+m.StackInuse)/(1<<20), "MiB-live")
		})
	}
}
