package e2e

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"net/rpc"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/prog/api"
)

// Pod is a program in a container or on a host. It serves ports, connects to others, keeps flows
// going, and reports everything to the test over a unix socket (net/rpc). One such process replaces
// thousands of processes of ordinary tools.
type Pod struct {
	mu    sync.Mutex
	heard map[Heard]int
	flows map[string]*flow
	flood chan Datagrams
}

// Heard identifies received data by protocol, port and sender. Tests count datagrams, and bytes of streams.
type Heard struct {
	Network string
	Port    uint16
	From    netip.Addr
}

// Nothing is the argument of calls without arguments, and the result of calls without a result.
type Nothing struct{}

// streamPort answers one datagram with a stream of datagrams, without further requests.
const streamPort = 90

// pod serves on ports of both protocols: SOCKET PORT…
func pod(args []string) error {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	p := &Pod{heard: map[Heard]int{}, flows: map[string]*flow{}}
	served := map[uint16]bool{}
	for _, word := range args[1:] {
		port, err := strconv.Atoi(word)
		if err != nil {
			return err
		}
		stream, err := net.ListenTCP("tcp", &net.TCPAddr{Port: port})
		if err != nil {
			return err
		}
		datagrams, err := net.ListenUDP("udp", &net.UDPAddr{Port: port})
		if err != nil {
			return err
		}
		go p.serveTCP(stream, uint16(port))
		go p.serveUDP(ctx, datagrams, uint16(port))
		served[uint16(port)] = true
	}
	if err := p.startSCTP(served); err != nil {
		return err
	}
	l, err := net.Listen("unix", args[0])
	if err != nil {
		return err
	}
	server := rpc.NewServer()
	if err := server.Register(p); err != nil {
		return err
	}
	go server.Accept(l)
	fmt.Fprintln(os.Stderr, "serving")
	<-ctx.Done()
	return nil
}

func (p *Pod) hear(network string, port uint16, from net.Addr, n int) {
	addr, err := netip.ParseAddrPort(from.String())
	if err != nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.heard[Heard{network, port, addr.Addr().Unmap().WithZone("")}] += n
}

func (p *Pod) serveTCP(l *net.TCPListener, port uint16) {
	for {
		c, err := l.AcceptTCP()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			p.hear("tcp", port, c.RemoteAddr(), 1) // an accepted connection counts as received data
			buf := make([]byte, 1<<16)
			for {
				n, err := c.Read(buf)
				if err != nil {
					return
				}
				p.hear("tcp", port, c.RemoteAddr(), n)
				if _, err := c.Write(buf[:n]); err != nil {
					return
				}
			}
		}()
	}
}

func (p *Pod) serveUDP(ctx context.Context, c *net.UDPConn, port uint16) {
	buf := make([]byte, 1<<16)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			continue
		}
		p.hear("udp", port, from, 1)
		_, _ = c.WriteTo(buf[:n], from)
		if port == streamPort {
			go func() { // the goroutine ends with the process
				for i := uint64(1); ctx.Err() == nil; i++ {
					_, _ = c.WriteTo(binary.BigEndian.AppendUint64(nil, i), from)
					time.Sleep(beat)
				}
			}()
		}
	}
}

// Heard returns all received data since the start.
func (p *Pod) Heard(_ Nothing, out *map[Heard]int) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	*out = map[Heard]int{}
	maps.Copy(*out, p.heard)
	return nil
}

// Try is one connection attempt.
type Try struct {
	Network  string
	To       netip.AddrPort
	Patience time.Duration
}

// Reach makes all attempts at once, and reports which got an answer.
func (p *Pod) Reach(tries []Try, reached *[]bool) error {
	*reached = make([]bool, len(tries))
	var group sync.WaitGroup
	for i, t := range tries {
		group.Go(func() { (*reached)[i] = t.reach() })
	}
	group.Wait()
	return nil
}

func (t Try) reach() bool {
	if t.Network == "sctp" {
		return t.reachSCTP()
	}
	end := time.Now().Add(t.Patience)
	var d net.Dialer
	ctx, cancel := context.WithDeadline(context.Background(), end)
	defer cancel()
	for time.Now().Before(end) {
		c, err := d.DialContext(ctx, t.Network, t.To.String())
		if err != nil {
			time.Sleep(20 * time.Millisecond) // the connection was refused, or there is no route yet: try again
			continue
		}
		if ok := t.ask(c, end); ok {
			return true
		}
	}
	return false
}

// ask waits for an answer on a connection. A datagram may need several attempts.
func (t Try) ask(c net.Conn, end time.Time) bool {
	defer c.Close()
	wait := 200 * time.Millisecond
	if t.Network == "tcp" {
		wait = time.Until(end)
	}
	for buf := make([]byte, 8); time.Now().Before(end); {
		if _, err := c.Write([]byte("ask")); err != nil {
			return false
		}
		_ = c.SetReadDeadline(time.Now().Add(min(wait, time.Until(end))))
		_, err := c.Read(buf)
		if err == nil {
			return true
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return false // the peer refused the connection
		}
	}
	return false
}

// beat is the time between two messages of a flow.
const beat = 10 * time.Millisecond

// Flow is a sequence of numbered messages that the other side answers, until it is stopped.
type Flow struct {
	Name    string
	Network string // tcp or udp
	To      netip.AddrPort
	Once    bool // send one request, then only listen
}

// Count has the counters of a flow.
type Count struct {
	Sent, Received int
	Missing        []uint64      // numbers of the missing answers; complete only after Stop
	Pause          time.Duration // the longest pause between two answers, or since the last
	Local          uint16        // local port
	Err            string
}

type flow struct {
	Flow
	conn net.Conn
	stop chan struct{}
	mu   sync.Mutex
	Count
	sending, receiving sync.WaitGroup
	seen               map[uint64]bool
	last               time.Time
}

// Start starts to send the messages of a flow.
func (p *Pod) Start(f Flow, _ *Nothing) error {
	c, err := net.DialTimeout(f.Network, f.To.String(), 10*time.Second)
	if err != nil {
		return err
	}
	local, err := netip.ParseAddrPort(c.LocalAddr().String())
	if err != nil {
		return err
	}
	one := &flow{Flow: f, conn: c, stop: make(chan struct{}), seen: map[uint64]bool{}, last: time.Now(), Count: Count{Local: local.Port()}}
	one.sending.Go(one.send)
	one.receiving.Go(one.receive)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.flows[f.Name] = one
	return nil
}

func (f *flow) send() {
	for n := uint64(1); ; n++ {
		f.mu.Lock()
		f.Sent++
		f.mu.Unlock()
		_, err := f.conn.Write(binary.BigEndian.AppendUint64(nil, n))
		if err != nil && f.Network == "tcp" {
			f.mu.Lock()
			f.Err = err.Error()
			f.mu.Unlock()
			return
		}
		if f.Once {
			return
		}
		select {
		case <-f.stop:
			return
		case <-time.After(beat):
		}
	}
}

func (f *flow) receive() {
	buf := make([]byte, 8)
	for {
		_, err := io.ReadFull(f.conn, buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		f.mu.Lock()
		if err == nil {
			f.seen[binary.BigEndian.Uint64(buf)] = true
			now := time.Now()
			f.Received, f.Pause, f.last = len(f.seen), max(f.Pause, now.Sub(f.last)), now
		} else if f.Network == "tcp" {
			f.Err = err.Error()
		}
		f.mu.Unlock()
		if err != nil && f.Network == "tcp" {
			return
		}
	}
}

// Count returns the current result of a flow.
func (p *Pod) Count(name string, out *Count) error {
	p.mu.Lock()
	f := p.flows[name]
	p.mu.Unlock()
	if f == nil {
		return fmt.Errorf("no flow %s", name)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	*out = f.Count
	out.Pause = max(out.Pause, time.Since(f.last))
	return nil
}

// Stop stops sending, and waits a limited time for answers in flight.
func (p *Pod) Stop(name string, out *Count) error {
	p.mu.Lock()
	f := p.flows[name]
	delete(p.flows, name)
	p.mu.Unlock()
	if f == nil {
		return fmt.Errorf("no flow %s", name)
	}
	close(f.stop)
	f.sending.Wait() // the goroutine may still be sending a message
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(beat) {
		f.mu.Lock()
		whole := f.Received >= f.Sent || f.Err != ""
		f.mu.Unlock()
		if whole {
			break
		}
	}
	f.conn.Close()
	f.receiving.Wait()
	if len(f.seen) > 0 {
		numbers := slices.Sorted(maps.Keys(f.seen))
		for n := numbers[0]; n < numbers[len(numbers)-1]; n++ {
			if !f.seen[n] {
				f.Missing = append(f.Missing, n)
			}
		}
	}
	*out = f.Count
	return nil
}

// Datagrams describes datagrams that Flood sends to several targets, one after the other.
type Datagrams struct {
	Targets   []netip.AddrPort
	PerSecond int
}

// Flood sends datagrams until the process ends. Another call changes the targets. It ignores errors,
// since there may be no interface yet.
func (p *Pod) Flood(b Datagrams, _ *Nothing) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.flood == nil {
		c, err := net.ListenUDP("udp", nil)
		if err != nil {
			return err
		}
		p.flood = make(chan Datagrams)
		go flood(c, p.flood)
	}
	p.flood <- b
	return nil
}

func flood(c *net.UDPConn, changes <-chan Datagrams) {
	const tick = 5 * time.Millisecond
	b := <-changes
	for next := 0; ; time.Sleep(tick) {
		select {
		case b = <-changes:
		default:
		}
		for range min(len(b.Targets), max(1, b.PerSecond/int(time.Second/tick))) {
			_, _ = c.WriteToUDPAddrPort([]byte("forbidden?"), b.Targets[next%len(b.Targets)])
			next++
		}
	}
}

// Answered reports whether a name server answers over UDP (the first value) and over TCP (the second).
func (p *Pod) Answered(server string, yes *[]bool) error {
	*yes = make([]bool, 2)
	var group sync.WaitGroup
	for i, network := range []string{"udp", "tcp"} {
		group.Go(func() {
			c := dns.Client{Net: network, Timeout: time.Second}
			m := new(dns.Msg)
			m.SetQuestion("weft.internal.", dns.TypeSOA)
			_, _, err := c.Exchange(m, net.JoinHostPort(server, "53"))
			(*yes)[i] = err == nil
		})
	}
	group.Wait()
	return nil
}

// Explain asks this host's agent to explain many connections.
func (p *Pod) Explain(asked []api.ExplainRequest, out *[]api.Explanation) error {
	client := api.NewClient(api.DefaultSocket)
	*out = make([]api.Explanation, len(asked))
	errs := make([]error, len(asked))
	var group sync.WaitGroup
	slots := make(chan struct{}, 8)
	for i, a := range asked {
		group.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			(*out)[i], errs[i] = client.Explain(context.Background(), a)
		})
	}
	group.Wait()
	return errors.Join(errs...)
}

// Tracked reports whether conntrack has a connection between two ports.
func (p *Pod) Tracked(ports [2]uint16, yes *bool) error {
	for _, family := range []netlink.InetFamily{syscall.AF_INET, syscall.AF_INET6} {
		flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, family)
		if err != nil {
			return err
		}
		for _, f := range flows {
			*yes = *yes || f.Forward.SrcPort == ports[0] && f.Forward.DstPort == ports[1]
		}
	}
	return nil
}
