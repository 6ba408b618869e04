package session

import (
	"errors"
	"fmt"
	"net"
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
	}
	for _, tt := range []struct {
		answers map[string]answer
		found   string // where the stream before was opened; empty: there was none
		want    string
		within  time.Duration
	}{
		{map[string]answer{"a": {0, false}, "b": {0, false}}, "", "a", 0},
		{map[string]answer{"a": {0, true}, "b": {0, false}, "c": {0, false}}, "", "b", 0},
		{map[string]answer{"a": {time.Hour, true}, "b": {0, true}, "c": {0, false}}, "", "c", headStart},
		{map[string]answer{"a": {time.Second, false}, "b": {time.Hour, true}, "c": {time.Hour, true}}, "", "a", time.Second},
		{map[string]answer{"a": {0, false}, "b": {0, false}}, "b", "b", 0},
		{map[string]answer{"a": {0, false}, "b": {time.Hour, true}}, "b", "a", headStart},
		{map[string]answer{"a": {0, true}, "b": {0, true}, "c": {0, true}}, "", "", 0},
		{map[string]answer{"a": {time.Hour, true}, "b": {time.Hour, true}, "c": {time.Hour, true}}, "", "", 3 * time.Second},
	} {
		t.Run(fmt.Sprint(tt.answers), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := &routes{others: func(string) []string { return []string{"a", "b", "c"}[:len(tt.answers)] }}
				to := memberlist.Address{Addr: "a", Name: "run"}
				if tt.found != "" {
					w.note(to, place{addr: tt.found}, time.Now())
				}
				var opened []net.Conn
				start := time.Now()
				conn, at, err := dial(w.all(to), 3*time.Second, func(addr string, timeout time.Duration) (net.Conn, error) {
					time.Sleep(min(tt.answers[addr].after, timeout))
					if tt.answers[addr].err {
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
