package mesh

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/memberlist"

	"weft/mesh/meshtest"
	"weft/mesh/meshtest/eventually"
	"weft/mesh/secret"
)

// flood opens streams to a host in a loop. Each stream announces length bytes, and sends as many
// as the host reads, except the last two chunks.
func flood(group *sync.WaitGroup, from *meshtest.Transport, to netip.AddrPort, streams, length int, until time.Time) {
	head := binary.BigEndian.AppendUint32([]byte{streamSealed}, uint32(length))
	junk := make([]byte, chunkSize)
	for range streams {
		group.Go(func() {
			for time.Now().Before(until) {
				time.Sleep(100 * time.Millisecond)
				c, err := from.DialTimeout(to.String(), time.Second)
				if err != nil {
					continue
				}
				_ = c.SetDeadline(time.Now().Add(5 * time.Second))
				_, err = c.Write(head)
				for n := 0; err == nil && n < length-2*chunkSize; n += len(junk) {
					_, err = c.Write(junk)
				}
				_, _ = c.Read(make([]byte, 1))
				c.Close()
			}
		})
	}
}

// sealed returns a message in the format that memberlist sends on a stream.
func sealed(t *testing.T, d *admission, text []byte) []byte {
	t.Helper()
	head := binary.BigEndian.AppendUint32([]byte{streamSealed}, uint32(sealHead+len(text)+d.aead.Overhead()))
	nonce := make([]byte, sealHead)
	nonce[0] = 1
	return append(append(bytes.Clone(head), nonce...), d.aead.Seal(nil, nonce[1:], text, head)...)
}

func admissionAt(t *testing.T, n *meshtest.Network, i int) *admission {
	t.Helper()
	d, err := newAdmission(n.Join(address(i)), &dialer{}, secret.Secret{1}.GossipKey(), func(string, string) {}, func(*stream) bool { return false })
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// empty asserts that no stream is counted any more.
func (d *admission) empty(t *testing.T) {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.total != (usage{}) || len(d.sources) != 0 || len(d.queued) != 0 {
		t.Errorf("usage is %+v, of %d sources and %d streams; want none", d.total, len(d.sources), len(d.queued))
	}
}

// Hosts without the secret at three addresses use no more than the bounds, and nothing after these
// hosts have gone. Encrypted messages still get through, even from the address of such a host.
func TestStreamsWithoutTheSecretAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := meshtest.New(1)
		d := admissionAt(t, n, 1)
		var group sync.WaitGroup
		end := time.Now().Add(4 * time.Second)
		var flooders []*meshtest.Transport
		for i, length := range []int{maxStream, maxStream, 2 * chunkSize} { // the last stream sends little more than its length field
			flooders = append(flooders, n.Join(address(2+i)))
			flood(&group, flooders[i], address(1), 120, length, end)
		}
		most, mostStreams := 0, 0
		group.Go(func() {
			for time.Now().Before(end) {
				d.mu.Lock()
				most, mostStreams = max(most, d.total.bytes), max(mostStreams, d.total.streams)
				d.mu.Unlock()
				time.Sleep(10 * time.Millisecond)
			}
		})
		for i, from := range []*meshtest.Transport{n.Join(address(9)), flooders[0]} {
			time.Sleep(time.Second)
			message := sealed(t, d, bytes.Repeat([]byte{byte(i)}, 1000))
			through := make(chan struct{})
			group.Go(func() {
				for { // a host that shares the address of a flooding host may need several tries, as gossip makes them
					if c, err := from.DialTimeout(address(1).String(), time.Second); err == nil {
						_, _ = c.Write(message)
						c.Close()
					}
					select {
					case <-through:
						return
					case <-time.After(10 * time.Millisecond):
					}
				}
			})
			for done := false; !done; {
				select {
				case c := <-d.StreamCh():
					got, err := io.ReadAll(c)
					c.Close()
					if done = bytes.Equal(got, message); !done && (err != nil || len(got) > 64) {
						t.Fatalf("%d unverified bytes reached memberlist, error %v; want none", len(got), err)
					}
				case <-time.After(time.Second):
					t.Fatal("no encrypted message arrived within a second; want one")
				}
			}
			close(through)
		}
		go func() {
			for c := range d.StreamCh() {
				c.Close()
			}
		}()
		group.Wait()
		time.Sleep(2 * streamTimeout)
		synctest.Wait()
		if most > maxHeld || most < maxHeldSource || mostStreams > maxStreams || mostStreams < maxStreamSource {
			t.Errorf("unproven streams held up to %d MiB in up to %d streams; want both bounds reached, and neither exceeded", most>>20, mostStreams)
		}
		d.empty(t)
		_ = d.Shutdown()
		close(d.open)
	})
}

// While hosts without the secret flood a host with streams, hosts with the secret can join it, and
// its status names the flooding hosts.
func TestFloodDoesNotPreventJoining(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &cluster{t, meshtest.New(2)}
		a := s.start(1, nil, nil)
		var group sync.WaitGroup
		flood(&group, s.net.Join(address(66)), address(1), 80, 20<<20, time.Now().Add(6*time.Second))
		flood(&group, s.net.Join(address(67)), address(1), 80, maxStream, time.Now().Add(6*time.Second))
		time.Sleep(time.Second)
		b := s.start(2, nil, []string{"192.0.2.1"})
		eventually.True(t, 4*time.Second, "the joining host is connected", func() bool { return allReach([]*host{a, b})() && record(a, b).Identity != nil })
		group.Wait()
		named := map[string]bool{}
		for _, r := range a.Rejections() {
			named[r.Addr] = true
		}
		if len(named) != 2 || !named["192.0.2.66"] || !named["192.0.2.67"] {
			t.Errorf("status names %v as refused, want both flooding hosts", named)
		}
		s.end(a, b)
	})
}

// The answer of a dialled host is unproven too. An answer that announces too much ends the attempt,
// and an answer that never comes uses one chunk.
func TestAnswersOfHostsWithoutTheSecretAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := meshtest.New(3)
		d, stranger := admissionAt(t, n, 1), n.Join(address(2))
		go func() {
			c := <-stranger.StreamCh()
			_, _ = c.Write(binary.BigEndian.AppendUint32([]byte{streamSealed}, 20<<20))
			if _, err := c.Write(make([]byte, 1<<20)); err == nil {
				t.Error("an answer of 20 MiB was read; want the stream closed before")
			}
		}()
		c, err := d.DialTimeout(address(2).String(), time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 10)); err == nil || !strings.Contains(err.Error(), "MiB") {
			t.Errorf("reading an answer above the limit returned %v; want an error that names the limit in MiB", err)
		}
		c.Close()
		synctest.Wait()
		d.empty(t)
		_ = d.Shutdown()
	})
}

// pipe is one end of a connection whose data can all be read at once.
type pipe struct {
	net.Conn
	bytes.Reader
}

func (p *pipe) Read(b []byte) (int, error) { return p.Reader.Read(b) }
func (*pipe) Close() error                 { return nil }
func (*pipe) RemoteAddr() net.Addr         { return net.TCPAddrFromAddrPort(address(2)) }

// FuzzAdmission sends arbitrary data: memberlist gets either verified messages or short invalid
// messages.
func FuzzAdmission(f *testing.F) {
	d, err := newAdmission(idle{}, &dialer{}, secret.Secret{1}.GossipKey(), func(string, string) {}, func(*stream) bool { return false })
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte{})
	f.Add([]byte("GET / HTTP/1.1\r\n"))
	f.Add([]byte{streamSealed, 0, 0, 0, 3, 1, 2, 3})
	f.Add([]byte{streamSealed, 255, 255, 255, 255, 1})
	f.Add(append([]byte{streamSealed, 0, 0, 1, 0}, make([]byte, 256)...))
	f.Fuzz(func(t *testing.T, data []byte) {
		s := &stream{Conn: &pipe{Reader: *bytes.NewReader(data)}, admission: d, source: address(2).Addr()}
		got, err := io.ReadAll(s)
		if len(got) > 64 || len(got) > 0 && data[0] == streamSealed && len(got) < streamHeader {
			t.Errorf("the input %[1]x reached memberlist as %[2]x, error %[3]v; want no unverified bytes", data, got, err)
		}
		s.Close()
		d.empty(t)
	})
}

// idle is a transport without any traffic.
type idle struct{ memberlist.Transport }

func (idle) StreamCh() <-chan net.Conn { return nil }
