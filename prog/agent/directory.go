package agent

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"weft/ipam"
	"weft/ipam/ring"
	"weft/ipam/slot"
	"weft/mesh"
	"weft/mesh/directory"
	"weft/mesh/peer"
	"weft/prog/api"
	"weft/prog/words"
)

// view is what decides whether an entry of the directory counts: one look at ring and
// peers, replaced as a whole when they change.
type view struct {
	ring    ring.Ring
	owners  map[peer.ID][]slot.Range
	present map[peer.ID]bool // peers whose endpoints can be reached
	records map[peer.ID]peer.Record
}

// presumed is how long after the start a peer that was not heard of yet counts as
// reachable: the agent was restarted, and nothing else happened.
const presumed = 30 * time.Second

// look takes a new view.
func (a *Agent) look(snap ipam.Snapshot) {
	v := &view{ring: snap.Ring, owners: snap.Ring.Owned(), present: map[peer.ID]bool{}, records: map[peer.ID]peer.Record{}}
	fresh := time.Since(a.started) < presumed
	for _, p := range a.mesh.Peers() {
		if p.Record.Identity == nil {
			continue
		}
		id := p.Record.ID()
		v.records[id] = p.Record
		// Of a peer whose agent was stopped on purpose the containers run on.
		v.present[id] = p.Record.State != peer.Left &&
			(p.Reachable || p.Record.State == peer.Stopped || fresh && p.Since.IsZero())
	}
	a.view.Store(v)
}

// wanted reports whether a peer's endpoints can count: it owns a part of the ring, or it
// can be reached.
func (a *Agent) wanted(id peer.ID) bool {
	v := a.view.Load()
	return v == nil || v.ring.IsZero() || id == a.self() || v.present[id] || len(v.owners[id]) > 0
}

func (a *Agent) makeDirectory() (err error) {
	sets, err := a.store.Sets()
	if err != nil {
		return err
	}
	a.directory, err = mesh.NewDirectory(mesh.DirectoryConfig{
		Identity: a.keys.Identity, Mesh: a.mesh, Store: a.store, Sets: sets, Wanted: a.wanted, Log: a.log,
		Changed: a.repolice, Settle: a.settled, // nobody inherits what an address was allowed before
	})
	if err != nil {
		return err
	}
	a.mesh.Replicate(a.directory)
	for kind, h := range a.directory.Handlers() {
		a.mesh.Handle(kind, h)
	}
	return nil
}

// publishPause lets what happens at once travel as one change.
const publishPause = 5 * time.Millisecond

// publish keeps the directory in step with what is attached to this host.
func (a *Agent) publish(ctx context.Context) error {
	told := ""
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-a.named:
		}
		sleep(ctx, publishPause)
		snap, err := a.ipam.Snapshot(ctx)
		if err != nil || snap.Ring.IsZero() {
			continue // both end in another call
		}
		switch err := a.directory.Publish(a.published(snap)); {
		case err == nil:
			told = ""
		case err.Error() != told: // not at every look
			told = err.Error()
			a.log.Warn("cannot tell the other peers of all endpoints here", "err", err)
		}
	}
}

// rename asks for a publication. It never blocks.
func (a *Agent) rename() {
	select {
	case a.named <- struct{}{}:
	default:
	}
}

// published is what the mesh is told of this host: a pure function of what is attached and
// of the names that people gave.
func (a *Agent) published(snap ipam.Snapshot) []directory.Endpoint {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []directory.Endpoint
	for key, e := range a.endpoints {
		if _, lost := snap.Lost[key]; !lost {
			d, _ := a.entry(e).Fit()
			d.Aliases, d.IPv4Only = a.settings.aliases(key), !a.ipv6
			if slices.Contains(a.settings.Withdrawn, key) {
				d.Name = ""
			}
			out = append(out, d)
		}
	}
	if names := a.settings.aliases(nodeKey); len(names) > 0 && a.node != 0 {
		out = append(out, directory.Endpoint{ID: nodeKey, Slots: []slot.Slot{a.node}, Aliases: names, IPv4Only: !a.ipv6})
	}
	outside := map[string]directory.Endpoint{}
	for _, n := range a.settings.Names {
		if n.Endpoint == "" {
			e := outside[n.Name]
			e.ID, e.Aliases, e.Outside = "outside/"+n.Name, []string{n.Name}, append(e.Outside, n.Addr)
			outside[n.Name] = e
		}
	}
	return slices.AppendSeq(out, maps.Values(outside))
}

// entry is what the endpoint's own request says of it.
func (e *endpointRecord) entry() directory.Endpoint {
	d := directory.Endpoint{
		ID: e.ref().Key(), Slots: []slot.Slot{e.Slot},
		Name: strings.ToLower(e.Name), Namespace: strings.ToLower(e.Namespace), Labels: e.Labels,
	}
	for _, p := range e.Ports {
		d.Ports = append(d.Ports, directory.Port(p))
	}
	return d
}

// misfits says what the other hosts are not told of endpoints here, since it does not fit.
func (a *Agent) misfits() (warnings []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	left := map[string][]string{} // the endpoints, by what is left out
	for _, e := range a.endpoints {
		d := a.entry(e)
		if _, what := d.Fit(); len(what) > 0 {
			text := strings.Join(what, "; ")
			left[text] = append(left[text], cmp.Or(strings.Trim(e.Namespace+"/"+e.Name, "/"), d.ID))
		}
	}
	for text, who := range left {
		slices.Sort(who)
		more := ""
		if n := len(who) - 1; n > 0 {
			more = fmt.Sprintf(" and %d more", n)
		}
		warnings = append(warnings, fmt.Sprintf("%s%s: not all of what it says of itself fits into the directory. Left out is %s. Its addresses work, and policies of this host see all of it", who[0], more, text))
	}
	slices.Sort(warnings)
	return warnings
}

// stuckFor is how long freed slots wait for other peers before people hear of it.
const stuckFor = time.Minute

// stuckWarning says who keeps addresses from being used again.
func (a *Agent) stuckWarning() []string {
	slots, since, why := a.directory.Stuck()
	if why == nil || time.Since(since) < stuckFor {
		return nil
	}
	return []string{fmt.Sprintf("%s %s not given again after being freed, since for %v not all peers have said that they dropped their old names: %v. Look at the agent there",
		words.Count(slots, "address"), words.Are(slots), time.Since(since).Round(time.Second), why)}
}

// names is the directory as the name server sees it.
type names struct{ a *Agent }

func (n names) Universe() slot.Universe {
	if v := n.a.view.Load(); v != nil {
		return v.ring.Universe
	}
	return slot.Universe{}
}

// Lookup lists who has a name and can be reached, and reports whether the name exists.
func (n names) Lookup(name string) ([]directory.Entry, bool) {
	v := n.a.view.Load()
	if v == nil {
		return nil, false
	}
	entries, exists := n.a.directory.Lookup(name, v.ring)
	return slices.DeleteFunc(entries, func(e directory.Entry) bool { return !v.present[e.Owner] }), exists
}

// At is who has a slot and can be reached.
func (n names) At(s slot.Slot) (directory.Entry, bool) {
	v := n.a.view.Load()
	if v == nil {
		return directory.Entry{}, false
	}
	e, ok := n.a.directory.At(s, v.ring)
	return e, ok && v.present[e.Owner]
}

// PeerName is how people see a peer.
func (n names) PeerName(id peer.ID) string {
	if v := n.a.view.Load(); v != nil {
		if record, known := v.records[id]; known {
			return record.Name()
		}
	}
	return id.String()
}

// Names lists all names in the DNS domain.
func (a *Agent) Names(context.Context) ([]api.Name, error) {
	v := a.view.Load()
	if v == nil {
		return nil, nil
	}
	return a.describeNames(a.directory.Entries(v.ring), func(string) bool { return true }), nil
}

// describeNames lists those names of entries that are chosen, sorted.
func (a *Agent) describeNames(entries []directory.Entry, chosen func(name string) bool) []api.Name {
	v := a.view.Load()
	out := []api.Name{}
	for _, e := range entries {
		for _, name := range e.Names() {
			if chosen(name) {
				out = append(out, api.Name{
					Name: name + "." + a.opts.DNS.Domain, Addresses: e.Addrs(v.ring.Universe), Endpoint: e.ID,
					Peer: e.Owner.String(), Nickname: v.records[e.Owner].Nickname, Unreachable: !v.present[e.Owner],
				})
			}
		}
	}
	slices.SortStableFunc(out, func(x, y api.Name) int { return strings.Compare(x.Name, y.Name) })
	return out
}
