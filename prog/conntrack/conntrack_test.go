package conntrack

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/mesh/meshtest/eventually"
	"weft/prog/flows"
	"weft/router/link"
	"weft/router/policy"
	"weft/router/routertest"
)

func TestMain(m *testing.M) { routertest.Main(m) }

// track makes the kernel track the connections of a namespace, and count their bytes.
func track(t testing.TB, ns routertest.Namespace) {
	t.Helper()
	ns.Do(func() {
		c := &nftables.Conn{}
		table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "test"})
		chain := c.AddChain(&nftables.Chain{Name: "out", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityFilter})
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{&expr.Ct{Key: expr.CtKeySTATE, Register: 1}}})
		if err := c.Flush(); err != nil {
			t.Fatal(err)
		}
		if err := link.ChangeSysctl("1", link.CountConnections, nil); err != nil {
			t.Fatal(err)
		}
	})
}

func every(flows.Entry) bool { return true }

// collected are the events of a subscription.
type collected struct {
	mu   sync.Mutex
	list []Event
	lost uint64
}

func (c *collected) take(list []Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.list = append(c.list, list...)
}

func (c *collected) lose(n uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lost += n
}

// find returns the first event of a destination.
func (c *collected) find(to netip.AddrPort, ended bool) (e Event, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.list {
		if e.Entry.Original.Dst == to && e.Ended == ended {
			return e, true
		}
	}
	return e, false
}

// subscribe collects events of a namespace until the test ends.
func subscribe(t *testing.T, ns routertest.Namespace, size int, keep func(flows.Entry) bool) *collected {
	t.Helper()
	c := &collected{}
	var events *Events
	ns.Do(func() {
		var err error
		if events, err = openEvents(size); err != nil {
			t.Fatal(err)
		}
	})
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- events.Run(ctx, Sink{Keep: keep, Take: c.take, Lost: c.lose}) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		events.Close()
	})
	return c
}

func send(t *testing.T, ns routertest.Namespace, network, to string, data string) {
	t.Helper()
	ns.Do(func() {
		conn, err := net.Dial(network, to)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := conn.Write([]byte(data)); err != nil {
			t.Fatal(err)
		}
	})
}

// A connection of either family is reported when it begins; its counters can be read, alone and among
// all; and the connection that nobody has is not found.
func TestConnectionsAreReportedAndRead(t *testing.T) {
	ns := routertest.New(t)
	track(t, ns)
	c := subscribe(t, ns, buffer, func(e flows.Entry) bool { return e.Original.Dst.Port() == 9 })
	var table *Table
	ns.Do(func() {
		var err error
		if table, err = OpenTable(); err != nil {
			t.Fatal(err)
		}
	})
	defer table.Close()
	for _, to := range []string{"127.0.0.2:9", "[::1]:9"} {
		send(t, ns, "udp", to, "unwanted")
		send(t, ns, "udp", strings.Replace(to, ":9", ":10", 1), "unwanted")
		dst := netip.MustParseAddrPort(to)
		var e Event
		eventually.True(t, 10*time.Second, "the event of a connection to "+to, func() (ok bool) {
			e, ok = c.find(dst, false)
			return ok
		})
		o := e.Entry.Original
		if o.Protocol != policy.UDP || e.Entry.ReplySrc != dst || e.Entry.ReplyDst != o.Src || o.Src.Port() == 0 || e.Entry.ID == 0 {
			t.Errorf("the event is %+v; want a UDP connection to %s, not translated, with an id", e.Entry, to)
		}
		unknown := o
		unknown.Dst = netip.AddrPortFrom(o.Dst.Addr(), 11)
		found := map[flows.Tuple]flows.Entry{}
		missing := 0
		err := table.Read([]flows.Tuple{unknown, o}, func(asked flows.Tuple, e flows.Entry, ok bool) {
			if !ok {
				missing++
				return
			}
			found[asked] = e
		})
		// a UDP datagram of 8 bytes has 8 bytes of header, and 20 or 40 of IP
		want := uint64(8 + 8 + 20)
		if dst.Addr().Is6() {
			want += 20
		}
		if err != nil || missing != 1 || len(found) != 1 || found[o].Sent != (flows.Count{Packets: 1, Bytes: want}) || found[o].ID != e.Entry.ID {
			t.Errorf("reading two connections, of which one exists: %+v, %d missing, error %v; want one with a packet of %d bytes", found, missing, err, want)
		}
		n := 0
		if err := table.All(t.Context(), every, func(e flows.Entry) {
			if e.Original == o {
				n++
			}
		}); err != nil || n != 1 {
			t.Errorf("the whole table has the connection %d times, error %v; want once", n, err)
		}
	}
	if _, ok := c.find(netip.MustParseAddrPort("127.0.0.2:10"), false); ok {
		t.Error("an event of an unwanted connection was delivered, want none")
	}
}

// The end of a TCP connection is seen in its state long before the kernel forgets it.
func TestAClosedTCPConnectionIsMarked(t *testing.T) {
	ns := routertest.New(t)
	track(t, ns)
	var entries []flows.Entry
	ns.Do(func() {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		table, err := OpenTable()
		if err != nil {
			t.Fatal(err)
		}
		defer table.Close()
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		other, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		look := func() (e flows.Entry) {
			if err := table.All(t.Context(), every, func(one flows.Entry) {
				if one.Original.Protocol == policy.TCP {
					e = one
				}
			}); err != nil {
				t.Fatal(err)
			}
			return e
		}
		entries = append(entries, look())
		conn.Close()
		other.Close()
		eventually.True(t, 10*time.Second, "the connection is closed", func() bool { return look().Closed })
	})
	if entries[0].Closed || entries[0].Original.Dst.Port() == 0 {
		t.Errorf("the open connection is %+v, want one that is not closed", entries[0])
	}
}

// Events that do not fit into the kernel's queue are counted.
func TestLostEventsAreCounted(t *testing.T) {
	ns := routertest.New(t)
	track(t, ns)
	hold := make(chan struct{})
	c := subscribe(t, ns, 1, func(flows.Entry) bool { <-hold; return true }) // the first event stops the reader
	for port := range 400 {
		send(t, ns, "udp", netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(1000+port)).String(), "x")
	}
	close(hold)
	eventually.True(t, 10*time.Second, "all events are read or counted as lost", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.lost > 0 && uint64(len(c.list))+c.lost >= 400
	})
}

// No message makes the parser panic, and what it accepts has valid addresses.
func FuzzMessages(f *testing.F) {
	tuple := flows.Tuple{Src: netip.MustParseAddrPort("10.32.0.1:40000"), Dst: netip.MustParseAddrPort("10.32.0.2:80"), Protocol: policy.TCP}
	six := flows.Tuple{Src: netip.MustParseAddrPort("[fd00::1]:0"), Dst: netip.MustParseAddrPort("[fd00::2]:0"), Protocol: policy.ICMPv6, Type: 128, ID: 7}
	for _, one := range []flows.Tuple{tuple, six} {
		b := request(nil, one, 1)
		reply := nested(nil, attrReply, func(b []byte) []byte { return append(b, request(nil, one, 1)[headers+4:]...) })
		f.Add(append(b, reply...))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		messages(data, func(m message) {
			if e, ok := parse(m.body, every); ok && (!e.Original.Src.IsValid() || !e.Original.Dst.IsValid() || !e.ReplySrc.IsValid() || !e.ReplyDst.IsValid()) {
				t.Errorf("%x was read as %+v, want valid addresses", data, e)
			}
		})
		if len(data) > 4 {
			parse(data, every)
		}
	})
}

// A request has the tuple that it asks for.
func TestARequestHasItsTuple(t *testing.T) {
	for _, want := range []flows.Tuple{
		{Src: netip.MustParseAddrPort("10.32.0.1:40000"), Dst: netip.MustParseAddrPort("10.32.0.2:80"), Protocol: policy.UDP},
		{Src: netip.MustParseAddrPort("10.32.0.1:0"), Dst: netip.MustParseAddrPort("10.32.0.2:0"), Protocol: policy.ICMP, Type: 8, Code: 1, ID: 77},
		{Src: netip.MustParseAddrPort("[fd00::1]:0"), Dst: netip.MustParseAddrPort("[fd00::2]:0"), Protocol: policy.ICMPv6, Type: 128, ID: 7},
	} {
		got := flows.Tuple{}
		messages(request(nil, want, 1), func(m message) {
			attributes(m.body[4:], func(kind uint16, value []byte) {
				if kind == attrOriginal {
					got = parseTuple(value)
				}
			})
		})
		if got != want {
			t.Errorf("the request has the tuple %+v, want %+v", got, want)
		}
	}
}

// The kernel delivers only events of connections with an address in the prefixes, in both families and
// before and after NAT.
func TestTheKernelFiltersEvents(t *testing.T) {
	ns := routertest.New(t)
	track(t, ns)
	ns.Do(func() {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			t.Fatal(err)
		}
		for _, addr := range []string{"fd00:1::5/128", "fd00:2::5/128"} {
			routertest.AddAddr(t, lo, netip.MustParsePrefix(addr))
		}
		translate(t, netip.MustParseAddr("127.3.0.1"), netip.MustParseAddr("127.1.0.9"))
	})
	c := &collected{}
	var events *Events
	ns.Do(func() {
		var err error
		if events, err = Open(); err == nil {
			err = events.Only(netip.MustParsePrefix("127.1.0.0/20"), netip.MustParsePrefix("fd00:1::/40"))
		}
		if err != nil {
			t.Fatal(err)
		}
	})
	defer events.Close()
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- events.Run(ctx, Sink{Keep: every, Take: c.take, Lost: c.lose}) }()
	for _, to := range []string{"127.1.16.1:9", "127.2.0.1:9", "[::1]:9", "[fd00:2::5]:9", "127.1.15.255:9", "127.3.0.1:9", "[fd00:1::5]:9"} {
		send(t, ns, "udp", to, "x")
	}
	eventually.True(t, 10*time.Second, "the event of the last connection", func() bool {
		_, ok := c.find(netip.MustParseAddrPort("[fd00:1::5]:9"), false)
		return ok
	})
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	var got []string
	for _, e := range c.list {
		got = append(got, e.Entry.Original.Dst.String())
	}
	if want := []string{"127.1.15.255:9", "127.3.0.1:9", "[fd00:1::5]:9"}; !slices.Equal(got, want) {
		t.Errorf("events of connections to %v were delivered, want %v", got, want)
	}
}

// translate sends UDP packets to another address of this host.
func translate(t *testing.T, from, to netip.Addr) {
	t.Helper()
	c := &nftables.Conn{}
	table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "nat"})
	chain := c.AddChain(&nftables.Chain{Name: "out", Table: table, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityNATDest})
	c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: from.AsSlice()},
		&expr.Immediate{Register: 1, Data: to.AsSlice()},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1},
	}})
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
}

// A table with 100,000 connections of others is read without keeping them.
func BenchmarkAForeignTable(b *testing.B) {
	ns := routertest.New(b)
	track(b, ns)
	ns.Do(func() {
		conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		defer conn.Close()
		for i := range 100_000 {
			_, _ = conn.WriteTo([]byte("x"), &net.UDPAddr{IP: net.IPv4(127, 0, byte(1+i>>14), byte(1+i>>7&127)), Port: 1000 + i&127}) // refused answers are fine
		}
		table, err := OpenTable()
		if err != nil {
			b.Fatal(err)
		}
		defer table.Close()
		b.ReportAllocs()
		seen := 0
		for b.Loop() {
			seen = 0
			if err := table.All(b.Context(), func(flows.Entry) bool { seen++; return false }, func(flows.Entry) {}); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(seen), "entries")
	})
}
