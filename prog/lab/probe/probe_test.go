package probe

import (
	"context"
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestTallyCountsLossAndOrder(t *testing.T) {
	const timeout = 100 * time.Millisecond
	start := time.Unix(0, 0)
	type answer struct {
		seq   uint32
		after time.Duration
	}
	for name, test := range map[string]struct {
		answers []answer
		want    Result
	}{
		"all": {
			[]answer{{0, 1e6}, {1, 2e6}, {2, 3e6}},
			Result{Sent: 3, Received: 3, Min: 1, Avg: 2, P99: 3, Max: 3},
		},
		"none":      {nil, Result{Sent: 3, Lost: 3, LostAt: []float64{0, 7, 14}}},
		"late":      {[]answer{{0, 1e6}, {1, 1e6}, {2, timeout + 1}}, Result{Sent: 3, Received: 2, Lost: 1, LostAt: []float64{14}, Min: 1, Avg: 1, P99: 1, Max: 1}},
		"twice":     {[]answer{{0, 1e6}, {1, 1e6}, {1, 1e6}, {2, 1e6}}, Result{Sent: 3, Received: 3, Duplicates: 1, Min: 1, Avg: 1, P99: 1, Max: 1}},
		"reordered": {[]answer{{0, 1e6}, {2, 1e6}, {1, 1e6}}, Result{Sent: 3, Received: 3, OutOfOrder: 1, Min: 1, Avg: 1, P99: 1, Max: 1}},
		"unasked":   {[]answer{{0, 1e6}, {1, 1e6}, {2, 1e6}, {9, 1e6}}, Result{Sent: 3, Received: 3, Corrupt: 1, Min: 1, Avg: 1, P99: 1, Max: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			tally := newTally("udp", netip.Addr{})
			for seq := range uint32(3) {
				tally.send(seq, start.Add(time.Duration(seq)*7*time.Millisecond))
			}
			for _, a := range test.answers {
				tally.receive(a.seq, start.Add(time.Duration(a.seq)*7*time.Millisecond+a.after), timeout)
			}
			test.want.Proto = "udp"
			got := tally.result()
			if diff := cmp.Diff(test.want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
				t.Errorf("wrong result (-want +got):\n%s", diff)
			}
			if got.OK() != (name == "all") {
				t.Errorf("OK returned %v, want %v", got.OK(), name == "all")
			}
		})
	}
}

// ethernet returns a frame of a type with a body in hexadecimal.
func ethernet(etherType, body string) []byte {
	b, err := hex.DecodeString(strings.Repeat("00", 12) + etherType + strings.ReplaceAll(body, " ", ""))
	if err != nil {
		panic(err)
	}
	return b
}

func TestClassifyNamesProtocols(t *testing.T) {
	v4 := func(proto, body string) []byte {
		return ethernet("0800", "4500 0000 0000 0000 40"+proto+" 0000 c0000201 c0000202"+body)
	}
	v6 := func(next, body string) []byte {
		return ethernet("86dd", "60000000 0000"+next+"40"+strings.Repeat("00", 32)+body)
	}
	for want, frame := range map[string][]byte{
		"arp":                          ethernet("0806", ""),
		"ethertype 0x88cc":             ethernet("88cc", ""),
		"short frame":                  make([]byte, 13),
		"short ipv4":                   ethernet("0800", "4500"),
		"short ipv6":                   ethernet("86dd", "6000"),
		"udp 6784":                     v4("11", "1a80 1a80"),
		"tcp 6783":                     v4("06", "c001 1a7f"),
		"icmp":                         v4("01", "0800"),
		"ip protocol 17":               v4("11", "1a80"), // the packet is truncated before its second port
		"ip protocol 47":               v4("2f", ""),
		"igmp":                         v4("02", ""),
		"ipv4 fragment of protocol 17": ethernet("0800", "4500 0000 0000 0010 4011 0000 c0000201 c0000202 1a80 1a80"),
		"unreachable udp 6783":         v4("01", "0303 0000 0000 0000 4500 0000 0000 0000 4011 0000 c0000202 c0000201 c001 1a7f"),
		"ipv6 fragment of protocol 17": v6("2c", "1100 0008 00000001 1a80 1a80"),
		"udp 7007":                     v6("2c", "1100 0001 00000001 1b5f c000"),
		"redirect udp 6784":            v4("01", "0501 0000 c0000201 4500 0000 0000 0000 4011 0000 c0000202 c0000201 c001 1a80"),
		"unreachable icmpv6":           v6("3a", "0104 0000 0000 0000 60000000 00003a40"+strings.Repeat("00", 32)+"80"),
		"unreachable short ipv4":       v4("01", "0303 0000 0000 0000"),
		"udp 53":                       v6("11", "0035 c000"),
		"nd":                           v6("3a", "87"),
		"icmpv6":                       v6("3a", "80"),
		"mld":                          v6("00", "3a00 0000 0000 0000 8f"),
		"ip protocol 43":               v6("2b", "0000"),
	} {
		k := classify(frame)
		if got := (Row{Kind: k.kind, Port: k.port}).Name(); got != want {
			t.Errorf("frame %x is classified as %q, want %q", frame, got, want)
		}
	}
}

func FuzzClassify(f *testing.F) {
	f.Add(ethernet("0800", "4f00"))
	f.Add(ethernet("86dd", "60"))
	f.Fuzz(func(t *testing.T, frame []byte) {
		if classify(frame).kind == "" {
			t.Error("a frame got an empty name, want a name for every frame")
		}
	})
}

func TestPayloadRepeatsTheMarker(t *testing.T) {
	for _, size := range []int{0, 4, 5, 100} {
		p := payload(7, size, "abc")
		if len(p) != max(size, headerSize) || !intact(p, 7, Config{Size: size, Marker: "abc"}) || intact(p, 8, Config{Size: size, Marker: "abc"}) {
			t.Errorf("payload of size %d is %q, want its size, and intact for its own number only", size, p)
		}
	}
	if got := string(payload(0, 12, "abc")[headerSize:]); got != "abcabcab" {
		t.Errorf("the payload is filled with %q, want abcabcab", got)
	}
}

// On loopback, the server ends while a connection is in use.
func TestBrokenStreamEndsTheProbe(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	ready, ended := make(chan struct{}), make(chan error, 1)
	const port = 17007
	go func() { ended <- Listen(ctx, port, port, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-ended:
		t.Fatal(err)
	}
	cfg := Config{Count: 20, Interval: 10 * time.Millisecond, Timeout: time.Second, Size: 100, Marker: "m", Port: port}
	addr := netip.MustParseAddr("127.0.0.1")
	for name, probe := range map[string]prober{"tcp": TCP, "udp": UDP} {
		if r, err := probe(t.Context(), addr, cfg); err != nil || !r.OK() || r.Received != 20 {
			t.Errorf("%s: got %+v, error %v; want all messages", name, r, err)
		}
		over := make(chan struct{})
		time.AfterFunc(50*time.Millisecond, func() { close(over) })
		endless := cfg
		endless.Count, endless.Until = 1000, over
		if r, err := probe(t.Context(), addr, endless); err != nil || !r.OK() || r.Received < 2 || r.Received > 900 {
			t.Errorf("%s until the channel closes: got %+v, error %v; want some messages, and all of them back", name, r, err)
		}
	}
	cfg.Count = 1000
	time.AfterFunc(100*time.Millisecond, stop)
	if r, err := TCP(t.Context(), addr, cfg); err != nil || r.OK() || r.Error == "" || r.Received == 0 {
		t.Errorf("a broken stream: got %+v, error %v; want an error in the result", r, err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	cfg.Count, cfg.Timeout = 3, 50*time.Millisecond
	if r, err := UDP(t.Context(), addr, cfg); err != nil || r.Lost != 3 || r.Error != "" {
		t.Errorf("a closed port: got %+v, error %v; want three lost messages", r, err)
	}
}
