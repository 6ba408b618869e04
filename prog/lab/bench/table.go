package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"
)

// samples are measurements of one thing, in one unit.
type samples []float64

func (s *samples) add(v float64) { *s = append(*s, v) }

// median is the middle value, the mean of the two middle ones if their number is even.
func (s samples) median() float64 {
	if len(s) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(s))
	n := len(sorted)
	return (sorted[n/2] + sorted[(n-1)/2]) / 2
}

// String is the median with the range of all: "12.3 (11.9–14.0)".
func (s samples) String() string {
	if len(s) == 0 {
		return "–"
	}
	return fmt.Sprintf("%.3g (%.3g–%.3g)", s.median(), slices.Min(s), slices.Max(s))
}

// comparison is a row of a table: ours against theirs.
type comparison struct {
	what         string
	ours, theirs samples
	atLeast      float64 // ours/theirs as it should be, 0 where there is no budget
	atMost       float64
	limit        float64 // for the greatest of ours, whatever theirs are; 0 where there is none
}

func (c comparison) ratio() float64 { return c.ours.median() / c.theirs.median() }

// budget is what was promised, and whether it is kept.
func (c comparison) budget() string {
	switch r := c.ratio(); {
	case c.limit > 0:
		return limited(c.ours, c.limit)
	case c.atLeast > 0 && r < c.atLeast:
		return fmt.Sprintf("≥ %.1fx: **missed**", c.atLeast)
	case c.atLeast > 0:
		return fmt.Sprintf("≥ %.1fx: kept", c.atLeast)
	case c.atMost > 0 && r > c.atMost:
		return fmt.Sprintf("≤ %.1fx: **missed**", c.atMost)
	case c.atMost > 0:
		return fmt.Sprintf("≤ %.1fx: kept", c.atMost)
	}
	return "–"
}

func printComparisons(w io.Writer, title, unit, theirs string, rows ...comparison) {
	fmt.Fprintf(w, "\n### %s\n\n| %s | Weft | %s | ratio | budget |\n|---|---|---|---|---|\n", title, unit, theirs)
	for _, c := range rows {
		ratio := fmt.Sprintf("%.2fx", c.ratio())
		if c.ratio() < 0.01 {
			ratio = fmt.Sprintf("%.1gx", c.ratio())
		}
		fmt.Fprintf(w, "| %s | %v | %v | **%s** | %s |\n", c.what, c.ours, c.theirs, ratio, c.budget())
	}
}

// figure is a row of a table of ours alone.
type figure struct {
	what   string
	ours   samples
	atMost float64 // for the greatest of them, 0 where there is no budget
}

func printFigures(w io.Writer, title, unit string, rows ...figure) {
	fmt.Fprintf(w, "\n### %s\n\n| %s | Weft | budget |\n|---|---|---|\n", title, unit)
	for _, f := range rows {
		budget := "–"
		if f.atMost > 0 {
			budget = limited(f.ours, f.atMost)
		}
		fmt.Fprintf(w, "| %s | %v | %s |\n", f.what, f.ours, budget)
	}
}

// limited says whether the greatest keeps an absolute budget.
func limited(s samples, atMost float64) string {
	if slices.Max(s) > atMost {
		return fmt.Sprintf("≤ %g: **missed**", atMost)
	}
	return fmt.Sprintf("≤ %g: kept", atMost)
}

// printMachine says what the figures were measured on.
func printMachine(w io.Writer) {
	release, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	load, _ := os.ReadFile("/proc/loadavg")
	version, _ := exec.Command("git", "describe", "--tags", "--always", "--dirty").Output()
	before, _, _ := strings.Cut(string(load), " ")
	fmt.Fprintf(w, "%s, commit %s: %s, %d cores; Linux %s, %s; load before: %s\n", time.Now().Format(time.DateOnly),
		strings.TrimSpace(string(version)), cpu(), runtime.NumCPU(), strings.TrimSpace(string(release)), runtime.Version(), before)
}

func cpu() string {
	info, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(info)) {
		if name, value, _ := strings.Cut(line, ":"); strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "an unknown processor"
}
