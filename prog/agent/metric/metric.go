// Package metric exports a component's values as Prometheus metrics. Each component has its own
// Collector: a function that is called at each scrape. The package owns no state, starts no
// goroutine, and stores no values but those of Durations.
package metric

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Desc describes a metric of Weft.
func Desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("weft_"+name, help, labels, nil)
}

// Out takes the metrics of one scrape.
type Out chan<- prometheus.Metric

// Gauge adds a value that may rise and fall.
func (o Out) Gauge(d *prometheus.Desc, v float64, labels ...string) {
	o <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
}

// Bool adds a gauge of 1 or 0.
func (o Out) Bool(d *prometheus.Desc, v bool) {
	if v {
		o.Gauge(d, 1)
	} else {
		o.Gauge(d, 0)
	}
}

// Counter adds a value that only rises while the agent runs.
func (o Out) Counter(d *prometheus.Desc, v float64, labels ...string) {
	o <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, labels...)
}

// Each adds a gauge for each value of a label.
func (o Out) Each(d *prometheus.Desc, values map[string]float64) {
	for label, v := range values {
		o.Gauge(d, v, label)
	}
}

// Durations is a histogram of durations in seconds, for each value of its labels. It is safe for concurrent use.
type Durations struct{ vec *prometheus.HistogramVec }

// NewDurations makes a histogram whose buckets end at 1 ms to 10 s.
func NewDurations(name, help string, labels ...string) Durations {
	bounds := []float64{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10}
	vec := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "weft_" + name, Help: help, Buckets: bounds}, labels)
	if len(labels) == 0 {
		vec.WithLabelValues() // so that it shows before the first duration
	}
	return Durations{vec}
}

// Note adds one duration.
func (d Durations) Note(took time.Duration, labels ...string) {
	d.vec.WithLabelValues(labels...).Observe(took.Seconds())
}

// Durations adds a histogram.
func (o Out) Durations(d Durations) { d.vec.Collect(o) }

// Collector collects by a function. It describes nothing: Prometheus checks at each scrape that
// no metric comes twice.
type Collector func(Out)

// Describe describes no metrics.
func (Collector) Describe(chan<- *prometheus.Desc) {}

// Collect makes the metrics.
func (c Collector) Collect(out chan<- prometheus.Metric) { c(out) }
