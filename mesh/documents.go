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

// DocumentsName is the name of the documents as a replicated state.
const DocumentsName = "documents"

// DocumentStore persists the documents.
type DocumentStore interface {
	// SaveDocuments stores documents by key in one transaction. A nil value deletes the document.
	SaveDocuments(documents map[string][]byte) error
	// SaveSynced stores that this peer has received all documents once.
	SaveSynced() error
}

// DocumentsConfig configures Documents.
type DocumentsConfig struct {
	Identity  ed25519.PrivateKey
	Mesh      Messenger
	Store     DocumentStore
	Documents [][]byte // the documents that an earlier run stored
	Synced    bool     // whether an earlier run stored that it was synced
	Now       func() time.Time
	Log       *slog.Logger
	// Refuse returns why a document of another peer does not count, or nil. It must not block or call
	// the documents. If it is nil, all documents count.
	Refuse func(*document.Document) error
	// Changed is called after every change, including changes of Synced. It must not block.
	Changed func()
}

// Documents replicates documents that every peer may write. A small change travels by gossip as a
// whole; for a larger change, only the versions travel. Push/pull exchanges a digest of all
// documents. A peer that learns that it lacks something fetches everything that it lacks
// (documents_fetch.go).
//
// Documents is safe for concurrent use. Only Run blocks on the network.
type Documents struct {
	cfg  DocumentsConfig
	self peer.ID
	wake chan struct{} // wakes Run to fetch documents

	saving sync.Mutex // held while the store is written

	mu     sync.Mutex
	set    *document.Set
	dirty  map[string]bool // keys of documents that are not stored yet
	mine   map[string]bool // keys of documents that this run wrote last (see mustRefute)
	wanted map[peer.ID]documentNews
	busy   map[peer.ID]documentNews // peers that are being asked, and the news that led to it
	met    bool                     // whether this run received all documents of some other peer
	all    map[peer.ID]bool         // peers whose documents this run has received completely, while not synced
	synced bool
	kept   bool // whether synced is stored
	marked bool // whether there are high-water marks that are not stored
	whole  bool // whether all stored documents were readable; only then a missing document was deleted
}

// documentNews is a gossip message: whole documents, versions that the sender has, or a digest of
// all its documents.
type documentNews struct {
	From      peer.ID         `cbor:"1,keyasint"`
	Documents [][]byte        `cbor:"2,keyasint,omitempty"`
	Held      []document.Held `cbor:"3,keyasint,omitempty"`
	Digest    []byte          `cbor:"4,keyasint,omitempty"`
	Synced    bool            `cbor:"5,keyasint,omitempty"`
	Marks     []document.Mark `cbor:"6,keyasint,omitempty"` // the sender's high-water marks, sent with its digest
}

// maxDocumentsFull is the largest size of Full, in bytes: for a mesh in which every peer has
// written documents.
const maxDocumentsFull = 256 + 120*document.MaxWriters

// maxNews bounds the number of documents and of versions in one message. A gossip packet holds
// fewer.
const maxNews = 64

// keptDocument is a stored document, and when it arrived here, in Unix seconds.
type keptDocument struct {
	Document []byte          `cbor:"1,keyasint,omitempty"`
	Since    int64           `cbor:"2,keyasint,omitempty"`
	Marks    []document.Mark `cbor:"3,keyasint,omitempty"` // only the entry keyMarks has marks, and no other field
}

// keyMarks is the key of the high-water marks in the store. No document has this key. An earlier
// release treats it as an unreadable document and continues.
const keyMarks = "\x00marks"

// NewDocuments returns Documents; Run starts them. Stored documents can be read at once.
func NewDocuments(cfg DocumentsConfig) (*Documents, error) {
	if len(cfg.Identity) != ed25519.PrivateKeySize {
		return nil, errors.New("mesh: documents: no identity given")
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
		if err != nil { // written by a newer version; it is fetched again
			d.whole = false
			cfg.Log.Warn("ignoring an unreadable stored document: fetching it again", "err", err)
		}
	}
	if d.whole {
		_, err := d.set.See(marks)
		if err != nil {
			cfg.Log.Warn("ignoring an invalid stored high-water mark", "err", err)
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

// markOwn signs our high-water mark: the highest version that we have written. If the store was not
// fully readable, that version may be too low. Then markOwn signs nothing until we have all
// documents of another peer. The caller holds the lock.
func (d *Documents) markOwn() {
	if own := d.set.Written(d.self); own > 0 && (d.whole || d.met) {
		d.see([]document.Mark{document.NewMark(own, d.cfg.Identity)})
	}
}

// see merges valid high-water marks. The caller holds the lock.
func (d *Documents) see(marks []document.Mark) {
	news, err := d.set.See(marks)
	d.marked = d.marked || news
	if err != nil {
		d.cfg.Log.Warn("ignoring an invalid high-water mark of a peer", "err", err)
	}
}

// Name returns the name of the documents as a replicated state.
func (d *Documents) Name() string { return DocumentsName }

// now returns the time in Unix seconds.
func (d *Documents) now() int64 { return d.cfg.Now().Unix() }

// Full returns a digest of all documents; a peer with another digest asks for missing documents.
func (d *Documents) Full() []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	return encode(d.full())
}

func (d *Documents) full() documentNews {
	digest := d.set.Digest(d.now())
	return documentNews{From: d.self, Digest: digest[:], Synced: d.synced, Marks: d.set.Marks()}
}

// Change is a document to write or to delete.
type Change struct {
	Kind, Name string
	Body       []byte
	Deleted    bool
}

// Write makes and stores all changes or none, and broadcasts them. A change without effect is left
// out. Each document may be changed only once per call.
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
	if err := d.cfg.Store.SaveDocuments(data); err != nil { // store first, so that a restart does not forget an announced change
		return fmt.Errorf("mesh: nothing was written: %w", err)
	}
	d.mu.Lock()
	for _, doc := range docs {
		news, full := d.set.Put(doc, now)
		err = errors.Join(err, full)
		if d.mine[doc.Key()] = news; !news { // another peer's version arrived while we wrote to disk
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

// next returns the documents that changes lead to.
func (d *Documents) next(changes []Change, now int64) (docs []*document.Document, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	seen, fresh := map[string]bool{}, 0
	for _, c := range changes {
		key := document.Key(c.Kind, c.Name)
		old, _ := d.set.Last(key)
		if seen[key] {
			return nil, fmt.Errorf("mesh: nothing was written: %s %q occurs twice in one request", c.Kind, c.Name)
		}
		seen[key] = true
		// Until we know the documents of the mesh, write even documents that seem to be there
		// already.
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

// Get returns a document, or nil if there is none or it is deleted. The caller must not change it.
func (d *Documents) Get(kind, name string) *document.Document {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.set.Get(kind, name)
}

// List returns the documents of a kind, sorted by name. The caller must not change them.
func (d *Documents) List(kind string) []*document.Document {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.set.List(kind)
}

// Generation returns a fingerprint of all documents of a kind, 16 hexadecimal digits. Peers with
// the same documents have the same fingerprint.
func (d *Documents) Generation(kind string) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.set.Generation(kind)
}

// Run fetches, stores and expires documents until ctx ends.
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
				d.cfg.Log.Warn("cannot store the documents: trying again", "err", err)
			}
		}
	}
}

// expire drops tombstones that are old enough.
func (d *Documents) expire() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, key := range d.set.Expire(d.now()) {
		d.dirty[key] = true
		delete(d.mine, key)
	}
}

// flush stores the changed documents, and then the fact that we are synced.
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
	if marked { // one transaction stores the marks and the documents that they cover
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
