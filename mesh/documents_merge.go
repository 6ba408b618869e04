package mesh

import (
	"errors"
	"fmt"
	"slices"

	"weft/mesh/document"
)

// Merge merges documents, or the versions that another peer has. It returns only the documents as
// news: a peer that fetches documents announces them itself.
func (d *Documents) Merge(data []byte) ([]byte, error) {
	var n documentNews
	if err := decoding.Unmarshal(data, &n); err != nil {
		return nil, fmt.Errorf("documents: decoding a broadcast: %w", err)
	}
	if len(n.Documents) > maxNews || len(n.Held) > maxNews || len(n.Marks) > document.MaxWriters {
		return nil, fmt.Errorf("documents: refused a message with %d documents and %d versions, at most %d are allowed", len(n.Documents), len(n.Held), maxNews)
	}
	docs, err := decodeDocuments(n.Documents)
	d.mu.Lock()
	defer d.mu.Unlock()
	docs, strange := d.byPeers(docs)
	fresh, refused := d.takeIn(docs)
	n.Held = append(n.Held, strange...)
	switch {
	case n.From == d.self:
	case d.behind(n):
		d.want(n)
	case len(n.Digest) > 0:
		d.compared(n.From, n.Synced, n.Marks)
	}
	return d.news(fresh), errors.Join(err, refused)
}

// byPeers separates the documents of known peers (good) from those of unknown writers (strange).
// Gossip is not signed by the peer that passes it on, so any host with the secret could have sent
// strange documents. They are requested from a peer instead. So no document is lost because it
// arrives before its writer's record, or because its writer is gone. The caller holds the lock.
func (d *Documents) byPeers(docs []*document.Document) (good []*document.Document, strange []document.Held) {
	if len(docs) == 0 {
		return nil, nil
	}
	peers := d.cfg.Mesh.Others()
	for _, doc := range docs {
		if id := doc.WriterID(); id == d.self || slices.Contains(peers, id) {
			good = append(good, doc)
		} else {
			strange = append(strange, doc.Held())
		}
	}
	return good, strange
}

// decodeDocuments decodes documents and leaves out invalid ones.
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

// takeIn stores the documents that are new, and returns them, or our replacements for them. The
// caller holds the lock.
func (d *Documents) takeIn(docs []*document.Document) (fresh []*document.Document, err error) {
	now := d.now()
	for _, theirs := range docs {
		if d.cfg.Refuse != nil {
			if refused := d.cfg.Refuse(theirs); refused != nil {
				if _, banned := errors.AsType[*BannedError](refused); !banned { // peers send its documents again and again
					err = errors.Join(err, refused)
				}
				continue
			}
		}
		if d.set.Ended(theirs) {
			gone, refused := d.set.Next(theirs.Kind, theirs.Name, nil, true, now, d.cfg.Identity)
			if err = errors.Join(err, refused); refused != nil {
				continue
			}
			d.cfg.Log.Warn("a host that was away sent a document that was deleted long ago: deleting it again", "document", theirs.String(), "writer", d.cfg.Mesh.Name(theirs.WriterID()))
			theirs = gone // pass on the tombstone, so that the document's sender learns of the deletion
		}
		key := theirs.Key()
		ours, _ := d.set.Last(key)
		news, full := d.set.Put(theirs, now)
		err = errors.Join(err, full)
		if !news {
			continue
		}
		d.dirty[key] = true
		refute := d.mustRefute(ours, theirs)
		delete(d.mine, key) // refute only once, so that two peers do not refute each other for ever
		if refute {
			again, refused := d.set.Next(ours.Kind, ours.Name, ours.Body, ours.Deleted, now, d.cfg.Identity)
			err = errors.Join(err, refused)
			if refused == nil {
				_, _ = d.set.Put(again, now) // this version replaces theirs, so there is room
				theirs = again
				d.markOwn()
			}
		}
		fresh = append(fresh, theirs)
	}
	if len(fresh) > 0 {
		d.cfg.Changed()
	}
	return fresh, err
}

// mustRefute reports whether a document that this run wrote must be written again, above a version
// with a higher number. That version may be older, but unknown to us since our disk was restored
// from an older copy. This is possible until we have all documents of another peer, and later if we
// wrote that version ourselves. The caller holds the lock.
func (d *Documents) mustRefute(ours, theirs *document.Document) bool {
	return d.mine[theirs.Key()] && (!d.met || theirs.WriterID() == d.self) && !theirs.Same(ours.Body, ours.Deleted)
}

// news returns the gossip message about documents: the documents themselves if they fit into a
// packet, else their versions, else a digest. The caller holds the lock.
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
