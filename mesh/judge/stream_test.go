package judge

import (
	"bytes"
	"errors"
	"io"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
)

const limit = 1 << 20

func node(name string, incarnation uint32, state int) pushNodeState {
	a := living(name, incarnation)
	return pushNodeState{Name: name, Addr: a.Addr, Port: a.Port, Meta: a.Meta, Incarnation: incarnation, State: state, Vsn: a.Vsn}
}

func state(join bool, user string, nodes ...pushNodeState) []byte {
	out := message(pushPullMsg, &pushPullHeader{Nodes: len(nodes), UserStateLen: len(user), Join: join})
	for _, n := range nodes {
		out = encode(out, &n)
	}
	return append(out, user...)
}

func userMessage(announced int, text string) []byte {
	return append(message(userMsg, &userHeader{announced}), text...)
}

func TestStreams(t *testing.T) {
	cases := []struct {
		name      string
		msg, want []byte // from run a; no want: refused
	}{
		{"push/pull", state(true, "user", node("a", 8, stateAlive), node("b", 1, stateSuspect)), same},
		{"push/pull without nodes", state(false, ""), same},
		{"dead stays dead", state(false, "", node("b", 1, stateDead)), same},
		{"the sender left", state(false, "", node("a", 1, stateLeft)), same},
		{"a run left", state(false, "", node("c", 1, stateLeft)), same},
		{"a run that stays left", state(false, "u", node("b", 1, stateLeft)), state(false, "u", node("b", 1, stateDead))},
		{"we left", state(false, "", node("me", 1, stateLeft)), state(false, "", node("me", 1, stateDead))},
		{
			"bad nodes are left out",
			state(
				true, "user", node("b", 9, stateAlive), node("b", 11, stateDead), node("b", 1, 4), node("b", 1, -1),
				node("", 1, stateAlive), node("c", 1, stateAlive), changed(node("b", 1, stateDead), func(n *pushNodeState) { n.Meta = nil }),
			), state(true, "user", node("c", 1, stateAlive)),
		},
		{"a suspicion may be above old metadata", state(false, "", node("b", 10, stateSuspect)), same},
		{"bytes after it are ignored", append(state(true, "user", node("a", 8, stateAlive)), "more"...), state(true, "user", node("a", 8, stateAlive))},
		{"user state is cut off", state(true, "user")[:len(state(true, "user"))-1], nil},
		{"a node is cut off", state(true, "", node("a", 8, stateAlive))[:60], nil},
		{"too many nodes", message(pushPullMsg, &pushPullHeader{Nodes: MaxNodes + 1}), nil},
		{"negative nodes", message(pushPullMsg, &pushPullHeader{Nodes: -1}), nil},
		{"user state beyond the limit", message(pushPullMsg, &pushPullHeader{UserStateLen: limit}), nil},
		{"negative user state", message(pushPullMsg, &pushPullHeader{UserStateLen: -1}), nil},

		{"user message", userMessage(5, "hello"), same},
		{"empty user message", userMessage(0, ""), same},
		{"user message is cut off", userMessage(6, "hello"), nil},
		{"more follows a user message", userMessage(4, "hello"), nil},
		{"user message beyond the limit", userMessage(limit, ""), nil},
		{"negative user message", userMessage(-1, ""), nil},

		{"ping", message(pingMsg, &ping{Node: "me", SourceNode: "a"}), same},
		{"ping in another's name", message(pingMsg, &ping{Node: "me", SourceNode: "b"}), nil},
		{"ack", message(ackMsg, &ack{SeqNo: 1}), same},
		{"ack of nothing", message(ackMsg, &ack{SeqNo: 2}), nil},
		{"error", message(errMsg, &failure{"no"}), same},
		{"error with control characters", message(errMsg, &failure{"no\n\x1b[2J\xff"}), message(errMsg, &failure{"no??[2J\ufffd"})},
		{"long error", message(errMsg, &failure{strings.Repeat("ä", 300) + "b"}), message(errMsg, &failure{strings.Repeat("ä", 256)})},
		{"alive on a stream", message(aliveMsg, new(living("a", 1))), nil},
		{"compressed", []byte{byte(compressMsg), 0x80}, nil},
		{"encrypted", []byte{byte(encryptMsg), 0, 0, 0, 1, 0}, nil},
		{"label", []byte{244, 1, 'x', byte(pingMsg)}, nil},
		{"nothing", nil, nil},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			rules := newTown()
			rules.left = []string{"c"}
			j := New(rules)
			j.Sent("a", message(pingMsg, &ping{SeqNo: 1, Node: "a"}))
			want := c.want
			if bytes.Equal(want, same) {
				want = c.msg
			}
			for name, r := range map[string]io.Reader{"at once": bytes.NewReader(c.msg), "byte by byte": iotest.OneByteReader(bytes.NewReader(c.msg))} {
				got, err := j.Stream("a", r, limit)
				if !bytes.Equal(got, want) || (err == nil) != (want != nil) {
					t.Errorf("%s: got %q and error %v, want %q", name, got, err, want)
				}
			}
		})
	}
}

func TestStreamAccusesLiars(t *testing.T) {
	rules := newTown()
	forged := changed(node("c", 1, stateAlive), func(n *pushNodeState) { n.Meta = []byte("signed b 8") })
	if _, err := New(rules).Stream("a", bytes.NewReader(state(true, "", node("b", 9, stateAlive), forged)), limit); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff([]string{"a about b", "a about c"}, rules.accused); diff != "" {
		t.Errorf("accused (-want +got):\n%s", diff)
	}
}

// endless announces much and counts what is read.
type endless struct {
	head  []byte
	count int
}

func (e *endless) Read(p []byte) (int, error) {
	n := copy(p, e.head)
	e.head = e.head[n:]
	e.count += len(p)
	return len(p), nil
}

func TestStreamReadsNoMoreThanItsLimit(t *testing.T) {
	for name, head := range map[string][]byte{
		"user state":   message(pushPullMsg, &pushPullHeader{UserStateLen: limit - 100}),
		"user message": message(userMsg, &userHeader{limit - 100}),
	} {
		for _, short := range []int{0, 1, 50, limit / 2, limit - 100, limit} {
			e := &endless{head: head}
			if _, err := New(newTown()).Stream("a", e, short); e.count > short+1 || short < limit-50 && err == nil {
				t.Errorf("%s: with a limit of %d bytes, %d were read, error %v", name, short, e.count, err)
			}
		}
	}
	exact := userMessage(5, "hello")
	if _, err := New(newTown()).Stream("a", bytes.NewReader(exact), len(exact)); err != nil {
		t.Errorf("a message as long as the limit: %v, want it to pass", err)
	}
}

// A push/pull must not wait for the end of the stream: the sender waits for the answer.
func TestPushPullDoesNotWaitForMore(t *testing.T) {
	r, w := io.Pipe()
	defer r.Close()
	go func() { _, _ = w.Write(state(true, "user", node("a", 1, stateAlive))) }()
	if _, err := New(newTown()).Stream("a", r, limit); err != nil {
		t.Error(err)
	}
}

func TestAnnouncedLengthsAllocateNothing(t *testing.T) {
	for name, msg := range map[string][]byte{
		"nodes":       message(pushPullMsg, &pushPullHeader{Nodes: MaxNodes, UserStateLen: 20 << 20}),
		"user":        message(userMsg, &userHeader{20 << 20}),
		"text":        append([]byte{byte(errMsg), 0x81, 0xa5}, "Error\xdb\x00\xff\xff\xff"...),
		"many fields": {byte(errMsg), 0xdf, 0xff, 0xff, 0xff, 0xff},
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		if _, err := New(newTown()).Stream("a", bytes.NewReader(msg), 64<<20); err == nil {
			t.Errorf("%s: no error, want one", name)
		}
		runtime.ReadMemStats(&after)
		if got := after.TotalAlloc - before.TotalAlloc; got > 256<<10 {
			t.Errorf("%s: %d bytes are allocated for a message of %d bytes, want little", name, got, len(msg))
		}
	}
}

func TestStreamErrorsKeepTheirCause(t *testing.T) {
	broken := errors.New("broken")
	if _, err := New(newTown()).Stream("a", iotest.ErrReader(broken), limit); !errors.Is(err, broken) {
		t.Errorf("got %v, want the reader's error", err)
	}
	if _, err := New(newTown()).Stream("a", bytes.NewReader([]byte{byte(aliveMsg)}), limit); !errors.Is(err, ErrRefused) {
		t.Errorf("got %v, want ErrRefused", err)
	}
}
