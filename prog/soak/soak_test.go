package soak

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"testing"
	"testing/synctest"
	"time"
)

// replay is the command that repeats a seed.
const replay = "SEED=%d go test -count=1 -v -run TestSoak ./prog/soak\n"

// live runs one seed in its own synctest bubble on one processor, so that events at one instant
// have the same order in every run. A panic or a deadlock in the bubble ends the program; the seed
// is printed then, too.
func live(t *testing.T, seed uint64, print func(string)) (err error) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	done := false
	defer func() {
		if !done {
			fmt.Fprintf(os.Stderr, "seed %d did not finish: "+replay, seed, seed)
		}
	}()
	synctest.Test(t, func(*testing.T) { err = Run(seed, print) })
	done = true
	return err
}

// report fails the test with the log of a seed.
func report(t *testing.T, err error) {
	t.Helper()
	var f *Failure
	if !errors.As(err, &f) {
		t.Fatal(err)
	}
	for _, line := range f.Log {
		fmt.Fprintln(os.Stderr, line)
	}
	t.Fatalf("%v\nreplay it: "+replay, f, f.Seed)
}

func number(t *testing.T, name string, otherwise uint64) uint64 {
	text, ok := os.LookupEnv(name)
	if !ok {
		return otherwise
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// No address is allocated twice. SOAK=n runs n seeds, starting with seed FROM. SEED=n runs one
// seed and prints its log.
func TestSoakAllocatesNoAddressTwice(t *testing.T) {
	if os.Getenv("SEED") != "" {
		seed := number(t, "SEED", 0)
		if err := live(t, seed, func(line string) { fmt.Fprintln(os.Stderr, line) }); err != nil {
			t.Fatal(err)
		}
		return
	}
	seeds, from := number(t, "SOAK", few), number(t, "FROM", 1)
	began := time.Now()
	shown := began
	for n := range seeds {
		if err := live(t, from+n, nil); err != nil {
			report(t, err)
		}
		if now := time.Now(); os.Getenv("SOAK") != "" && now.Sub(shown) > 5*time.Second {
			shown = now
			fmt.Fprintf(os.Stderr, "%d of %d seeds after %v\n", n+1, seeds, now.Sub(began).Round(time.Second))
		}
	}
}
