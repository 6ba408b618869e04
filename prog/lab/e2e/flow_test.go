package e2e

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"io"
	"net"
	"os"
	"os/signal"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft/prog/lab"
)

// stream says what became of a flow to one address.
type stream struct {
	Addr           string
	Sent, Received int
	Gaps           []gap  // times of more than gapLeast without an answer
	Error          string // what ended a TCP connection
}

// gap is a time without answers.
type gap struct {
	At  time.Time
	For time.Duration
}

const gapLeast = 300 * time.Millisecond

// longest returns the longest gap that began after a time.
func (s stream) longest(since time.Time) (most time.Duration) {
	for _, g := range s.Gaps {
		if g.At.Add(g.For).After(since) {
			most = max(most, g.For)
		}
	}
	return most
}

// flowing is the tool that sends numbered messages to weft probe listen every 20 ms, to all addresses, until it is
// interrupted. Then it prints streams: KIND ADDRESS…
func flowing(args []string) error {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, unix.SIGINT, unix.SIGTERM)
	done := make(chan struct{})
	out := make([]stream, len(args)-1)
	var group sync.WaitGroup
	for i, addr := range args[1:] {
		c, err := net.DialTimeout(args[0], net.JoinHostPort(addr, "7007"), 5*time.Second)
		if err != nil {
			return err
		}
		if args[0] == "tcp" { // ask for echoes
			if _, err := c.Write([]byte{'E'}); err != nil {
				return err
			}
		}
		out[i].Addr = addr
		group.Go(func() { out[i].run(c, args[0] == "tcp", done) })
	}
	_, _ = io.WriteString(os.Stderr, "flowing\n")
	<-stop
	close(done)
	group.Wait()
	return json.NewEncoder(os.Stdout).Encode(out)
}

// run sends and receives until done.
func (s *stream) run(c net.Conn, reliable bool, done <-chan struct{}) {
	const size = 100
	var sending sync.WaitGroup
	failed := make(chan error, 2)
	sending.Go(func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for message := bytes.Repeat([]byte(marker), size)[:size]; ; {
			select {
			case <-done:
				_ = c.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
				return
			case <-tick.C:
			}
			binary.BigEndian.PutUint32(message, uint32(s.Sent))
			if _, err := c.Write(message); err != nil && reliable {
				failed <- err
				return
			}
			s.Sent++
		}
	})
	last := time.Now()
	note := func(now time.Time) {
		if d := now.Sub(last); d > gapLeast {
			s.Gaps = append(s.Gaps, gap{last, d})
		}
		last = now
	}
	for buf := make([]byte, size); ; {
		_, err := io.ReadFull(c, buf)
		if err == nil {
			note(time.Now())
			s.Received++
			continue
		}
		select {
		case <-done:
			note(time.Now())
			sending.Wait()
			return
		default:
		}
		if reliable {
			s.Error = err.Error()
			sending.Wait()
			return
		}
	}
}

// flows is a running flow between containers.
type flows struct {
	p *lab.Process
}

// startFlow starts a flow from one container to another, which listens, in all families.
func startFlow(t *testing.T, l *lab.Lab, kind, from, to string) flows {
	t.Helper()
	p, err := l.Background(t.Context(), from, "flowing", toolArgs(t, "flow", append([]string{kind}, addrs(t, l, to)...)...)...)
	if err != nil {
		t.Fatal(err)
	}
	return flows{p}
}

// stop ends a flow. TCP connections must have survived.
func (f flows) stop(t *testing.T) (out []stream) {
	t.Helper()
	f.p.Signal(unix.SIGINT)
	text, err := f.p.Wait()
	if err == nil {
		err = json.NewDecoder(strings.NewReader(text)).Decode(&out)
	}
	if err != nil {
		t.Fatalf("the flow ended with an error: %v\n%s", err, text)
	}
	for _, s := range out {
		if s.Error != "" {
			t.Errorf("the connection to %s ended: %s; want that it survives", s.Addr, s.Error)
		}
		t.Logf("the flow to %s: %d of %d packets came back; gaps %v", s.Addr, s.Received, s.Sent, s.Gaps)
	}
	return out
}
