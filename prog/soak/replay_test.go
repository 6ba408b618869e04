package soak

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
)

// A seed tells the same story every time, up to where package ipam draws lots of its own:
// votes, and rivals for what a dead peer owned.
func TestReplay(t *testing.T) {
	if os.Getenv("SEED") != "" || os.Getenv("SOAK") != "" {
		t.Skip("one thing at a time")
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
		slices.Sort(story) // what happens at one moment is told in any order
		return story
	}
	lines := 0
	for seed := range uint64(10) {
		first, second := told(seed), told(seed)
		if !slices.Equal(first, second) {
			t.Fatalf("seed %d: first\n%s\nand then\n%s", seed, strings.Join(first, "\n"), strings.Join(second, "\n"))
		}
		lines += len(first)
	}
	if lines < 30 {
		t.Errorf("only %d lines were compared", lines)
	}
}

// Of the rules that are broken, the first one is told, with the story so far.
func TestFailure(t *testing.T) {
	w := &world{truth: newTruth(), seed: 7}
	w.note("it begins")
	w.broken("slot %d", 5)
	w.broken("another")
	f, ok := errors.AsType[*Failure](w.failed())
	if !ok || f.Seed != 7 || len(f.Log) != 1 || !strings.Contains(f.Error(), "slot 5") {
		t.Errorf("got %v", f)
	}
}
