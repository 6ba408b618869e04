// Package metric exports a component's values as Prometheus metrics. Each component has its own
// Collector: a function that is called at each scrape. The package owns no state, starts no
// goroutine, and stores no values.
package metric

import "github.com/prometheus/client_golang/prometheus"

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

// Collector collects by a function. It describes nothing: Prometheus checks at each scrape that
// no metric comes twice.
type Collector func(Out)

// Describe describes no metrics.
func (Collector) Describe(chan<- *prometheus.Desc) {}

// Collect makes the metrics.
func (c Collector) Collect(out chan<- prometheus.Metric) { c(out) }
