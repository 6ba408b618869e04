package links

import (
	"crypto/ed25519"
	"log/slog"
	"maps"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"weft/mesh"
	"weft/mesh/meshtest"
	"weft/mesh/path"
	"weft/mesh/peer"
	"weft/mesh/topology"
	"weft/prog/agent/agenttest"
	"weft/prog/agent/live"
	"weft/prog/agent/measure"
	"weft/prog/agent/view"
)

// world is a cluster of hosts with replicated documents. All hosts see the same peers.
type world struct {
	t       *testing.T
	cluster *meshtest.Cluster
	hosts   []*host
	view    *view.View
	banned  map[peer.ID]bool
}

// host is a host of the world.
type host struct {
	*mesh.Documents
	*Links
	w       *world
	id      peer.ID
	disk    *meshtest.Disk
	paths   live.Value[measure.Paths]
	relayed live.Value[measure.Relayed]
	view    live.Value[*view.View]
	writes  atomic.Int32
	wakes   atomic.Pointer[Links] // those that hear of changed documents
}

func key(n int) ed25519.PrivateKey {
	seed := make([]byte, ed25519.SeedSize)
	seed[0], seed[1] = byte(n), byte(n>>8)
	return ed25519.NewKeyFromSeed(seed)
}

func idOf(n int) peer.ID { return peer.IDOf(key(n).Public().(ed25519.PublicKey)) }

// in runs a test in a world of n hosts. Of them, only those that the test starts run Links.
func in(t *testing.T, n int, test func(*testing.T, *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, cluster: meshtest.NewCluster(1), view: agenttest.View(), banned: map[peer.ID]bool{}}
		w.view.Evidence, w.view.Reach = map[peer.ID]path.Evidence{}, map[peer.ID]topology.Reach{}
		w.view.Records = map[peer.ID]peer.Record{}
		for i := range n {
			h := &host{w: w, id: idOf(i), disk: &meshtest.Disk{}}
			w.view.Records[h.id] = peer.Record{Ring: w.view.Ring.ID[:]}
			w.view.Peers = append(w.view.Peers, mesh.Peer{})
			w.alive(h, true)
			node := w.cluster.Host(h.id, nil)
			var err error
			h.Documents, err = mesh.NewDocuments(mesh.DocumentsConfig{
				Identity: key(i), Mesh: node, Store: h.disk, Synced: true, Now: time.Now, Log: slog.New(slog.DiscardHandler), Changed: func() {
					if l := h.wakes.Load(); l != nil {
						l.Wake()
					}
				},
			})
			if err != nil {
				t.Fatal(err)
			}
			node.Start(0, meshtest.HostConfig{
				Replicas: []meshtest.Replica{h.Documents}, Handlers: meshtest.Handlers(h.Handlers()), Run: h.Documents.Run,
			})
			w.hosts = append(w.hosts, h)
		}
		w.look()
		for _, h := range w.hosts {
			h.set(New(h.config(false)))
		}
		time.Sleep(time.Minute) // the hosts have met
		test(t, w)
		if err := w.cluster.Stop(); err != nil {
			t.Error(err)
		}
	})
}

// config returns the configuration of a host's Links.
func (h *host) config(refuses bool) Config {
	return Config{
		Self: h.id, Refuses: refuses, Documents: counted{h.Documents, &h.writes}, Paths: &h.paths, Relayed: &h.relayed, View: &h.view,
		Banned: func(id peer.ID) bool { return h.w.banned[id] }, Log: slog.New(slog.DiscardHandler),
	}
}

// counted counts what is written.
type counted struct {
	*mesh.Documents
	n *atomic.Int32
}

func (c counted) Write(changes []mesh.Change) error {
	c.n.Add(1)
	return c.Documents.Write(changes)
}

func (h *host) set(l *Links) {
	h.Links = l
	h.wakes.Store(l)
}

// run runs new Links of a host until the test ends.
func (h *host) run(refuses bool) {
	h.set(New(h.config(refuses)))
	agenttest.Run(h.w.t, h.Links.Run)
}

// look publishes the present view to all hosts.
func (w *world) look() {
	for _, h := range w.hosts {
		v := *w.view
		v.Self, v.Evidence, v.Records, v.Reach = h.id, maps.Clone(v.Evidence), maps.Clone(v.Records), maps.Clone(v.Reach)
		h.view.Set(&v)
	}
}

// alive sets whether gossip reaches a host.
func (w *world) alive(h *host, yes bool) {
	w.view.Evidence[h.id] = path.Evidence{Gossip: yes, Lost: time.Now(), Started: time.Now().Add(-time.Hour)}
	w.view.Reach[h.id] = topology.Unsure
	if yes {
		w.view.Reach[h.id] = topology.Reached
	}
	w.look()
}

// record changes a host's record.
func (w *world) record(h *host, change func(*peer.Record)) {
	r := w.view.Records[h.id]
	change(&r)
	w.view.Records[h.id] = r
	w.look()
}

// measures sets the path to another host.
func (h *host) measures(other *host, s path.State, rtt time.Duration) {
	next := maps.Clone(h.paths.Get())
	if next == nil {
		next = measure.Paths{}
	}
	next[other.id] = path.Path{State: s, RTT: rtt, Since: time.Now()}
	h.paths.Set(next)
}

// cut cuts a link for both ends.
func (w *world) cut(a, b *host, s path.State) {
	a.measures(b, s, 0)
	b.measures(a, s, 0)
}

// tells writes a document, of a peer that this host may not be.
func (h *host) tells(of *host, l topology.Links) {
	h.w.t.Helper()
	body, err := l.Encode()
	if err == nil {
		err = h.Documents.Write([]mesh.Change{{Kind: Kind, Name: of.id.String(), Body: body}})
	}
	if err != nil {
		h.w.t.Fatal(err)
	}
	time.Sleep(2 * time.Second) // until all have it
}

// says checks what a host's document says at another host: whom it cuts; nil: there is none.
func (w *world) says(at, of *host, cut ...*host) {
	w.t.Helper()
	synctest.Wait()
	doc := at.Get(Kind, of.id.String())
	if doc == nil {
		if cut != nil {
			w.t.Errorf("there is no document of a host with %d cuts", len(cut))
		}
		return
	}
	got, err := topology.DecodeLinks(doc.Body)
	want := map[peer.ID]bool{}
	for _, c := range cut {
		want[c.id] = true
	}
	if err != nil || cut == nil || doc.WriterID() != of.id || !maps.Equal(got.Cut, want) {
		w.t.Errorf("the document says %v, %v; want the cuts %v", got.Cut, err, want)
	}
}

// relays checks which relays a host takes to another one if their link is cut; none: it is not, or no relay helps.
func (h *host) relays(other *host, want ...*host) {
	h.w.t.Helper()
	synctest.Wait()
	var ids []peer.ID
	for _, r := range want {
		ids = append(ids, r.id)
	}
	got := h.Relays(other.id, nil)
	h.mu.Lock()
	links := h.choice.links
	cut := links[h.id].Cut[other.id] || links[other.id].Cut[h.id]
	h.mu.Unlock()
	if len(want) == 0 && !cut {
		return
	}
	if !slices.Equal(got, ids) {
		h.w.t.Errorf("the relays are %v, want %v", got, ids)
	}
}
