package dns

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// These benchmarks use loopback sockets, and several clients with some outstanding queries each, like
// dnsperf. p99 is the 99th percentile of the time until an answer.
func benchmarkUDP(b *testing.B, name string, qtype uint16, prepare func(*Server)) {
	s := runServer(b, nil)
	if prepare != nil {
		prepare(s)
	}
	const clients, window = 4, 8
	in := packed1(query4(name, qtype))
	var mu sync.Mutex
	var took []time.Duration
	var wg sync.WaitGroup
	b.ReportAllocs()
	b.ResetTimer()
	for range clients {
		wg.Go(func() {
			mine, err := client(at(s, loopback[0]), in, b.N/clients+1, window)
			if err != nil {
				b.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			took = append(took, mine...)
		})
	}
	wg.Wait()
	b.StopTimer()
	report(b, took)
}

// client sends n queries, window of them at a time, and returns the time of each answer.
func client(addr string, in []byte, n, window int) (took []time.Duration, err error) {
	c, err := net.Dial("udp", addr)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	out, buf := slices.Clone(in), make([]byte, maxUDP)
	sent := make([]time.Time, n)
	send := func(i int) {
		binary.BigEndian.PutUint16(out, uint16(i))
		sent[i] = time.Now()
		_, err = c.Write(out)
	}
	for i := range min(window, n) {
		send(i)
	}
	for i := range n {
		_ = c.SetReadDeadline(time.Now().Add(time.Second))
		size, e := c.Read(buf)
		if e != nil || err != nil {
			return nil, fmt.Errorf("question %d: %w", i, errors.Join(e, err))
		}
		if size < headerSize || buf[3]&0xF != dns.RcodeSuccess || binary.BigEndian.Uint16(buf[6:]) == 0 {
			return nil, fmt.Errorf("question %d: %x", i, buf[:size])
		}
		// Answers may come out of order: the id has the low bits of the query's number.
		of := i - i%65536 + int(binary.BigEndian.Uint16(buf))
		if of > i+window {
			of -= 65536
		} else if of < i-window-32768 {
			of += 65536
		}
		took = append(took, time.Since(sent[min(max(0, of), n-1)]))
		if i+window < n {
			send(i + window)
		}
	}
	return took, nil
}

func BenchmarkLocal(b *testing.B) {
	benchmarkUDP(b, "www.weft.internal.", dns.TypeA, nil)
}

func BenchmarkLocalSRV(b *testing.B) {
	benchmarkUDP(b, "_http._tcp.www.weft.internal.", dns.TypeSRV, nil)
}

func BenchmarkCached(b *testing.B) {
	benchmarkUDP(b, "www.example.", dns.TypeA, func(s *Server) { cacheExample(b, s) })
}

// BenchmarkForwarded forwards each query, from several clients. The upstream is cheap, so it mostly
// measures the server and the kernel's sockets.
func BenchmarkForwarded(b *testing.B) {
	s := newServer(b, nil)
	use(s, quickUpstream(b))
	const clients = 20
	var next atomic.Int64
	var wg sync.WaitGroup
	b.ReportAllocs()
	b.ResetTimer()
	for range clients {
		wg.Go(func() {
			answer := make(chan []byte, 1)
			for n := next.Add(1); n <= int64(b.N); n = next.Add(1) {
				in := packed1(query4(fmt.Sprintf("d%d.example.", n), dns.TypeA))
				out, q, wait := s.serve(nil, in, asker{})
				if wait {
					s.later(b.Context(), q, asker{}, func(m []byte) { answer <- m })
					out = <-answer
				}
				if len(out) < headerSize || out[3]&0xF != dns.RcodeSuccess || out[7] != 1 {
					b.Errorf("the server answered without the upstream, want the query forwarded: %x", out)
				}
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	s.tasks.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "queries/s")
}

// quickUpstream answers every name with the same address.
func quickUpstream(b *testing.B) *upstream {
	b.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { c.Close() })
	go func() {
		for buf := make([]byte, 4096); ; {
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			end := skipName(buf[:n], headerSize) + 4
			copy(buf[2:], []byte{0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0})
			end += copy(buf[end:], []byte{0xC0, headerSize, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 1})
			_, _ = c.WriteToUDPAddrPort(buf[:end], from)
		}
	}()
	return &upstream{addr: c.LocalAddr().(*net.UDPAddr).AddrPort()}
}

// cacheExample caches an answer for www.example.
func cacheExample(b *testing.B, s *Server) {
	b.Helper()
	p, err := pack(replies(query4("www.example.", dns.TypeA), dns.RcodeSuccess, "www.example. 3600 CNAME a.example.", "a.example. 3600 A 192.0.2.1"), "www.example.", dns.TypeA)
	if err != nil {
		b.Fatal(err)
	}
	p.stored, p.life = time.Now(), time.Hour
	s.cache.put(key{name: "www.example.", qtype: dns.TypeA}, p)
}

// BenchmarkLatencyAt20000QueriesPerSecond measures latency at the promised rate of 20,000 queries
// per second, 20 each millisecond: half for names of the mesh, half from the cache.
func BenchmarkLatencyAt20000QueriesPerSecond(b *testing.B) {
	s := runServer(b, nil)
	cacheExample(b, s)
	c, err := net.Dial("udp", at(s, loopback[0]))
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	var sent [1 << 16]atomic.Int64
	took := make([]time.Duration, 0, b.N)
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, maxUDP)
		for range b.N {
			_ = c.SetReadDeadline(time.Now().Add(time.Second))
			if _, err := c.Read(buf); err != nil {
				b.Errorf("received %d of %d answers, want all: %v", len(took), b.N, err)
				return
			}
			took = append(took, time.Duration(time.Now().UnixNano()-sent[binary.BigEndian.Uint16(buf)].Load()))
		}
	})
	in := [][]byte{packed1(query4("www.weft.internal.", dns.TypeA)), packed1(query4("www.example.", dns.TypeA))}
	b.ResetTimer()
	for i := range b.N {
		if wait := time.Duration(i/20)*time.Millisecond - b.Elapsed(); wait > 0 {
			time.Sleep(wait)
		}
		out := in[i%2]
		binary.BigEndian.PutUint16(out, uint16(i))
		sent[uint16(i)].Store(time.Now().UnixNano())
		if _, err := c.Write(out); err != nil {
			b.Fatal(err)
		}
	}
	wg.Wait()
	b.StopTimer()
	report(b, took)
}

func report(b *testing.B, took []time.Duration) {
	slices.Sort(took)
	b.ReportMetric(float64(len(took))/b.Elapsed().Seconds(), "queries/s")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
}

// These benchmarks use no sockets, and so measure only the server.
func benchmarkServe(b *testing.B, name string, qtype uint16) {
	s := newServer(b, nil)
	cacheExample(b, s)
	in, out := packed1(query4(name, qtype)), make([]byte, 0, maxUDP)
	b.ReportAllocs()
	for b.Loop() {
		if got, _, wait := s.serve(out, in, asker{}); wait || got == nil {
			b.Fatal("the server did not answer a query")
		}
	}
}

func BenchmarkServeLocal(b *testing.B) { benchmarkServe(b, "www.weft.internal.", dns.TypeA) }

func BenchmarkServeMissing(b *testing.B) { benchmarkServe(b, "nope.weft.internal.", dns.TypeA) }

func BenchmarkServePTR(b *testing.B) { benchmarkServe(b, "5.0.32.10.in-addr.arpa.", dns.TypePTR) }

func BenchmarkServeCached(b *testing.B) { benchmarkServe(b, "www.example.", dns.TypeA) }
