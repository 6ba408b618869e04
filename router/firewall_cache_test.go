package router

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"weft/router/problem"
)

// A scan that took long is not repeated at once, unless the needs have changed.
func TestSlowFirewallScansAreCached(t *testing.T) {
	few, more := []need{{what: "one"}}, []need{{what: "one"}, {what: "two"}}
	for name, c := range map[string]struct {
		takes, pause time.Duration
		next         []need
		want         int // number of scans
	}{
		"fast scan":                          {takes: 50 * time.Millisecond, next: few, want: 2},
		"slow scan":                          {takes: 200 * time.Millisecond, pause: 9 * time.Second, next: few, want: 1},
		"slow scan, after the cache expired": {takes: 200 * time.Millisecond, pause: 11 * time.Second, next: few, want: 2},
		"slow scan, with other needs":        {takes: 200 * time.Millisecond, next: more, want: 2},
		"very slow scan":                     {takes: 7 * time.Second, pause: 59 * time.Second, next: few, want: 1},
		"very slow scan, after the longest cache time": {takes: 7 * time.Second, pause: 61 * time.Second, next: few, want: 2},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var cache firewallCache
				scans := 0
				scan := func(needs []need) ([]problem.Problem, error) {
					time.Sleep(c.takes)
					scans++
					return []problem.Problem{{What: needs[0].what}}, nil
				}
				for i, needs := range [][]need{few, c.next} {
					if i > 0 {
						time.Sleep(c.pause)
					}
					if got, err := cache.get(slices.Clone(needs), scan); err != nil || !slices.Equal(got, []problem.Problem{{What: "one"}}) {
						t.Fatalf("get returned %v, error %v; want the result of the first scan", got, err)
					}
				}
				if scans != c.want {
					t.Errorf("the firewalls were scanned %d times; want %d", scans, c.want)
				}
			})
		})
	}
}
