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
	marked bool // there are marks that are not in the store
	whole  bool // all that the store had could be read, so that what is not here was deleted
}

// documentNews is what travels by gossip: documents as they are; which ones the sender has;
// or a digest of all that it has.
type documentNews struct {
	From      peer.ID         `cbor:"1,keyasint"`
	Documents [][]byte        `cbor:"2,keyasint,omitempty"`
	Held      []document.Held `cbor:"3,keyasint,omitempty"`
	Digest    []byte          `cbor:"4,keyasint,omitempty"`
	Synced    bool            `cbor:"5,keyasint,omitempty"`
	Marks     []document.Mark `cbor:"6,keyasint,omitempty"` // of the sender, with its digest
}

// maxDocumentsFull is how large Full is at most: that of a mesh in which every peer has written
// something.
const maxDocumentsFull = 256 + 120*document.MaxWriters

// maxNews bounds the documents, and the versions, that one message tells of. A packet of
// gossip has room for fewer.
const maxNews = 64

// keptDocument is a document on disk, and since when it is here, in Unix seconds.
type keptDocument struct {
	Document []byte          `cbor:"1,keyasint,omitempty"`
	Since    int64           `cbor:"2,keyasint,omitempty"`
	Marks    []document.Mark `cbor:"3,keyasint,omitempty"` // instead, under keyMarks
}

// keyMarks is where the marks are in the store: the key of no document. An earlier release
// takes them for a document that it cannot read, and goes on.
const keyMarks = "\x00marks"

// NewDocuments makes documents; Run starts them. What was known in the last run is there at
// once.
func NewDocuments(cfg DocumentsConfig) (*Documents, error) {
	if len(cfg.Identity) != ed25519.PrivateKeySize {
		return nil, errors.New("mesh: documents without an identity")
	}
	d := &Documents{
		cfg: cfg, self: peer.IDOf(cfg.Identity.Public().(ed25519.PublicKey)), wake: make(chan struct{}, 1), set: document.NewSet(),
		dirty: map[string]bool{}, mine: map[string]bool{}, wanted: map[peer.ID]documentNews{}, busy: map[peer.ID]documentNews{},
		all: map[peer.ID]bool{}, synced: cfg.Synced, kept: cfg.Synced, whole: true,
	}
	var marks []document.Mark
	for _, data := range cfg.Documents {
		var k keptDocument
		err := decoding.Unmarshal(data, &k)
		if marks = append(marks, k.Marks...); err == nil && len(k.Marks) == 0 {
			err = d.restore(k)
		}
		if err != nil { // of a newer version that allowed more; it is fetched again
			d.whole = false
			cfg.Log.Warn("a stored document is not readable", "err", err)
		}
	}
	if d.whole {
		_, err := d.set.See(marks)
		if err != nil {
			cfg.Log.Warn("a stored mark is not readable", "err", err)
		}
		d.markOwn()
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

// markOwn says how far our own numbers have come. Who has read less from its disk than it once
// wrote does not, before it has had all that another peer has. The caller holds the lock.
func (d *Documents) markOwn() {
	if own := d.set.Written(d.self); own > 0 && (d.whole || d.met) {
		d.see([]document.Mark{document.NewMark(own, d.cfg.Identity)})
	}
}

// see takes over marks that hold here. The caller holds the lock.
func (d *Documents) see(marks []document.Mark) {
	news, err := d.set.See(marks)
	d.marked = d.marked || news
	if err != nil {
		d.cfg.Log.Warn("a mark of a peer does not count", "err", err)
	}
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
	return documentNews{From: d.self, Digest: digest[:], Synced: d.synced, Marks: d.set.Marks()}
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
		data[doc.Key()] = encode(keptDocument{Document: doc.Encode(), Since: now})
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
	if err == nil {
		d.markOwn()
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
	compare := time.NewTicker(compareEvery)
	defer compare.Stop()
	for {
		select {
		case <-ctx.Done():
			group.Wait()
			return d.flush()
		case <-d.wake:
			d.fetch(ctx, &group)
		case <-compare.C:
			d.compare(ctx, &group)
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
	dirty, data, synced, marked := d.dirty, map[string][]byte{}, d.synced && !d.kept, d.marked
	for key := range dirty {
		data[key] = nil
		if doc, since := d.set.Last(key); doc != nil {
			data[key] = encode(keptDocument{Document: doc.Encode(), Since: since})
		}
	}
	if marked { // with the documents that they count on
		data[keyMarks] = encode(keptDocument{Marks: d.set.Marks()})
	}
	d.dirty, d.marked = map[string]bool{}, false
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
		d.marked = d.marked || marked
		return err
	}
	if !synced {
		return nil
	}
	err = d.cfg.Store.SaveSynced()
	d.kept = err == nil
	return err
}
