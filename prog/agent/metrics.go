package agent

import (
	"context"
	"log/slog"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"weft/prog/api"
)

// metrics serves what the report says in numbers, in Prometheus' text format.
func (a *Agent) metrics() http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(reportCollector{a}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return promhttp.HandlerFor(registry, promhttp.HandlerOpts{ErrorLog: slog.NewLogLogger(a.log.Handler(), slog.LevelWarn)})
}

// reportCollector makes metrics of one report per scrape: nothing is counted twice.
type reportCollector struct{ a *Agent }

// reportTimeout bounds one scrape.
const reportTimeout = 5 * time.Second

var (
	metricReady       = desc("ready", "Whether this host can attach containers.")
	metricWarnings    = desc("warnings", "What hurts users of this host, as in weft status, by reason.", "reason")
	metricPeers       = desc("peers", "Peers by state.", "state")
	metricConnections = desc("connections", "Tunnels by state.", "state")
	metricLosses      = desc("peer_losses", "How often gossip lost a peer within the last ten minutes.", "peer", "nickname")
	metricReceived    = desc("tunnel_received_bytes_total", "Bytes that came through the tunnel from a peer.", "peer", "nickname")
	metricSent        = desc("tunnel_sent_bytes_total", "Bytes that went through the tunnel to a peer.", "peer", "nickname")
	metricMTU         = desc("tunnel_mtu_bytes", "The largest packet of the overlay that goes to a peer.", "peer", "nickname")
	metricEndpoints   = desc("endpoints", "Attached containers, pods and processes.")
	metricSlots       = desc("ipam_slots", "Addresses that a peer owns.", "peer", "nickname")
	metricUniverse    = desc("ipam_universe_slots", "Addresses of the universe.")
	metricActive      = desc("ipam_active_slots", "Addresses in use on this host.")
	metricFree        = desc("ipam_free_slots", "Addresses that this host can hand out without asking.")
	metricResting     = desc("ipam_resting_slots", "Addresses of this host that were freed a moment ago.")
	metricUnreachable = desc("ipam_unreachable_slots", "Addresses whose owner cannot be reached.")
	metricLost        = desc("ipam_lost_slots", "Addresses in use here that were taken over by another peer.")
	metricGeneration  = desc("ipam_generation", "The highest generation of any address: 1, and one more for each time it was taken over from a dead peer.")
	metricRings       = desc("ipam_rings", "Address rings among the peers; more than one is a mistake.")
	metricPolicies    = desc("policies", "NetworkPolicies, by mode: enforced, or audit where they are only tried.", "mode")
	metricEnforced    = desc("policy_current", "Whether the kernel enforces all policies that are known on this host.")
	metricIsolated    = desc("policy_isolated_endpoints", "Endpoints on this host that some policy isolates.")
	metricDropped     = desc("policy_dropped_packets_total", "Packets that policies of endpoints on this host dropped, since the agent started.", "direction")
	metricNames       = desc("dns_entries", "Endpoints and hosts with a name, in the whole network.")
	metricListening   = desc("dns_listening", "Whether the name server listens on all its addresses.")
	metricCached      = desc("dns_cached_answers", "Answers of upstreams in the cache.")
	metricQueries     = desc("dns_queries_total", "Questions, by what became of them: local, cached, forwarded, joined, limited, refused or dropped.", "outcome")
	metricFailed      = desc("dns_upstream_failures_total", "Questions that no upstream answered.")
)

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("weft_"+name, help, labels, nil)
}

// Describe leaves the metrics open: a collector that describes nothing is checked at each scrape.
func (reportCollector) Describe(chan<- *prometheus.Desc) {}

// Collect makes the metrics.
func (c reportCollector) Collect(out chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), reportTimeout)
	defer cancel()
	r, warnings, err := c.a.gather(ctx)
	if err != nil {
		out <- prometheus.NewInvalidMetric(metricReady, err)
		return
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	ready := 0.0
	if r.Ready {
		ready = 1
	}
	gauge(metricReady, ready)
	reasons := map[string]float64{}
	for _, w := range warnings {
		reasons[w.reason]++
	}
	for reason, n := range reasons {
		gauge(metricWarnings, n, reason)
	}
	gauge(metricEndpoints, float64(len(r.Endpoints)))
	states := map[string]float64{}
	for _, p := range r.Router.Peers {
		states[p.State]++
	}
	for state, n := range states {
		gauge(metricPeers, n, state)
	}
	for _, p := range c.a.mesh.Peers() {
		if p.Losses > 0 && p.Record.Identity != nil {
			gauge(metricLosses, float64(p.Losses), p.Record.ID().String(), p.Record.Nickname)
		}
	}
	collectConnections(r.Router.Connections, gauge, out)
	collectIPAM(r.IPAM, gauge)
	collectPolicy(r.Policy, gauge, out)
	if !r.DNS.Off {
		collectDNS(r.DNS, gauge, out)
	}
}

func collectPolicy(r api.PolicyReport, gauge func(*prometheus.Desc, float64, ...string), out chan<- prometheus.Metric) {
	gauge(metricPolicies, float64(r.Policies-r.Audit-r.Partial), "enforced")
	gauge(metricPolicies, float64(r.Partial), "partial")
	gauge(metricPolicies, float64(r.Audit), "audit")
	current := 0.0
	if r.Current {
		current = 1
	}
	gauge(metricEnforced, current)
	gauge(metricIsolated, float64(r.Isolated))
	for direction, n := range r.Dropped {
		out <- prometheus.MustNewConstMetric(metricDropped, prometheus.CounterValue, float64(n), direction)
	}
}

func collectDNS(r api.DNS, gauge func(*prometheus.Desc, float64, ...string), out chan<- prometheus.Metric) {
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	gauge(metricNames, float64(r.Entries))
	gauge(metricCached, float64(r.Cached))
	listening := 0.0
	if r.Problem == "" && len(r.Listening) > 0 {
		listening = 1
	}
	gauge(metricListening, listening)
	counter(metricFailed, r.Counts.Failed)
	for outcome, n := range map[string]uint64{
		"local": r.Counts.Local, "cached": r.Counts.Hits, "forwarded": r.Counts.Forwarded, "joined": r.Counts.Joined,
		"limited": r.Counts.Limited, "refused": r.Counts.Refused, "dropped": r.Counts.Dropped,
	} {
		counter(metricQueries, n, outcome)
	}
}

func collectConnections(list []api.Connection, gauge func(*prometheus.Desc, float64, ...string), out chan<- prometheus.Metric) {
	states := map[string]float64{}
	for _, c := range list {
		states[c.State]++
		out <- prometheus.MustNewConstMetric(metricReceived, prometheus.CounterValue, float64(c.Received), c.Peer, c.Nickname)
		out <- prometheus.MustNewConstMetric(metricSent, prometheus.CounterValue, float64(c.Sent), c.Peer, c.Nickname)
		if c.MTU != 0 {
			gauge(metricMTU, float64(c.MTU), c.Peer, c.Nickname)
		}
	}
	for state, n := range states {
		gauge(metricConnections, n, state)
	}
}

func collectIPAM(r api.IPAM, gauge func(*prometheus.Desc, float64, ...string)) {
	unreachable := uint64(0)
	for _, o := range r.Owners {
		gauge(metricSlots, float64(o.Slots), o.Peer, o.Nickname)
		if !o.Self && !o.Reachable {
			unreachable += o.Slots
		}
	}
	gauge(metricUniverse, float64(r.Size))
	gauge(metricActive, float64(r.Active))
	gauge(metricFree, float64(r.Free))
	gauge(metricResting, float64(r.Resting))
	gauge(metricUnreachable, float64(unreachable))
	gauge(metricLost, float64(len(r.Lost)))
	gauge(metricGeneration, float64(r.Generation))
	gauge(metricRings, float64(max(1, len(r.Rings))))
}
