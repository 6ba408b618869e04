package eventually

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// recorder is a test that may fail without failing the test that runs it.
type recorder struct {
	testing.TB
	failure string
}

func (r *recorder) Helper() {}

func (r *recorder) Fatalf(format string, args ...any) {
	r.failure = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

// run calls wait with a recorder, and returns the failure; "" if there was none.
func run(wait func(testing.TB)) string {
	r := &recorder{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		wait(r)
	}()
	<-done
	return r.failure
}

func TestConditionIsCheckedUntilItHolds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		var took time.Duration
		failure := run(func(tb testing.TB) {
			took = True(tb, time.Minute, "30 seconds pass", func() bool { return time.Since(start) >= 30*time.Second })
		})
		if failure != "" || took < 30*time.Second || took > 30*time.Second+lastPause {
			t.Errorf("True took %v with the failure %q; want no failure, right after 30 s", took, failure)
		}
	})
}

// A condition that becomes true only at the deadline is still noticed.
func TestLastCheckIsAtTheDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, within := range []time.Duration{0, time.Nanosecond, 333 * time.Millisecond} {
			start := time.Now()
			if failure := run(func(tb testing.TB) {
				True(tb, within, "it is time", func() bool { return time.Since(start) >= within })
			}); failure != "" {
				t.Errorf("within %v: got the failure %s, want none", within, failure)
			}
		}
	})
}

func TestFailedWaitReportsTheLastError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start, n := time.Now(), 0
		failure := run(func(tb testing.TB) {
			Nil(tb, time.Second, "the host answers", func() error { n++; return fmt.Errorf("error %d", n) })
		})
		if want := fmt.Sprintf("not within 1s: the host answers: error %d", n); failure != want || time.Since(start) != time.Second {
			t.Errorf("the failure after %v is %q; want %q after 1 s", time.Since(start), failure, want)
		}
		if failure := run(func(tb testing.TB) { True(tb, 0, "it is there", func() bool { return false }) }); !strings.Contains(failure, "it is there") {
			t.Errorf("the failure is %q; want one that names the condition", failure)
		}
		if failure := run(func(tb testing.TB) { Nil(tb, 0, "", func() error { return errors.ErrUnsupported }) }); !strings.Contains(failure, "unsupported") {
			t.Errorf("the failure is %q; want one with the last error", failure)
		}
	})
}
