package soak

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
)

// A seed has the same history in every run, until package ipam uses its own randomness, for
// elections and rival removals.
func TestSeedReplaysTheSameHistory(t *testing.T) {
	if os.Getenv("SEED") != "" || os.Getenv("SOAK") != "" {
		t.Skip("this test does not run if SEED or SOAK is set")
	}
	told := func(seed uint64) (story []string) {
		if err := live(t, seed, func(line string) { story = append(story, line) }); err != nil {
			t.Fatal(err)
		}
		lots := slices.IndexFunc(story, func(line string) bool { return strings.Contains(line, "is told to remove") })
		switch {
		case !strings.Contains(story[0], " 0 voters"):
			return nil
		case lots >= 0:
			story = story[:lots]
		}
		slices.Sort(story) // events at the same instant are logged in any order
		return story
	}
	lines := 0
	for seed := range uint64(10) {
		first, second := told(seed), told(seed)
		if !slices.Equal(first, second) {
			t.Fatalf("seed %d: the first run was\n%s\nwant the same as in the second run:\n%s", seed, strings.Join(first, "\n"), strings.Join(second, "\n"))
		}
		lines += len(first)
	}
	if lines < 30 {
		t.Errorf("%d lines were compared, want at least 30 to prove a replay", lines)
	}
}

// A Failure has the first rule that was broken, and the log until then.
func TestFailureReportsTheFirstBrokenRule(t *testing.T) {
	w := &world{truth: newTruth(), seed: 7}
	w.note("it begins")
	w.broken("slot %d", 5)
	w.broken("another")
	f, ok := errors.AsType[*Failure](w.failed())
	if !ok || f.Seed != 7 || len(f.Log) != 1 || !strings.Contains(f.Error(), "slot 5") {
		t.Errorf("got %v, want seed 7, one line of log, and slot 5", f)
	}
}
