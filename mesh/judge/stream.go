package judge

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode"
)

// ErrRefused says that a peer's message on a stream was readable, but the peer may not send it.
var ErrRefused = errors.New("the message was refused")

// Stream reads and judges the first message that a run sends on a stream, which is also the only
// one in this direction. It reads at most limit bytes, and allocates memory as they arrive. After a
// user message it waits for the end of the stream, which the sender closes. The caller sets a
// deadline.
func (j *Judge) Stream(sender string, r io.Reader, limit int) ([]byte, error) {
	s := &source{r: r, left: limit}
	if !isName(sender) {
		return nil, fmt.Errorf("judge: stream of a run whose name is empty or too long: %w", ErrRefused)
	}
	first, err := s.take(1)
	if err != nil {
		return nil, fmt.Errorf("judge: stream of %s: no message: %w", sender, err)
	}
	k := kind(first[0])
	out, err := j.streamed(sender, k, s)
	if err == nil && out == nil {
		err = ErrRefused
	}
	if err != nil {
		return nil, fmt.Errorf("judge: stream of %s: message of type %d: %w", sender, k, err)
	}
	return out, nil
}

func (j *Judge) streamed(sender string, k kind, s *source) ([]byte, error) {
	switch k {
	case pushPullMsg:
		return j.pushPull(sender, s)
	case userMsg:
		return user(s)
	case errMsg:
		f, err := decodeFrom[failure](s)
		return message(errMsg, &failure{Error: printable(f.Error)}), err
	case pingMsg, ackMsg:
		object, err := s.object()
		if err != nil {
			return nil, err
		}
		if k == pingMsg {
			return j.ping(sender, object), nil
		}
		return j.ack(sender, object), nil
	}
	return nil, ErrRefused
}

// pushPull leaves out the nodes that the sender may not announce. The user state passes unread.
func (j *Judge) pushPull(sender string, s *source) ([]byte, error) {
	header, err := decodeFrom[pushPullHeader](s)
	if err != nil {
		return nil, err
	}
	if header.Nodes < 0 || header.Nodes > MaxNodes {
		return nil, fmt.Errorf("%d nodes, at most %d are allowed: %w", header.Nodes, MaxNodes, ErrRefused)
	}
	if header.UserStateLen < 0 || header.UserStateLen > min(maxState, len(s.buf)-s.pos+s.left) {
		return nil, fmt.Errorf("user state of %d bytes: %w", header.UserStateLen, errLimit)
	}
	var nodes []byte
	passed := 0
	for i := range header.Nodes {
		n, err := decodeFrom[pushNodeState](s)
		if err != nil {
			return nil, fmt.Errorf("node %d of %d: %w", i+1, header.Nodes, err)
		}
		if j.node(sender, &n) {
			nodes, passed = encode(nodes, &n), passed+1
		}
	}
	header.Nodes = passed
	return s.appendTo(append(message(pushPullMsg, &header), nodes...), header.UserStateLen)
}

// node judges one node of a push/pull, and changes what the sender may only suspect. memberlist
// itself makes a suspicion of a dead node, but takes a node that left for gone.
func (j *Judge) node(sender string, n *pushNodeState) bool {
	if n.State < stateAlive || n.State > stateLeft {
		return false
	}
	a := alive{Incarnation: n.Incarnation, Node: n.Name, Addr: n.Addr, Port: n.Port, Meta: n.Meta, Vsn: n.Vsn}
	if !j.vouched(sender, &a, n.State) {
		return false
	}
	n.Addr = a.Addr
	if n.State == stateLeft && n.Name != sender && !j.rules.Left(n.Name) {
		if n.Name == j.rules.Self() {
			j.rules.Accuse(sender, n.Name, "reported that it left, but it runs")
		}
		n.State = stateDead
	}
	return true
}

// user passes a user message whose header gives its true length.
func user(s *source) ([]byte, error) {
	header, err := decodeFrom[userHeader](s)
	if err != nil {
		return nil, err
	}
	if header.UserMsgLen < 0 || header.UserMsgLen > min(maxState, len(s.buf)-s.pos+s.left) {
		return nil, fmt.Errorf("user message of %d bytes: %w", header.UserMsgLen, errLimit)
	}
	out, err := s.appendTo(message(userMsg, &header), header.UserMsgLen)
	if err != nil {
		return nil, err
	}
	return out, s.ended()
}

// printable makes a peer's text safe to log.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, s[:min(len(s), maxFailure)])
	return strings.ToValidUTF8(s[:min(len(s), maxFailure)], "")
}
