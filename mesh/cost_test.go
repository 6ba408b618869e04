package mesh

import (
	"fmt"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/memberlist"

	"weft/mesh/meshtest"
)

// counted counts the bytes that a host sends, in packets and on streams.
type counted struct {
	memberlist.Transport
	sent    *atomic.Int64
	streams chan net.Conn
}

func count(t memberlist.Transport, sent *atomic.Int64, done <-chan struct{}) counted {
	c := counted{t, sent, make(chan net.Conn)}
	go func() {
		for {
			select {
			case s := <-t.StreamCh():
				select {
				case c.streams <- countedConn{s, sent}:
				case <-done:
					return
				}
			case <-done:
				return
			}
		}
	}()
	return c
}

func (c counted) StreamCh() <-chan net.Conn { return c.streams }

func (c counted) WriteTo(b []byte, addr string) (time.Time, error) {
	c.sent.Add(int64(len(b)))
	return c.Transport.WriteTo(b, addr)
}

func (c counted) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	s, err := c.Transport.DialTimeout(addr, timeout)
	if err != nil {
		return nil, err
	}
	return countedConn{s, c.sent}, nil
}

type countedConn struct {
	net.Conn
	sent *atomic.Int64
}

func (c countedConn) Write(b []byte) (int, error) {
	c.sent.Add(int64(len(b)))
	return c.Conn.Write(b)
}

// cpu returns the processor time that this process has used.
func cpu(t *testing.T) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func heap() float64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc) / (1 << 20)
}

// TestCost prints what a mesh costs: COST="3 20 100" gives the numbers of hosts. All of them run in this
// process, over a simulated network, in virtual time.
func TestCost(t *testing.T) {
	sizes := strings.Fields(os.Getenv("COST"))
	if len(sizes) == 0 {
		t.Skip(`this test measures: run it with COST="3 20 100"`)
	}
	const rest = 10 * time.Minute
	for _, size := range sizes {
		n, err := strconv.Atoi(size)
		if err != nil || n < 2 || n > 200 {
			t.Fatalf("COST: %q hosts, want 2 to 200", size)
		}
		synctest.Test(t, func(t *testing.T) {
			var sent atomic.Int64
			done := make(chan struct{})
			s := &cluster{t, meshtest.New(1)}
			s.net.SetDelay(time.Millisecond)
			before, start, began := heap(), time.Now(), cpu(t)
			var hosts []*host
			for i := 1; i <= n; i++ {
				hosts = append(hosts, s.start(i, nil, []string{"192.0.2.1"}, func(c *Config) { c.Transport = count(c.Transport, &sent, done) }))
			}
			for !allReach(hosts)() {
				time.Sleep(10 * time.Millisecond)
			}
			joined, spent, bytes := time.Since(start), cpu(t)-began, sent.Load()
			per := func(x float64) string { return fmt.Sprintf("%.2f", x/float64(n)) }
			t.Logf("%3d hosts join in %v; each: %s ms of processor time, %s kB sent", n, joined.Round(10*time.Millisecond), per(spent.Seconds()*1e3), per(float64(bytes)/1e3))
			time.Sleep(time.Minute)
			began, bytes = cpu(t), sent.Load()
			time.Sleep(rest)
			spent, bytes = cpu(t)-began, sent.Load()-bytes
			t.Logf("%3d hosts at rest; each: %s µs of processor time per second, %s B/s sent, %s MiB of memory", n, per(float64(spent.Microseconds())/rest.Seconds()), per(float64(bytes)/rest.Seconds()), per(heap()-before))
			s.end(hosts...)
			close(done)
			time.Sleep(2 * time.Minute)
		})
	}
}
