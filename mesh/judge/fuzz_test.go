package judge

import (
	"bytes"
	"io"
	"testing"

	"github.com/hashicorp/go-msgpack/v2/codec"
)

// fuzzed returns a judge that waits for answers of run a.
func fuzzed() *Judge {
	rules := newTown()
	rules.left = []string{"c"}
	j := New(rules)
	j.Sent("a", message(pingMsg, &ping{SeqNo: 1}))
	j.Sent("a", message(indirectPingMsg, &indirectPing{SeqNo: 2}))
	return j
}

func FuzzPacket(f *testing.F) {
	parts := [][]byte{
		message(pingMsg, &ping{SeqNo: 1, Node: "me", SourceNode: "a", SourceAddr: make([]byte, 4), SourcePort: 1}),
		message(indirectPingMsg, &indirectPing{SeqNo: 1, Node: "b", SourceNode: "a", Target: make([]byte, 4)}),
		message(ackMsg, &ack{SeqNo: 1, Payload: []byte("p")}),
		message(nackMsg, &nack{SeqNo: 2}),
		message(suspectMsg, &suspect{1, "b", "c"}),
		message(aliveMsg, new(living("b", 1))),
		message(deadMsg, &dead{1, "b", "a"}),
		message(deadMsg, &dead{1, "c", "c"}),
		append([]byte{byte(userMsg)}, "user"...),
	}
	for _, p := range parts {
		f.Add(p)
	}
	all := join(parts)
	f.Add(all)
	f.Add(withChecksum(all))
	f.Fuzz(func(t *testing.T, packet []byte) {
		other := New(newTown())
		other.Sent("a", packet)
		other.Packet("b", packet)
		j := fuzzed()
		out, ok := j.Packet("a", bytes.Clone(packet))
		if ok != (out != nil) {
			t.Fatalf("got %q and %v, want a packet only if something passed", out, ok)
		}
		if !ok {
			return
		}
		if again, _ := j.Packet("a", bytes.Clone(out)); !bytes.Equal(out, again) {
			t.Fatalf("judged twice: %q, want %q", again, out)
		}
		passed := [][]byte{out}
		if kind(out[0]) == compoundMsg {
			passed = split(out[1:])
			if len(passed) != int(out[1]) {
				t.Fatalf("%d parts of %d can be read, want all", len(passed), out[1])
			}
		}
		for _, msg := range passed {
			readAsMemberlist(t, msg)
		}
	})
}

// readAsMemberlist decodes a message of a packet as memberlist does.
func readAsMemberlist(t *testing.T, msg []byte) {
	t.Helper()
	types := map[kind]any{
		pingMsg: new(ping), indirectPingMsg: new(indirectPing), ackMsg: new(ack), nackMsg: new(nack),
		suspectMsg: new(suspect), aliveMsg: new(alive), deadMsg: new(dead),
	}
	v, ok := types[kind(msg[0])]
	switch {
	case kind(msg[0]) == userMsg:
	case !ok:
		t.Fatalf("a message of type %d passed, want it dropped", msg[0])
	default:
		if err := codec.NewDecoder(bytes.NewReader(msg[1:]), &codec.MsgpackHandle{}).Decode(v); err != nil {
			t.Fatalf("memberlist cannot read %q: %v", msg, err)
		}
	}
}

func FuzzStream(f *testing.F) {
	for _, msg := range [][]byte{
		state(true, "user", node("a", 8, stateAlive), node("b", 1, stateSuspect), node("b", 1, stateLeft), node("b", 1, 9)),
		userMessage(5, "hello"),
		message(pingMsg, &ping{SeqNo: 1, Node: "me", SourceNode: "a"}),
		message(ackMsg, &ack{SeqNo: 1}),
		message(errMsg, &failure{"no\xff"}),
	} {
		f.Add(msg)
	}
	f.Fuzz(func(t *testing.T, msg []byte) {
		j := fuzzed()
		out, err := j.Stream("a", bytes.NewReader(msg), limit)
		if (err == nil) != (out != nil) {
			t.Fatalf("got %q and error %v, want one of them", out, err)
		}
		if err != nil {
			return
		}
		if again, err := j.Stream("a", bytes.NewReader(out), 2*limit); err != nil || !bytes.Equal(out, again) {
			t.Fatalf("judged twice: %q and error %v, want %q", again, err, out)
		}
		readStreamAsMemberlist(t, out)
	})
}

// readStreamAsMemberlist decodes a stream as memberlist does, up to its end.
func readStreamAsMemberlist(t *testing.T, msg []byte) {
	t.Helper()
	r := bytes.NewReader(msg[1:])
	dec := codec.NewDecoder(r, &codec.MsgpackHandle{})
	read := func(v any) {
		t.Helper()
		if err := dec.Decode(v); err != nil {
			t.Fatalf("memberlist cannot read %q: %v", msg, err)
		}
	}
	rest := 0
	switch kind(msg[0]) {
	case pushPullMsg:
		var header pushPullHeader
		read(&header)
		for range header.Nodes {
			read(new(pushNodeState))
		}
		rest = header.UserStateLen
	case userMsg:
		var header userHeader
		read(&header)
		rest = header.UserMsgLen
	case errMsg:
		read(new(failure))
	case pingMsg:
		read(new(ping))
	case ackMsg:
		read(new(ack))
	default:
		t.Fatalf("a message of type %d passed, want it refused", msg[0])
	}
	if got, _ := io.Copy(io.Discard, r); got != int64(rest) {
		t.Fatalf("%d bytes follow in %q, want %d", got, msg, rest)
	}
}
