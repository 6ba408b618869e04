package soak

import (
	"errors"
	"slices"
	"testing"
)

// A seed tells the same story every time.
func TestReplay(t *testing.T) {
	told := func(seed uint64) (story []string) {
		if err := live(t, seed, func(line string) { story = append(story, line) }); err != nil {
			t.Fatal(err)
		}
		return story
	}
	for seed := range uint64(12) {
		first, second := told(seed), told(seed)
		for i := range min(len(first), len(second)) {
			if first[i] != second[i] {
				t.Fatalf("seed %d: first\n%s\nand then\n%s", seed, first[i], second[i])
			}
		}
		if len(first) != len(second) {
			t.Fatalf("seed %d: %d lines, and then %d", seed, len(first), len(second))
		}
	}
}

// A story that breaks a rule ends with it, and says how it came about.
func TestFailure(t *testing.T) {
	w := &world{truth: newTruth(), seed: 7}
	w.note("it begins")
	w.broken("slot %d", 5)
	w.broken("another")
	var f *Failure
	if err := w.failed(); !errors.As(err, &f) || f.Seed != 7 || !slices.ContainsFunc(f.Log, func(s string) bool { return len(s) > 0 }) {
		t.Errorf("got %v", err)
	}
}
