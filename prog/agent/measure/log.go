package measure

import (
	"time"

	"weft/mesh/path"
	"weft/mesh/peer"
)

// log logs a new state or address of a path.
func (m *Measure) log(id peer.ID, was, is path.Path, now time.Time) {
	name := m.cfg.View.Get().Name(id)
	switch {
	case was.State == is.State && was.Via != is.Via && is.Moves > path.Flapping:
	case was.State == is.State && was.Via != is.Via && !is.Via.IsZero():
		m.cfg.Log.Info("a tunnel goes over a relay, since the peer does not answer directly", "peer", name, "relays", m.names(is.Via), "rtt", is.RTT)
	case was.State == is.State && was.Via != is.Via:
		m.cfg.Log.Info("a tunnel goes directly again", "peer", name, "addr", is.Endpoint, "rtt", is.RTT)
	case was.State == is.State:
		if was.Endpoint.IsValid() && was.Endpoint != is.Endpoint && is.Moves <= path.Flapping {
			m.cfg.Log.Info("a tunnel uses another address", "peer", name, "was", was.Endpoint, "addr", is.Endpoint)
		}
	case is.State == path.Direct && was.State == path.Unknown && !is.Endpoint.IsValid():
		m.cfg.Log.Info("a tunnel works: data comes from the peer", "peer", name)
	case is.State == path.Direct && was.State == path.Unknown:
		m.cfg.Log.Info("a tunnel works", "peer", name, "addr", is.Endpoint, "rtt", is.RTT)
	case is.State == path.Direct:
		m.cfg.Log.Info("a tunnel works again", "peer", name, "addr", is.Endpoint, "after", now.Sub(was.Since).Round(time.Second))
	case is.State == path.Unheard:
		m.cfg.Log.Warn("a tunnel works in one direction only: the peer does not hear this host", "peer", name)
	case is.State == path.Deaf:
		m.cfg.Log.Warn("a tunnel does not work: nothing comes from the peer", "peer", name)
	}
}
