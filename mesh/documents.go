package mesh

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"weft/mesh/document"
	"weft/mesh/peer"
)

// DocumentsName is the documents', in gossip.
const DocumentsName = "documents"

// DocumentStore keeps the documents over a restart.
type DocumentStore interface {
	// SaveDocuments keeps documents by key, all or none; nil forgets one.
	SaveDocuments(documents map[string][]byte) error
	// SaveSynced keeps that this peer has had all documents.
	SaveSynced() error
}

// DocumentsConfig is what Documents are made of.
type DocumentsConfig struct {
	Identity  ed25519.PrivateKey
	Mesh      Messenger
	Store     DocumentStore
	Documents [][]byte // known from the last run
	Synced    bool     // as it was in the last run
	Now       func() time.Time
	Log       *slog.Logger
	// Changed is called after every change, also of Synced. It must not block.
	Changed func()
}

// Documents replicates what anybody in the mesh may write. A small change travels whole by
// gossip, of a larger one only which versions there are; push/pull exchanges a digest. Who
// hears of something that it lacks asks for all that it lacks (see documents_fetch.go).
//
// It is safe for concurrent use. Nothing blocks on the network but Run.
type Documents struct {
	cfg  DocumentsConfig
	self peer.ID
	wake chan struct{} // there is something to ask

	saving sync.Mutex // held while the store is written

	mu     sync.Mutex
	set    *document.Set
	dirty  map[string]bool // keys of what is not yet in the store
	mine   map[string]bool // keys of what this run wrote, and nobody since (see insists)
	wanted map[peer.ID]documentNews
	busy   map[peer.ID]documentNews // who is being asked, and for what
	met    bool                     // in this run, we have had all that some other peer has
	all    map[peer.ID]bool         // whose documents we have had all of in this run, while not synced
	synced bool
	kept   bool // that we are synced is in the store
}

// documentNews is what travels by gossip: documents as they are; which ones the sender has;
// or a digest of all that it has.
type documentNews struct {
	From      peer.ID         `cbor:"1,keyasint"`
	Documents [][]byte        `cbor:"2,keyasint,omitempty"`
	Held      []document.Held `cbor:"3,keyasint,omitempty"`
	Digest    []byte          `cbor:"4,keyasint,omitempty"`
	Synced    bool            `cbor:"5,keyasint,omitempty"`
}

// maxNews bounds the documents, and the versions, that one message tells of. A packet of
// gossip has room for fewer.
const maxNews = 64

// keptDocument is a document on disk, and since when it is here, in Unix seconds.
type keptDocument struct {
	Document []byte `cbor:"1,keyasint"`
	Since    int64  `cbor:"2,keyasint"`
}

// NewDocuments makes documents; Run starts them. What was known in the last run is there at
// once.
func NewDocuments(cfg DocumentsConfig) (*Documents, error) {
	if len(cfg.Identity) != ed25519.PrivateKeySize {
		return nil, errors.New("mesh: documents without an identity")
	}
	d := &Documents{
		cfg: cfg, self: peer.IDOf(cfg.Identity.Public().(ed25519.PublicKey)), wake: make(chan struct{}, 1), set: document.NewSet(),
		dirty: map[string]bool{}, mine: map[string]bool{}, wanted: map[peer.ID]documentNews{}, busy: map[peer.ID]documentNews{},
		all: map[peer.ID]bool{}, synced: cfg.Synced, kept: cfg.Synced,
	}
	for _, data := range cfg.Documents {
		var k keptDocument
		err := decoding.Unmarshal(data, &k)
		if err == nil {
			err = d.restore(k)
		}
		if err != nil { // of a newer version that allowed more; it is fetched again
			cfg.Log.Warn("a stored document is not readable", "err", err)
		}
	}
	return d, nil
}

func (d *Documents) restore(k keptDocument) error {
	doc, err := document.Decode(k.Document)
	if err == nil {
		_, err = d.set.Put(doc, k.Since)
	}
	return err
}

// Name is the documents' name as a replicated state.
func (d *Documents) Name() string { return DocumentsName }

// now is the time in Unix seconds.
func (d *Documents) now() int64 { return d.cfg.Now().Unix() }

// Full says which documents are here, all in one digest; who has another one asks.
func (d *Documents) Full() []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	return encode(d.full())
}

func (d *Documents) full() documentNews {
	digest := d.set.Digest(d.now())
	return documentNews{From: d.self, Digest: digest[:], Synced: d.synced}
}

// Merge takes in documents, or what another peer has. Only documents are passed on: who has
// fetched some says so itself.
func (d *Documents) Merge(data []byte) ([]byte, error) {
	var n documentNews
	if err := decoding.Unmarshal(data, &n); err != nil {
		return nil, fmt.Errorf("documents: %w", err)
	}
	if len(n.Documents) > maxNews || len(n.Held) > maxNews {
		return nil, fmt.Errorf("documents: %d documents and %d versions in one message, at most %d are allowed", len(n.Documents), len(n.Held), maxNews)
	}
	docs, err := decodeDocuments(n.Documents)
	d.mu.Lock()
	defer d.mu.Unlock()
	fresh, refused := d.takeIn(docs)
	switch {
	case n.From == d.self:
	case d.behind(n):
		d.want(n)
	case len(n.Digest) > 0:
		d.compared(n.From, n.Synced)
	}
	return d.news(fresh), errors.Join(err, refused)
}

// decodeDocuments reads documents, and leaves out those that are none.
func decodeDocuments(list [][]byte) (docs []*document.Document, err error) {
	for _, data := range list {
		doc, bad := document.Decode(data)
		if bad != nil {
			err = errors.Join(err, bad)
			continue
		}
		docs = append(docs, doc)
	}
	return docs, err
}

// takeIn keeps the documents that are news, and returns them, or what we answer. The caller
// holds the lock.
func (d *Documents) takeIn(docs []*document.Document) (fresh []*document.Document, err error) {
	now := d.now()
	for _, theirs := range docs {
		key := theirs.Key()
		ours, _ := d.set.Last(key)
		news, full := d.set.Put(theirs, now)
		err = errors.Join(err, full)
		if !news {
			continue
		}
		d.dirty[key] = true
		insists := d.insists(ours, theirs)
		delete(d.mine, key) // it is said again once, so that two that insist do not go on for ever
		if insists {
			again, refused := d.set.Next(ours.Kind, ours.Name, ours.Body, ours.Deleted, now, d.cfg.Identity)
			err = errors.Join(err, refused)
			if refused == nil {
				_, _ = d.set.Put(again, now) // it has the room of theirs
				theirs = again
			}
		}
		fresh = append(fresh, theirs)
	}
	if len(fresh) > 0 {
		d.cfg.Changed()
	}
	return fresh, err
}

// insists reports whether what this run wrote is to be said again above what has a higher
// number: where that may be no later word, but one that we did not know since our disk is an
// older copy. So it is if we have not yet had all that another peer has, or if it is our own,
// of a life that our disk does not remember. The caller holds the lock.
func (d *Documents) insists(ours, theirs *document.Document) bool {
	return d.mine[theirs.Key()] && (!d.met || theirs.WriterID() == d.self) && !theirs.Same(ours.Body, ours.Deleted)
}

// news is how documents travel by gossip: as they are if they fit into a packet, else which
// they are; else a digest. The caller holds the lock.
func (d *Documents) news(docs []*document.Document) []byte {
	if len(docs) == 0 {
		return nil
	}
	n := documentNews{From: d.self}
	size := 0
	for _, doc := range docs {
		if size += len(doc.Body); size < maxDelta && len(n.Documents) < maxNews {
			n.Documents = append(n.Documents, doc.Encode())
		}
	}
	if data := encode(n); len(n.Documents) == len(docs) && len(data) <= maxDelta {
		return data
	}
	n.Documents = nil
	for _, doc := range docs[:min(len(docs), maxNews)] {
		n.Held = append(n.Held, doc.Held())
	}
	if data := encode(n); len(n.Held) == len(docs) && len(data) <= maxDelta {
		return data
	}
	return encode(d.full())
}

// Change is a document that is to be written, or deleted.
type Change struct {
	Kind, Name string
	Body       []byte
	Deleted    bool
}

// Write makes changes, all or none, keeps them, and tells the mesh. What changes nothing is
// left out. No two changes are of one document.
func (d *Documents) Write(changes []Change) error {
	d.saving.Lock()
	defer d.saving.Unlock()
	now := d.now()
	docs, err := d.next(changes, now)
	if err != nil || len(docs) == 0 {
		return err
	}
	data := map[string][]byte{}
	for _, doc := range docs {
		data[doc.Key()] = encode(keptDocument{doc.Encode(), now})
	}
	if err := d.cfg.Store.SaveDocuments(data); err != nil { // first, so that no restart forgets what was said
		return fmt.Errorf("mesh: nothing was written: %w", err)
	}
	d.mu.Lock()
	for _, doc := range docs {
		news, full := d.set.Put(doc, now)
		err = errors.Join(err, full)
		if d.mine[doc.Key()] = news; !news { // another one's came while we wrote to the disk
			d.dirty[doc.Key()] = true
		}
	}
	news := d.news(docs)
	d.mu.Unlock()
	d.cfg.Mesh.Broadcast(DocumentsName, news)
	d.cfg.Changed()
	return err
}

// next makes the documents that follow from changes.
func (d *Documents) next(changes []Change, now int64) (docs []*document.Document, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	seen, fresh := map[string]bool{}, 0
	for _, c := range changes {
		key := document.Key(c.Kind, c.Name)
		old, _ := d.set.Last(key)
		if seen[key] {
			return nil, fmt.Errorf("mesh: %s %q is to be changed twice at once", c.Kind, c.Name)
		}
		seen[key] = true
		// Before we know what the mesh has, also what seems to be there already is worth saying.
		if d.met && old.Same(c.Body, c.Deleted) {
			continue
		}
		doc, err := d.set.Next(c.Kind, c.Name, c.Body, c.Deleted, now, d.cfg.Identity)
		if err != nil {
			return nil, fmt.Errorf("mesh: nothing was written: %w", err)
		}
		if docs = append(docs, doc); old == nil {
			fresh++
		}
	}
	if have := d.set.Len(); fresh > 0 && have+fresh > document.MaxDocuments {
		return nil, fmt.Errorf("mesh: nothing was written: %w", &document.FullError{Have: have})
	}
	return docs, nil
}

// Get is a document; nil if there is none, or it is deleted. Nobody changes it.
func (d *Documents) Get(kind, name string) *document.Document {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.set.Get(kind, name)
}

// List are the documents of a kind, by name. Nobody changes them.
func (d *Documents) List(kind string) []*document.Document {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.set.List(kind)
}

// Generation tells people whether two peers have the same documents of a kind: 16 hexadecimal
// digits.
func (d *Documents) Generation(kind string) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.set.Generation(kind)
}

// Run asks, keeps and forgets until ctx ends.
func (d *Documents) Run(ctx context.Context) error {
	var group sync.WaitGroup
	tick := time.NewTicker(flushEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			group.Wait()
			return d.flush()
		case <-d.wake:
			d.fetch(ctx, &group)
		case <-tick.C:
			d.expire()
			if err := d.flush(); err != nil {
				d.cfg.Log.Warn("cannot keep the documents", "err", err)
			}
		}
	}
}

// expire drops the tombstones that have done their work.
func (d *Documents) expire() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, key := range d.set.Expire(d.now()) {
		d.dirty[key] = true
		delete(d.mine, key)
	}
}

// flush writes what changed; that we are synced, only after what we are synced with.
func (d *Documents) flush() error {
	d.saving.Lock()
	defer d.saving.Unlock()
	d.mu.Lock()
	dirty, data, synced := d.dirty, map[string][]byte{}, d.synced && !d.kept
	for key := range dirty {
		data[key] = nil
		if doc, since := d.set.Last(key); doc != nil {
			data[key] = encode(keptDocument{doc.Encode(), since})
		}
	}
	d.dirty = map[string]bool{}
	d.mu.Unlock()
	var err error
	if len(data) > 0 {
		err = d.cfg.Store.SaveDocuments(data)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil {
		for key := range dirty {
			d.dirty[key] = true
		}
		return err
	}
	if !synced {
		return nil
	}
	err = d.cfg.Store.SaveSynced()
	d.kept = err == nil
	return err
}
