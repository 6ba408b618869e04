package mesh

import (
	"errors"
	"fmt"
	"slices"

	"weft/mesh/document"
)

// Merge takes in documents, or what another peer has. Only documents are passed on: who has
// fetched some says so itself.
func (d *Documents) Merge(data []byte) ([]byte, error) {
	var n documentNews
	if err := decoding.Unmarshal(data, &n); err != nil {
		return nil, fmt.Errorf("documents: %w", err)
	}
	if len(n.Documents) > maxNews || len(n.Held) > maxNews || len(n.Marks) > document.MaxWriters {
		return nil, fmt.Errorf("documents: %d documents and %d versions in one message, at most %d are allowed", len(n.Documents), len(n.Held), maxNews)
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

// byPeers parts documents that a peer wrote whom we know from the others. Gossip is not signed
// by who passes it on, so that anybody could have written those: they are asked for instead,
// of a peer that answers for them. So one that comes before the record of its writer is not
// lost, nor is what a peer wrote that is gone. The caller holds the lock.
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
		if d.set.Ended(theirs) {
			gone, refused := d.set.Next(theirs.Kind, theirs.Name, nil, true, now, d.cfg.Identity)
			if err = errors.Join(err, refused); refused != nil {
				continue
			}
			d.cfg.Log.Warn("a document that was deleted long ago came back from a host that was away: it is deleted again", "document", theirs.String(), "writer", d.cfg.Mesh.Name(theirs.WriterID()))
			theirs = gone // who offered it hears so
		}
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
