package datapath

import "weft/prog/agent/metric"

var metricGuard = metric.Desc("guard_dropped_packets_total",
	"Packets that the guard dropped since its rules were loaded, by its chain: forged, in the clear, or to ports that endpoints may not reach.", "chain")

// Metrics exports what the guard dropped.
func (d *Datapath) Metrics(out metric.Out) {
	dropped, err := d.cfg.Router.GuardDropped()
	if err != nil {
		d.cfg.Log.Debug("packets that the guard dropped are not counted", "err", err)
	}
	for chain, n := range dropped {
		out.Counter(metricGuard, float64(n), chain)
	}
}
