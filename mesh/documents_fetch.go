package mesh

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"weft/mesh/document"
	"weft/mesh/peer"
)

// requestMissing sends the versions that the requester has; the reply is the documents that it
// lacks, as many as fit.
const requestMissing = "documents/missing"

// These bounds limit requests for missing documents.
const (
	maxShown   = 1 << 14 // versions in one request: more than a peer of this version ever holds
	maxSources = 256     // bounds the peers that wait to be asked
	maxAsked   = 8       // bounds the peers that are asked at once
	// maxRounds bounds the consecutive requests to one peer, so that all possible documents fit.
	maxRounds = 2 * document.MaxHeld * document.MaxBody / maxAnswer
)

// These are the pauses before an unanswered request is repeated. Some peers may not know a peer
// that has just joined, and the next push/pull is up to half a minute away.
const (
	askFirst = 100 * time.Millisecond
	askLast  = time.Second
	// compareEvery is how often a peer that is not synced asks the other peers.
	compareEvery = 2 * time.Second
)

// documentAnswer holds missing documents, whether there are more, and whether the sender is synced.
type documentAnswer struct {
	Documents [][]byte        `cbor:"1,keyasint,omitempty"`
	More      bool            `cbor:"2,keyasint,omitempty"`
	Synced    bool            `cbor:"3,keyasint,omitempty"`
	Marks     []document.Mark `cbor:"4,keyasint,omitempty"` // only the last of several answers has them
}

// Handlers returns the handlers of other peers' requests for documents.
func (d *Documents) Handlers() map[string]Handler {
	return map[string]Handler{requestMissing: d.serveMissing}
}

// serveMissing returns the documents that the requester lacks. If the requester has documents that
// we lack, serveMissing also schedules a request to that peer.
func (d *Documents) serveMissing(_ context.Context, from peer.ID, payload []byte) ([]byte, error) {
	var theirs []document.Held
	if err := decoding.Unmarshal(payload, &theirs); err != nil {
		return nil, err
	}
	if len(theirs) > maxShown {
		return nil, fmt.Errorf("refused a request with %d versions, at most %d are allowed", len(theirs), maxShown)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, h := range theirs {
		if n := (documentNews{From: from, Held: []document.Held{h}}); d.behind(n) && from != d.self {
			d.want(n)
			break
		}
	}
	answer, size := documentAnswer{Synced: d.synced}, 0
	for _, doc := range d.set.Missing(theirs, d.now()) {
		data := doc.Encode()
		if size += len(data); size > maxAnswer {
			answer.More = true
			break
		}
		answer.Documents = append(answer.Documents, data)
	}
	if !answer.More {
		answer.Marks = d.set.Marks()
	}
	return encode(answer), nil
}

// behind reports whether n shows that its sender has something that we lack. The caller holds the
// lock.
func (d *Documents) behind(n documentNews) bool {
	if slices.ContainsFunc(n.Held, d.set.Lacks) {
		return true
	}
	digest := d.set.Digest(d.now())
	return len(n.Digest) > 0 && string(n.Digest) != string(digest[:])
}

// want notes that another peer has something that we lack. If too many peers are noted already, the
// next push/pull reports this peer again. The caller holds the lock.
func (d *Documents) want(n documentNews) {
	if _, known := d.wanted[n.From]; known || len(d.wanted) < maxSources {
		n.Documents, n.Marks = nil, nil
		d.wanted[n.From] = n
		d.wakeUp()
	}
}

func (d *Documents) wakeUp() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// fetch asks the peers that have something that we lack, a few at a time, with at most one request
// to each.
func (d *Documents) fetch(ctx context.Context, group *sync.WaitGroup) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for source, n := range d.wanted {
		if !d.behind(n) {
			delete(d.wanted, source)
			if len(n.Digest) > 0 {
				d.compared(source, n.Synced, nil)
			}
			continue
		}
		if len(d.busy) >= maxAsked || d.underway(n) {
			continue
		}
		delete(d.wanted, source)
		d.start(ctx, group, n)
	}
}

// start asks one peer for the documents that we lack. The caller holds the lock.
func (d *Documents) start(ctx context.Context, group *sync.WaitGroup, n documentNews) {
	d.busy[n.From] = n
	group.Go(func() {
		if err := d.fetchAll(ctx, n.From); err != nil && ctx.Err() == nil {
			d.cfg.Log.Debug("could not fetch documents from a peer", "peer", d.cfg.Mesh.Name(n.From), "err", err)
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		if delete(d.busy, n.From); len(d.wanted) > 0 {
			d.wakeUp()
		}
	})
}

// compare asks the peers with which there was no push/pull yet, while this peer is not synced. If
// many peers start together, some miss each other's first push/pull, and the next push/pull comes
// only after half a minute.
func (d *Documents) compare(ctx context.Context, group *sync.WaitGroup) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.synced {
		return
	}
	for _, id := range d.cfg.Mesh.Others() {
		if _, busy := d.busy[id]; !busy && len(d.busy) < maxAsked && !d.all[id] && d.cfg.Mesh.Reachable(id) {
			d.start(ctx, group, documentNews{From: id})
		}
	}
}

// underway reports whether the sender of n is being asked, or whether another peer is being asked
// for the same documents: every peer that fetched a document announces it. The caller holds the
// lock.
func (d *Documents) underway(n documentNews) bool {
	if _, busy := d.busy[n.From]; busy {
		return true
	}
	for _, b := range d.busy {
		other := func(h document.Held) bool { return d.set.Lacks(h) && !slices.Contains(b.Held, h) }
		if string(b.Digest) == string(n.Digest) && !slices.ContainsFunc(n.Held, other) {
			return true
		}
	}
	return false
}

// fetchAll fetches all documents that one peer has and we lack.
func (d *Documents) fetchAll(ctx context.Context, source peer.ID) error {
	var fresh []*document.Document
	defer func() { // announce only at the end, when all have arrived
		d.mu.Lock()
		news := d.news(fresh)
		d.mu.Unlock()
		if news != nil {
			d.cfg.Mesh.Broadcast(DocumentsName, news)
		}
	}()
	for range maxRounds {
		data, err := d.ask(ctx, source)
		if err != nil {
			return err
		}
		var answer documentAnswer
		if err := decoding.Unmarshal(data, &answer); err != nil {
			return fmt.Errorf("documents: decoding a reply: %w", err)
		}
		if len(answer.Documents) > document.MaxHeld || len(answer.Marks) > document.MaxWriters {
			return fmt.Errorf("documents: refused a reply with %d documents: at most %d are allowed", len(answer.Documents), document.MaxHeld)
		}
		docs, err := decodeDocuments(answer.Documents)
		d.mu.Lock()
		more, full := d.takeIn(docs)
		fresh = append(fresh, more...)
		if err = errors.Join(err, full); err == nil && !answer.More {
			d.compared(source, answer.Synced, answer.Marks)
		}
		d.mu.Unlock()
		if err != nil || !answer.More {
			return err
		}
		if len(more) == 0 {
			break
		}
	}
	return errors.New("documents: gave up: the peer keeps announcing more documents without sending new ones")
}

// ask sends a peer our versions and returns the reply. It repeats an unanswered request a few
// times.
func (d *Documents) ask(ctx context.Context, source peer.ID) (answer []byte, err error) {
	for pause := askFirst; ; pause *= 2 {
		d.mu.Lock()
		held := encode(d.set.Held(d.now()))
		d.mu.Unlock()
		try, cancel := context.WithTimeout(ctx, fetchTimeout)
		answer, err = d.cfg.Mesh.Request(try, source, requestMissing, held)
		cancel()
		var no interface{ Refused() string }
		if err == nil || errors.As(err, &no) || pause > askLast {
			return answer, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(pause):
		}
	}
}

// compared notes that we have all documents of another peer, and merges its high-water marks. We
// are synced if that peer is synced, or if we now have all documents of every reachable peer. The
// caller holds the lock.
func (d *Documents) compared(with peer.ID, synced bool, marks []document.Mark) {
	d.met = true
	d.see(marks)
	if d.synced {
		return
	}
	if d.cfg.Mesh.Reachable(with) {
		d.all[with] = true
	}
	if synced || d.metAll() {
		d.synced, d.all = true, nil
		d.cfg.Changed()
	}
}

// metAll reports whether we have received all documents of every reachable peer.
func (d *Documents) metAll() bool {
	for _, id := range d.cfg.Mesh.Others() {
		if !d.all[id] && d.cfg.Mesh.Reachable(id) {
			return false
		}
	}
	return len(d.all) > 0
}

// Synced reports whether this peer has known the whole state of the mesh, in this or an earlier
// run. That is so if it founded the mesh, or received all documents of a synced peer.
func (d *Documents) Synced() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.synced
}

// MarkSynced marks the founder of a mesh as synced, and stores that at once.
func (d *Documents) MarkSynced() error {
	d.mu.Lock()
	changed := !d.synced
	d.synced = true
	d.mu.Unlock()
	if changed {
		d.cfg.Changed()
	}
	if err := d.flush(); err != nil {
		return fmt.Errorf("mesh: storing documents: %w", err)
	}
	return nil
}
