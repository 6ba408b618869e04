package judge

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/memberlist"
)

// town is a set of rules: our run is "me", the known runs promise incarnations up to 10. Metadata
// reads "signed NAME CEILING".
type town struct {
	known   []string
	left    []string
	excused []string

	mu      sync.Mutex
	accused []string
}

func newTown() *town { return &town{known: []string{"me", "a", "b", "c"}} }

func (t *town) Self() string { return "me" }

func (t *town) Ceiling(run string) (uint32, bool) { return 10, slices.Contains(t.known, run) }

func (t *town) CeilingIn(meta []byte, name string, addr netip.Addr, port uint16) (uint32, error) {
	if string(meta) == "banned" {
		return 0, ErrUnwelcome
	}
	var ceiling uint32
	_, err := fmt.Sscanf(string(meta), "signed "+name+" %d", &ceiling)
	if err == nil && (name == "" || addr != netip.MustParseAddr("192.0.2.1") || port != 6783) {
		err = errors.New("forged")
	}
	return ceiling, err
}

func (t *town) Left(run string) bool { return slices.Contains(t.left, run) }

func (t *town) Told(uint32) {}

func (t *town) Doubted(string)          {}
func (t *town) Excused(run string) bool { return slices.Contains(t.excused, run) }

func (t *town) Accuse(liar, about, what string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.accused = append(t.accused, liar+" about "+about)
}

func vsn() []byte { return []byte{1, 5, 2, 0, 0, 0} }

func living(name string, incarnation uint32) alive {
	return alive{
		Incarnation: incarnation, Node: name, Addr: []byte{192, 0, 2, 1}, Port: 6783,
		Meta: []byte("signed " + name + " 8"), Vsn: vsn(),
	}
}

func changed[T any](v T, change func(*T)) T {
	change(&v)
	return v
}

// same marks cases that pass unchanged.
var same = []byte("same")

func TestMessages(t *testing.T) {
	long := strings.Repeat("x", MaxName+1)
	cases := []struct {
		name    string
		msg     []byte // from run a
		want    []byte // nil: dropped
		accused []string
	}{
		{"ping", message(pingMsg, &ping{SeqNo: 1, Node: "me", SourceNode: "a", SourceAddr: []byte{1, 2, 3, 4}, SourcePort: 5}), same, nil},
		{"ping in another's name", message(pingMsg, &ping{Node: "me", SourceNode: "b"}), nil, nil},
		{"ping without a source", message(pingMsg, &ping{Node: "me"}), nil, nil},
		{"ping of another run", message(pingMsg, &ping{Node: "b", SourceNode: "a"}), nil, nil},
		{"ping of no run", message(pingMsg, &ping{SourceNode: "a"}), nil, nil},
		{"ping with a bad address", message(pingMsg, &ping{Node: "me", SourceNode: "a", SourceAddr: []byte{1}}), nil, nil},

		{"indirect ping", message(indirectPingMsg, &indirectPing{Node: "b", SourceNode: "a", Target: make([]byte, 16), Nack: true}), same, nil},
		{"indirect ping in another's name", message(indirectPingMsg, &indirectPing{Node: "b", SourceNode: "c"}), nil, nil},
		{"indirect ping of an unknown run", message(indirectPingMsg, &indirectPing{Node: "z", SourceNode: "a"}), nil, nil},
		{"indirect ping of us", message(indirectPingMsg, &indirectPing{Node: "me", SourceNode: "a"}), nil, nil},

		{"ack of a ping", message(ackMsg, &ack{SeqNo: 1, Payload: []byte("p")}), same, nil},
		{"ack of an indirect ping", message(ackMsg, &ack{SeqNo: 2}), same, nil},
		{"ack of a ping to another run", message(ackMsg, &ack{SeqNo: 3}), nil, nil},
		{"ack of nothing", message(ackMsg, &ack{SeqNo: 4}), nil, nil},
		{"ack with a long payload", message(ackMsg, &ack{SeqNo: 1, Payload: make([]byte, maxPayload+1)}), nil, nil},
		{"nack of an indirect ping", message(nackMsg, &nack{SeqNo: 2}), same, nil},
		{"nack of a ping", message(nackMsg, &nack{SeqNo: 1}), nil, nil},
		{"nack of nothing", message(nackMsg, &nack{SeqNo: 4}), nil, nil},

		{"suspicion", message(suspectMsg, &suspect{10, "b", "c"}), same, nil},
		{"suspicion of us", message(suspectMsg, &suspect{1, "me", "a"}), same, nil},
		{"suspicion by us", message(suspectMsg, &suspect{1, "b", "me"}), same, nil},
		{"suspicion above the ceiling", message(suspectMsg, &suspect{11, "b", "a"}), nil, nil},
		{"suspicion of an unknown run", message(suspectMsg, &suspect{1, "z", "a"}), nil, nil},
		{"suspicion by an unknown run", message(suspectMsg, &suspect{1, "b", "z"}), nil, nil},
		{"suspicion by a long name", message(suspectMsg, &suspect{1, "b", long}), nil, nil},

		{"verdict", message(deadMsg, &dead{1, "b", "a"}), message(suspectMsg, &suspect{1, "b", "a"}), nil},
		{"verdict of another run", message(deadMsg, &dead{1, "b", "c"}), nil, []string{"a about b"}},
		{"verdict on us", message(deadMsg, &dead{1, "me", "a"}), message(suspectMsg, &suspect{1, "me", "a"}), []string{"a about me"}},
		{"verdict above the ceiling", message(deadMsg, &dead{11, "b", "a"}), nil, []string{"a about b"}},
		{"verdict on an unknown run", message(deadMsg, &dead{1, "z", "a"}), nil, nil},
		{"verdict on a long name", message(deadMsg, &dead{1, long, "a"}), nil, nil},
		{"own farewell", message(deadMsg, &dead{1, "a", "a"}), same, nil},
		{"farewell of a run that left", message(deadMsg, &dead{1, "c", "c"}), same, nil},
		{"farewell of a run that stays", message(deadMsg, &dead{1, "b", "b"}), message(suspectMsg, &suspect{1, "b", "a"}), nil},
		{"our farewell", message(deadMsg, &dead{1, "me", "me"}), message(suspectMsg, &suspect{1, "me", "a"}), []string{"a about me"}},
		{"farewell above the ceiling", message(deadMsg, &dead{11, "a", "a"}), nil, []string{"a about a"}},

		{"alive", message(aliveMsg, new(living("b", 8))), same, nil},
		{"alive, not known before", message(aliveMsg, new(living("z", 8))), same, nil},
		{
			"alive, mapped address", message(aliveMsg, new(changed(living("b", 8), func(a *alive) {
				a.Addr = netip.MustParseAddr("::ffff:192.0.2.1").AsSlice()
			}))), message(aliveMsg, new(living("b", 8))), nil,
		},
		{"alive above the ceiling", message(aliveMsg, new(living("b", 9))), nil, []string{"a about b"}},
		{"alive, unsigned", message(aliveMsg, new(changed(living("b", 8), func(a *alive) { a.Meta = nil }))), nil, []string{"a about b"}},
		{"alive, other address", message(aliveMsg, new(changed(living("b", 8), func(a *alive) { a.Addr[3]++ }))), nil, []string{"a about b"}},
		{"alive, short address", message(aliveMsg, new(changed(living("b", 8), func(a *alive) { a.Addr = a.Addr[:3] }))), nil, nil},
		{"alive, no port", message(aliveMsg, new(changed(living("b", 8), func(a *alive) { a.Port = 0 }))), nil, nil},
		{"alive, long name", message(aliveMsg, new(living(long, 8))), nil, nil},
		{"alive, long metadata", message(aliveMsg, new(changed(living("b", 8), func(a *alive) { a.Meta = make([]byte, maxMeta+1) }))), nil, nil},
		{"alive, short versions", message(aliveMsg, new(changed(living("b", 8), func(a *alive) { a.Vsn = a.Vsn[:5] }))), nil, nil},
		{"alive, versions that split the mesh", message(aliveMsg, new(changed(living("b", 8), func(a *alive) { a.Vsn[0] = 5 }))), nil, nil},

		{"user message", append([]byte{byte(userMsg)}, "anything"...), same, nil},
		{"nothing", nil, nil, nil},
		{"compressed", []byte{byte(compressMsg), 0x80}, nil, nil},
		{"encrypted", []byte{byte(encryptMsg), 0x80}, nil, nil},
		{"label", []byte{244, 1, 'x', byte(pingMsg)}, nil, nil},
		{"push/pull in a packet", message(pushPullMsg, &pushPullHeader{}), nil, nil},
		{"error in a packet", message(errMsg, &failure{}), nil, nil},
		{"checksum in a message", withChecksum(withChecksum(message(aliveMsg, new(living("b", 8))))), nil, nil},
		{"truncated", message(aliveMsg, new(living("b", 8)))[:40], nil, nil},
		{"text for a number", append([]byte{byte(suspectMsg), 0x81, 0xab}, "Incarnation\xa1x"...), nil, nil},
		{"negative number", append([]byte{byte(suspectMsg), 0x81, 0xab}, "Incarnation\xff"...), nil, nil},
		{"nested", append([]byte{byte(suspectMsg), 0x81, 0xa4}, "Node\x91\x01"...), nil, nil},
		{"4 GiB announced", append([]byte{byte(suspectMsg), 0x81, 0xa4}, "Node\xdb\xff\xff\xff\xff"...), nil, nil},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			rules := newTown()
			rules.left = []string{"c"}
			j := New(rules)
			j.Sent("a", message(pingMsg, &ping{SeqNo: 1, Node: "a"}))
			j.Sent("a", withChecksum(join([][]byte{message(suspectMsg, &suspect{}), message(indirectPingMsg, &indirectPing{SeqNo: 2, Node: "b"})})))
			j.Sent("b", message(pingMsg, &ping{SeqNo: 3, Node: "b"}))
			want := c.want
			if bytes.Equal(want, same) {
				want = c.msg
			}
			got, ok := j.Packet("a", bytes.Clone(c.msg))
			if !bytes.Equal(got, want) || ok != (want != nil) {
				t.Errorf("%q passed as %q, want %q", c.msg, got, want)
			}
			if diff := cmp.Diff(c.accused, rules.accused); diff != "" {
				t.Errorf("accused (-want +got):\n%s", diff)
			}
		})
	}
}

func withChecksum(packet []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{byte(crcMsg)}, crc32.ChecksumIEEE(packet)), packet...)
}

func TestPackets(t *testing.T) {
	hello := append([]byte{byte(userMsg)}, "hello"...)
	good, bad := message(suspectMsg, &suspect{1, "b", "c"}), message(suspectMsg, &suspect{11, "b", "c"})
	damaged := withChecksum(good)
	damaged[3]++
	cases := []struct {
		name         string
		packet, want []byte
	}{
		{"checksum", withChecksum(good), good},
		{"wrong checksum", damaged, nil},
		{"short checksum", []byte{byte(crcMsg), 0, 0}, nil},
		{"parts are judged alone", join([][]byte{good, bad, hello}), join([][]byte{good, hello})},
		{"one part remains", withChecksum(join([][]byte{bad, good})), good},
		{"no part remains", join([][]byte{bad, bad}), nil},
		{"compound in a compound", join([][]byte{join([][]byte{good, hello}), hello}), hello},
		{"checksum in a compound", join([][]byte{withChecksum(good), hello}), hello},
		{"the last part is cut off", join([][]byte{good, hello})[:8+len(good)], good},
		{"lengths are cut off", []byte{byte(compoundMsg), 3, 0, 0}, nil},
		{"no count", []byte{byte(compoundMsg)}, nil},
		{"empty part", []byte{byte(compoundMsg), 1, 0, 0}, nil},
		{"too long", append([]byte{byte(userMsg)}, make([]byte, MaxPacket)...), nil},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if got, ok := New(newTown()).Packet("a", c.packet); !bytes.Equal(got, c.want) || ok != (c.want != nil) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
	for _, sender := range []string{"", strings.Repeat("x", MaxName+1)} {
		if got, ok := New(newTown()).Packet(sender, hello); ok {
			t.Errorf("a sender with a name of %d bytes said %q, want nothing", len(sender), got)
		}
	}
}

// An unknown sender's verdict does not become a suspicion: memberlist counts who suspects.
func TestUnknownSenderSuspectsNobody(t *testing.T) {
	if got, ok := New(newTown()).Packet("z", message(deadMsg, &dead{1, "b", "z"})); ok {
		t.Errorf("got %q, want nothing", got)
	}
}

func TestVerdictsOnLivingRunsAreAccusedOnce(t *testing.T) {
	rules := newTown()
	j := New(rules)
	expect := func(when string, want ...string) {
		t.Helper()
		if diff := cmp.Diff(want, rules.accused); diff != "" {
			t.Errorf("%s: accused (-want +got):\n%s", when, diff)
		}
		rules.accused = nil
	}
	declare := func(sender string, incarnation uint32) {
		j.Packet(sender, message(deadMsg, &dead{incarnation, "b", sender}))
	}
	declare("a", 1)
	declare("a", 1)
	declare("c", 1)
	expect("before b answers")
	j.Alive("c")
	expect("when c answers")
	j.Alive("b")
	expect("when b answers", "a about b", "c about b")
	declare("a", 1)
	j.Alive("b")
	expect("after a repeats its verdict")
	declare("a", 2)
	j.Alive("b")
	expect("after a new verdict", "a about b")

	rules.left = []string{"b"}
	declare("a", 3)
	j.Alive("b")
	expect("after a verdict on a run that left")

	rules.left, rules.excused = nil, []string{"a", "b"}
	declare("a", 4)
	j.Packet("a", message(deadMsg, &dead{4, "me", "a"}))
	j.Alive("b")
	expect("after verdicts while others suspect runs too")

	rules.excused = nil
	for range 2 {
		j.Packet("a", message(deadMsg, &dead{5, "me", "a"}))
	}
	expect("after two verdicts on us", "a about me")
}

func TestMemoryIsBounded(t *testing.T) {
	j := New(newTown())
	for i := range uint32(questions + 10) {
		j.Sent("a", message(pingMsg, &ping{SeqNo: i}))
		j.Sent("a", message(pingMsg, &ping{SeqNo: i}))
	}
	for seq, want := range map[uint32]way{0: 0, 9: 0, 10: direct, questions + 9: direct} {
		if got := j.answers("a", seq); got != want {
			t.Errorf("ping %d is remembered as %d, want %d", seq, got, want)
		}
	}
	d := newDeclared()
	for i := range verdicts + 10 {
		d.add(verdict{"a", fmt.Sprint(i)}, 1)
	}
	if len(j.asked.ways) != questions || len(j.asked.ring) != questions || len(d.at) != verdicts || len(d.open) != verdicts || len(d.ring) != verdicts {
		t.Errorf("%d pings and %d verdicts are remembered, want %d and %d", len(j.asked.ways), len(d.at), questions, verdicts)
	}
	if got := d.settle("9"); got != nil {
		t.Errorf("the oldest verdict is still remembered: %v, want none", got)
	}
	if got := d.settle("10"); len(got) != 1 {
		t.Errorf("a newer verdict is remembered as %v, want one sender", got)
	}
}

// The judge must not depend on a buffer that the transport uses again.
func TestDecodedValuesAreCopies(t *testing.T) {
	data := encode(nil, new(living("b", 8)))
	a, err := decode[alive](data)
	clear(data)
	if diff := cmp.Diff(living("b", 8), a); diff != "" || err != nil {
		t.Errorf("after the buffer changed: %v (-want +got):\n%s", err, diff)
	}
}

func TestConstantsAreThoseOfMemberlist(t *testing.T) {
	conf := memberlist.DefaultLANConfig()
	if got := conf.BuildVsnArray(); !speaks(got) || !bytes.Equal(got, vsn()) {
		t.Errorf("memberlist speaks %v, want versions that the judge accepts, and %v", got, vsn())
	}
	got := []memberlist.NodeStateType{stateAlive, stateSuspect, stateDead, stateLeft, maxMeta}
	want := []memberlist.NodeStateType{memberlist.StateAlive, memberlist.StateSuspect, memberlist.StateDead, memberlist.StateLeft, memberlist.MetaMaxSize}
	if !slices.Equal(got, want) {
		t.Errorf("states and size of metadata: %v, want %v", got, want)
	}
}
