package agent

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"weft/ipam"
	"weft/ipam/ring"
	"weft/ipam/slot"
	"weft/mesh"
	"weft/mesh/peer"
	"weft/prog/agent/config"
	"weft/prog/agent/settings"
	"weft/prog/agent/underlay"
	"weft/prog/agent/view"
	"weft/prog/api"
	"weft/prog/state"
	"weft/router/datapath"
)

// stored is the state of the last run, from which the first plan is made.
type stored struct {
	peers, sets, documents [][]byte
	synced                 bool
	addrs                  []netip.Addr // of this host, in the last agent's record
	node                   slot.Slot
	ring                   []byte // the id of the ring; nil: there is no ring
	owners                 map[peer.ID][]slot.Range
}

// load reads the state of the last run.
func load(store *state.Store, self peer.ID) (s stored, err error) {
	if s.peers, err = store.Peers(); err != nil {
		return s, err
	}
	if s.sets, err = store.Sets(); err != nil {
		return s, err
	}
	if s.documents, err = store.Documents(); err != nil {
		return s, err
	}
	if s.synced, err = store.Synced(); err != nil {
		return s, err
	}
	st, err := store.Load()
	if err != nil {
		return s, err
	}
	s.node = st.Allocations[settings.NodeKey]
	if r, err := ring.Restore(st.Ring); err == nil {
		s.ring, s.owners = r.ID[:], r.Owned()
	}
	for _, data := range s.peers {
		if p, err := peer.Decode(data); err == nil && p.Record.ID() == self {
			s.addrs = p.Record.Underlay
		}
	}
	return s, nil
}

// record returns this host's first own record. It is complete from the start: after a record
// without a ring, other hosts would remove their tunnels to this host.
func (r *run) record(at underlay.Host, h host) peer.Record {
	return peer.Record{
		WireGuard: r.founding.Trust.Public, Nickname: h.nickname, Underlay: at.Addrs, MTUs: at.MTUs,
		Port: uint16(r.opts.Port), Gossip: uint16(r.opts.GossipPort), Node: r.stored.node, Host: h.node().UID, Ring: r.stored.ring,
	}
}

// owns reports whether a peer owns a part of the ring, by the last view or by the stored state.
func (r *run) owns(v *view.View, id peer.ID) bool {
	if v != nil {
		return len(v.Owners[id]) > 0
	}
	return len(r.stored.owners[id]) > 0
}

// election returns this peer's vote, or nil if a peer announces that it has a ring.
func (r *run) election(m *mesh.Mesh) *ipam.Election {
	e, self := r.founding.Election, r.founding.Trust.Self
	if e != nil {
		e.Elsewhere = func() bool {
			for _, p := range m.Peers() {
				if p.Record.Identity != nil && p.Record.ID() != self && p.Record.State != peer.Left && len(p.Record.Ring) > 0 {
					return true
				}
			}
			return false
		}
	}
	return e
}

// startDatapath runs the userspace WireGuard where the kernel has none.
func (r *run) startDatapath(ctx context.Context) error {
	if r.opts.DatapathElsewhere {
		return datapath.Await(ctx)
	}
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("agent: %w", err)
	}
	return datapath.Start(ctx, exe, filepath.Join(r.opts.StateDir, "datapath.log"))
}

// pluginConfig returns the settings of weft-cni that differ from its defaults.
func (r *run) pluginConfig() map[string]string {
	out := map[string]string{}
	if socket := r.opts.Socket(); socket != api.DefaultSocket {
		out["socket"] = socket
	}
	if r.opts.StateDir != config.DefaultStateDir {
		out["stateDir"] = r.opts.StateDir
	}
	return out
}
