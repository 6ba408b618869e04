// Package publish announces this host's endpoints to the other hosts: it keeps this host's set in
// the directory equal to the attached endpoints. It owns the last published set. Its goroutine
// publishes a set after each change.
package publish

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"time"

	"weft/ipam/slot"
	"weft/mesh/directory"
	"weft/prog/agent/attach"
	"weft/prog/agent/live"
	"weft/prog/agent/settings"
	"weft/prog/agent/view"
)

// pause is the wait after a change, so that changes at the same time become one set.
const pause = 5 * time.Millisecond

// Directory stores the set of this host's own endpoints, and sends the set to other peers.
type Directory interface {
	Publish([]directory.Endpoint) error
}

// Config configures a Publisher.
type Config struct {
	Directory Directory
	Attached  live.Reader[[]attach.Endpoint]
	Settings  live.Reader[settings.Values]
	NodeAddr  live.Reader[slot.Slot]
	View      live.Reader[*view.View]
	IPv6      bool
	Log       *slog.Logger
}

// Publisher publishes own endpoints.
type Publisher struct{ cfg Config }

// New makes a publisher; Run starts it.
func New(cfg Config) *Publisher { return &Publisher{cfg} }

// Run publishes until ctx ends.
func (p *Publisher) Run(ctx context.Context) error {
	told := ""
	for {
		endpoints, attached := p.cfg.Attached.Read()
		set, changed := p.cfg.Settings.Read()
		node, claimed := p.cfg.NodeAddr.Read()
		v, viewed := p.cfg.View.Read()
		if v != nil && !v.Ring.IsZero() {
			switch err := p.cfg.Directory.Publish(own(endpoints, set, node, v, p.cfg.IPv6)); {
			case err == nil:
				told = ""
			case err.Error() != told: // the log has each new error once, not at every change
				told = err.Error()
				p.cfg.Log.Warn("cannot publish all endpoints of this host to other peers", "err", err)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-p.cfg.Attached.Changed(attached):
		case <-p.cfg.Settings.Changed(changed):
		case <-p.cfg.NodeAddr.Changed(claimed):
		case <-p.cfg.View.Changed(viewed):
		}
		live.Pause(ctx, pause)
	}
}

// own returns this host's set of endpoints for the mesh. It is a pure function of the attached
// endpoints and the names that operators gave.
func own(endpoints []attach.Endpoint, set settings.Values, node slot.Slot, v *view.View, ipv6 bool) []directory.Endpoint {
	var out []directory.Endpoint
	for _, e := range endpoints {
		key := e.Key()
		if _, lost := v.Lost[key]; lost {
			continue
		}
		d, _ := e.Entry().Fit()
		d.Aliases, d.IPv4Only = set.Aliases(key), !ipv6
		if slices.Contains(set.Withdrawn, key) {
			d.Name = ""
		}
		out = append(out, d)
	}
	if names := set.Aliases(settings.NodeKey); len(names) > 0 && node != 0 {
		out = append(out, directory.Endpoint{ID: settings.NodeKey, Slots: []slot.Slot{node}, Aliases: names, IPv4Only: !ipv6})
	}
	outside := map[string]directory.Endpoint{}
	for _, n := range set.Names {
		if n.Endpoint == "" {
			e := outside[n.Name]
			e.ID, e.Aliases, e.Outside = "outside/"+n.Name, []string{n.Name}, append(e.Outside, n.Addr)
			outside[n.Name] = e
		}
	}
	return slices.AppendSeq(out, maps.Values(outside))
}
