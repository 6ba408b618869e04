package session

import (
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"

	"weft/mesh/meshtest"
)

// metered counts the bytes that both ends of a host's dialed streams write, without the headers of TCP.
type metered struct {
	memberlist.Transport
	bytes *atomic.Int64
}

func (m metered) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	c, err := m.Transport.DialTimeout(addr, timeout)
	return meter{c, m.bytes}, err
}

type meter struct {
	net.Conn
	bytes *atomic.Int64
}

func (m meter) Read(p []byte) (int, error) {
	n, err := m.Conn.Read(p)
	m.bytes.Add(int64(n))
	return n, err
}

func (m meter) Write(p []byte) (int, error) {
	n, err := m.Conn.Write(p)
	m.bytes.Add(int64(n))
	return n, err
}

// BenchmarkHandshake measures one stream between two hosts, both ends together, without certificates of the
// mesh.
func BenchmarkHandshake(b *testing.B) {
	n := meshtest.New(1)
	var bytes atomic.Int64
	show := func(c *Config) { c.Show = func(Use) []byte { return nil } }
	one := start(b, n, 1, 1, show, func(c *Config) { c.Network = metered{c.Network, &bytes} })
	two := start(b, n, 2, 1, show)
	b.ReportAllocs()
	for b.Loop() {
		s, err := one.Ask(two.at(), Keys, time.Second)
		if err != nil {
			b.Fatal(err)
		}
		s.Close()
	}
	b.ReportMetric(float64(bytes.Load())/float64(b.N), "wire-B/op")
	_, _ = one.Shutdown(), two.Shutdown()
}

// BenchmarkPacket measures one packet from seal to open.
func BenchmarkPacket(b *testing.B) {
	one, two := pair(b)
	out, err := newKeys(one.ConnectionState(), Peer{}, true)
	if err != nil {
		b.Fatal(err)
	}
	in, err := newKeys(two.ConnectionState(), Peer{}, false)
	if err != nil {
		b.Fatal(err)
	}
	content := make([]byte, 1300)
	b.SetBytes(int64(len(content)))
	b.ReportAllocs()
	for b.Loop() {
		packet, err := out.seal(packetType, content)
		if err != nil {
			b.Fatal(err)
		}
		if _, ok := in.open(packet); !ok {
			b.Fatal("a packet was dropped")
		}
	}
}
