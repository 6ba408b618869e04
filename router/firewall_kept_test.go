package router

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// A look that takes long is not repeated at once, unless what is needed changed.
func TestFirewallsAreNotReadAgainAtOnceWhereThatTakesLong(t *testing.T) {
	few, more := []need{{what: "one"}}, []need{{what: "one"}, {what: "two"}}
	for name, c := range map[string]struct {
		takes, pause time.Duration
		next         []need
		want         int // looks
	}{
		"quick":                     {takes: 50 * time.Millisecond, next: few, want: 2},
		"slow":                      {takes: 200 * time.Millisecond, pause: 9 * time.Second, next: few, want: 1},
		"slow, a while later":       {takes: 200 * time.Millisecond, pause: 11 * time.Second, next: few, want: 2},
		"slow, and more is needed":  {takes: 200 * time.Millisecond, next: more, want: 2},
		"very slow":                 {takes: 7 * time.Second, pause: 59 * time.Second, next: few, want: 1},
		"very slow, a minute later": {takes: 7 * time.Second, pause: 61 * time.Second, next: few, want: 2},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var k kept
				looks := 0
				look := func(needs []need) ([]string, error) {
					time.Sleep(c.takes)
					looks++
					return []string{needs[0].what}, nil
				}
				for i, needs := range [][]need{few, c.next} {
					if i > 0 {
						time.Sleep(c.pause)
					}
					if got, err := k.ask(slices.Clone(needs), look); err != nil || !slices.Equal(got, []string{"one"}) {
						t.Fatal(got, err)
					}
				}
				if looks != c.want {
					t.Errorf("%d looks; want %d", looks, c.want)
				}
			})
		})
	}
}
