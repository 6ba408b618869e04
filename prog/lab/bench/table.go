package main

import (
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

// samples are measurements of one quantity in one unit.
type samples []float64

func (s *samples) add(v float64) { *s = append(*s, v) }

// median returns the middle value, or the mean of the two middle values.
func (s samples) median() float64 {
	if len(s) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(s))
	n := len(sorted)
	return (sorted[n/2] + sorted[(n-1)/2]) / 2
}

func (s samples) mean() float64 {
	sum := 0.0
	for _, v := range s {
		sum += v
	}
	return sum / float64(len(s))
}

// uncertainty returns the standard error of the mean.
func (s samples) uncertainty() float64 {
	mean, sum := s.mean(), 0.0
	for _, v := range s {
		sum += (v - mean) * (v - mean)
	}
	return math.Sqrt(sum / float64(len(s)-1) / float64(len(s)))
}

// String returns the median with the range: "12.3 (11.9–14.0)".
func (s samples) String() string {
	if len(s) == 0 {
		return "–"
	}
	return fmt.Sprintf("%.3g (%.3g–%.3g)", s.median(), slices.Min(s), slices.Max(s))
}

// comparison is a row of a table: samples of Weft and samples of another program.
type comparison struct {
	what         string
	ours, theirs samples
	atLeast      float64 // budget: the minimum of ours/theirs; 0: no budget
	atMost       float64
	limit        float64 // budget: the maximum of the greatest sample of ours; 0: no budget
}

func (c comparison) ratio() float64 { return c.ours.median() / c.theirs.median() }

// budget returns the budget, and whether it is kept.
func (c comparison) budget() string {
	switch r := c.ratio(); {
	case c.limit > 0:
		return limited(c.ours, c.limit)
	case c.atLeast > 0 && r < c.atLeast:
		return fmt.Sprintf("≥ %sx: **missed**", factor(c.atLeast))
	case c.atLeast > 0:
		return fmt.Sprintf("≥ %sx: kept", factor(c.atLeast))
	case c.atMost > 0 && r > c.atMost:
		return fmt.Sprintf("≤ %.1fx: **missed**", c.atMost)
	case c.atMost > 0:
		return fmt.Sprintf("≤ %.1fx: kept", c.atMost)
	}
	return "–"
}

// factor formats a budget with one digit after the point, or as many as it has.
func factor(f float64) string {
	if text := strconv.FormatFloat(f, 'f', -1, 64); strings.Contains(text, ".") {
		return text
	}
	return fmt.Sprintf("%.1f", f)
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

// pairs is a row of a table: two quantities that were measured on the same hosts, one sample per host.
type pairs struct {
	what  string
	a, b  samples
	equal bool // whether the budget requires equal quantities
}

// ratio returns the geometric mean of the pairs' ratios, and its standard error.
func (p pairs) ratio() (mean, uncertainty float64) {
	var logs samples
	for i := range p.a {
		logs.add(math.Log(p.a[i] / p.b[i]))
	}
	mean = math.Exp(logs.mean())
	return mean, mean * logs.uncertainty()
}

// coarse is the uncertainty above which equality cannot be decided.
const coarse = 0.05

// budget reports whether a is at least b within the noise, at a significance level of one in twenty.
func (p pairs) budget() string {
	switch mean, u := p.ratio(); {
	case !p.equal:
		return "–"
	case u > coarse:
		return "equal within noise: too much noise to tell"
	case 1-mean > 2*u:
		return "equal within noise: **missed**"
	}
	return "equal within noise: kept"
}

func printPairs(w io.Writer, title string, rows ...pairs) {
	fmt.Fprintf(w, "\n### %s\n\n| | ratio, mean ± standard error | budget |\n|---|---|---|\n", title)
	for _, p := range rows {
		mean, uncertainty := p.ratio()
		fmt.Fprintf(w, "| %s | **%.2fx** ± %.2f | %s |\n", p.what, mean, uncertainty, p.budget())
	}
}

// figure is a row of a table with only Weft's samples.
type figure struct {
	what   string
	ours   samples
	atMost float64 // budget: the maximum of the greatest sample; 0: no budget
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

// limited reports whether the greatest sample keeps an absolute budget.
func limited(s samples, atMost float64) string {
	if slices.Max(s) > atMost {
		return fmt.Sprintf("≤ %g: **missed**", atMost)
	}
	return fmt.Sprintf("≤ %g: kept", atMost)
}

// printMachine prints the machine on which the figures were measured.
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
