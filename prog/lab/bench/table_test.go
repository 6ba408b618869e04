package main

import (
	"fmt"
	"testing"
)

func TestSamplesPrintMedianAndRange(t *testing.T) {
	for _, c := range []struct {
		in   samples
		want string
	}{
		{nil, "–"},
		{samples{2}, "2 (2–2)"},
		{samples{9, 1, 2}, "2 (1–9)"},
		{samples{4, 1, 2, 90}, "3 (1–90)"},
	} {
		if got := c.in.String(); got != c.want {
			t.Errorf("%v prints %q, want %q", []float64(c.in), got, c.want)
		}
	}
}

// The table reports whether a budget is kept.
func TestComparisonsReportBudgets(t *testing.T) {
	for _, c := range []struct {
		in   comparison
		want string
	}{
		{comparison{ours: samples{1}, theirs: samples{2}}, "–"},
		{comparison{ours: samples{2}, theirs: samples{2}, atLeast: 1}, "≥ 1.0x: kept"},
		{comparison{ours: samples{1.9}, theirs: samples{2}, atLeast: 1}, "≥ 1.0x: **missed**"},
		{comparison{ours: samples{1}, theirs: samples{2}, atMost: 0.6}, "≤ 0.6x: kept"},
		{comparison{ours: samples{1.3}, theirs: samples{2}, atMost: 0.6}, "≤ 0.6x: **missed**"},
		{comparison{ours: samples{1, 2}, theirs: samples{9}, limit: 2}, "≤ 2: kept"},
		{comparison{ours: samples{1, 2.1}, theirs: samples{9}, limit: 2}, "≤ 2: **missed**"},
	} {
		if got := c.in.budget(); got != c.want {
			t.Errorf("samples %v compared with %v: the table's column for the budget is %q, want %q", c.in.ours, c.in.theirs, got, c.want)
		}
	}
}

// Two quantities only count as equal if the noise is small.
func TestSamplesAreEqualOnlyWithinNoise(t *testing.T) {
	for _, c := range []struct {
		a, b samples
		want string
	}{
		{samples{98, 103, 99, 100}, samples{100, 100, 100, 100}, "equal within noise: kept"},
		{samples{196, 99, 300, 400}, samples{200, 100, 300, 400}, "equal within noise: kept"},
		{samples{89, 91, 90, 90}, samples{100, 100, 100, 100}, "equal within noise: **missed**"},
		{samples{111, 109, 110, 110}, samples{100, 100, 100, 100}, "equal within noise: kept"},
		{samples{80, 130, 70, 120}, samples{100, 100, 100, 100}, "equal within noise: too much noise to tell"},
	} {
		if got := (pairs{"", c.a, c.b, true}).budget(); got != c.want {
			t.Errorf("samples %v paired with %v: the budget is %q, want %q", []float64(c.a), []float64(c.b), got, c.want)
		}
	}
	p := pairs{"", samples{50, 200, 100}, samples{100, 100, 100}, false}
	if mean, u := p.ratio(); fmt.Sprintf("%.3f %.3f", mean, u) != "1.000 0.400" || p.budget() != "–" {
		t.Errorf("got mean %v, uncertainty %v, budget %q, want mean 1.000, uncertainty 0.400 and no budget", mean, u, p.budget())
	}
}
