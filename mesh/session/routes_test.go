package session

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/memberlist"
)

// The first address that answers is used, without a long wait for the addresses before it. All
// other streams are closed.
func TestDialUsesFirstAddressThatAnswers(t *testing.T) {
	type answer struct {
		after time.Duration
		err   bool
		slow  time.Duration // of the handshake, after the connection
	}
	for _, tt := range []struct {
		answers map[string]answer
		found   string // where the stream before was opened; empty: there was none
		want    string
		within  time.Duration
	}{
		{map[string]answer{"a": {0, false, 0}, "b": {0, false, 0}}, "", "a", 0},
		{map[string]answer{"a": {0, true, 0}, "b": {0, false, 0}, "c": {0, false, 0}}, "", "b", 0},
		{map[string]answer{"a": {time.Hour, true, 0}, "b": {0, true, 0}, "c": {0, false, 0}}, "", "c", headStart},
		{map[string]answer{"a": {time.Second, false, 0}, "b": {time.Hour, true, 0}, "c": {time.Hour, true, 0}}, "", "a", time.Second},
		{map[string]answer{"a": {0, false, 0}, "b": {0, false, 0}}, "b", "b", 0},
		{map[string]answer{"a": {0, false, 0}, "b": {time.Hour, true, 0}}, "b", "a", headStart},
		{map[string]answer{"a": {0, true, 0}, "b": {0, true, 0}, "c": {0, true, 0}}, "", "", 0},
		{map[string]answer{"a": {time.Hour, true, 0}, "b": {time.Hour, true, 0}, "c": {time.Hour, true, 0}}, "", "", 3 * time.Second},
		{map[string]answer{"a": {0, false, time.Second}, "b": {0, false, 0}}, "", "a", time.Second}, // the host is busy
		{map[string]answer{"a": {0, true, time.Second}, "b": {0, false, 0}}, "", "b", time.Second},
		{map[string]answer{"a": {0, false, time.Hour}, "b": {0, false, 0}}, "", "b", 1500 * time.Millisecond}, // half of the time
		{map[string]answer{"a": {time.Hour, true, 0}, "b": {0, false, time.Second}, "c": {0, false, 0}}, "", "b", headStart + time.Second},
	} {
		t.Run(fmt.Sprint(tt.answers), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := &routes{others: func(string) []string { return []string{"a", "b", "c"}[:len(tt.answers)] }}
				to := memberlist.Address{Addr: "a", Name: "run"}
				if tt.found != "" {
					w.note(to, place{addr: tt.found}, time.Now())
				}
				var opened []net.Conn
				var opening atomic.Int32
				start := time.Now()
				conn, at, err := dial(w.all(to), 3*time.Second, func(ctx context.Context, addr string, connected func()) (net.Conn, error) {
					opening.Add(1)
					defer opening.Add(-1)
					answer := tt.answers[addr]
					wait := func(d time.Duration) {
						select {
						case <-time.After(d):
						case <-ctx.Done():
							answer.err = true
						}
					}
					wait(answer.after)
					if answer.slow > 0 {
						connected()
						wait(answer.slow)
					}
					if answer.err {
						return nil, errors.New(addr)
					}
					c, far := net.Pipe()
					opened = append(opened, far)
					return named{c, addr}, nil
				})
				if took := time.Since(start); took != tt.within {
					t.Errorf("dialling took %v; want %v", took, tt.within)
				}
				if (err != nil) != (tt.want == "") || err == nil && conn.(named).addr != tt.want {
					t.Errorf("dialling returned %v, error %v; want a connection to %q", conn, err, tt.want)
				}
				if at.addr != tt.want {
					t.Errorf("the address that answered is given as %q; want %q", at.addr, tt.want)
				}
				synctest.Wait()
				if n := opening.Load(); n > 0 {
					t.Errorf("after dialling, %d more addresses are being opened, want none", n)
				}
				time.Sleep(time.Minute)
				if conn != nil {
					conn.Close()
				}
				for _, far := range opened {
					_ = far.SetReadDeadline(time.Now().Add(time.Second))
					if _, err := far.Read(make([]byte, 1)); err == nil || isTimeout(err) {
						t.Errorf("an unused stream was left open: error %v; want it closed", err)
					}
				}
			})
		})
	}
}

func isTimeout(err error) bool {
	e, ok := errors.AsType[net.Error](err)
	return ok && e.Timeout()
}

type named struct {
	net.Conn
	addr string
}
