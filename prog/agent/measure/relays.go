package measure

import (
	"slices"

	"weft/mesh/path"
)

// Relayed has the ways of this host's tunnels over relays, and the hosts for which this host is the relay.
type Relayed struct {
	Ways  []path.Way
	Pairs []path.Pair
}

func (r Relayed) equal(o Relayed) bool {
	return slices.Equal(r.Ways, o.Ways) && slices.Equal(r.Pairs, o.Pairs)
}

// names returns the names of relays for people.
func (m *Measure) names(over path.Relays) (out []string) {
	for _, id := range over.List() {
		out = append(out, m.cfg.View.Get().Name(id))
	}
	return out
}

// unsaved reports whether the ways and pairs have changed since they were saved.
func (m *Measure) unsaved() bool {
	_, version := m.Relayed.Read()
	return version != m.kept
}

// keep saves the ways and pairs if they have changed. A relay whose agent restarts must go on with the first plan, and
// a tunnel that uses one as well.
func (m *Measure) keep() {
	relayed, version := m.Relayed.Read()
	if version == m.kept {
		return
	}
	if err := m.cfg.Save(relayed); err != nil {
		m.cfg.Log.Warn("cannot save which relays are used: if this agent restarts, relayed packets are lost for some seconds", "err", err)
	}
	m.kept = version
}
