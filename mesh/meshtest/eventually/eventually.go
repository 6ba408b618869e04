// Package eventually waits in tests until something can be observed, instead of for a fixed time. It
// works in real time, and in virtual time inside a bubble of testing/synctest. It keeps no state.
package eventually

import (
	"errors"
	"testing"
	"time"
)

// The time between two checks doubles from firstPause to lastPause. So a condition that soon
// becomes true is soon noticed. A check that costs much, like a command on a host, does not run too
// often.
const (
	firstPause = 2 * time.Millisecond
	lastPause  = 100 * time.Millisecond
)

var errNotYet = errors.New("the condition does not hold")

// True waits until ok returns true, and returns how long that took. If it takes longer than within,
// the test fails. The last check is at that time, not before it.
func True(t testing.TB, within time.Duration, what string, ok func() bool) time.Duration {
	t.Helper()
	return Nil(t, within, what, func() error {
		if ok() {
			return nil
		}
		return errNotYet
	})
}

// Nil waits until check returns no error, and returns how long that took. If it takes longer than
// within, the test fails with the last error. The last check is at that time, not before it.
func Nil(t testing.TB, within time.Duration, what string, check func() error) time.Duration {
	t.Helper()
	start := time.Now()
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		err := check()
		took := time.Since(start)
		if err == nil {
			return took
		}
		if took >= within {
			t.Fatalf("not within %v: %s: %v", within, what, err)
		}
		time.Sleep(min(pause, within-took))
	}
}
