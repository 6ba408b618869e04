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

// requestMissing: what the asker has → the documents that it lacks, as many as fit.
const requestMissing = "documents/missing"

// Bounds of what is asked.
const (
	maxShown   = 1 << 14 // versions in one question: more than this version ever holds
	maxSources = 256     // peers that wait to be asked
	maxAsked   = 8       // peers at once
	// maxRounds bounds the answers of one peer in a row: so many that all that can be held fits.
	maxRounds = 2 * document.MaxHeld * document.MaxBody / maxAnswer
)

// How long to wait before a question that was lost is asked again. Who has just joined may not
// be known to all yet; push/pull, which heals the rest, comes only after half a minute.
const (
	askFirst = 100 * time.Millisecond
	askLast  = time.Second
	// compareEvery is how often a peer that does not know what the mesh has asks the others.
	compareEvery = 2 * time.Second
)

// documentAnswer is what is missing, whether there is more, and whether who sends it is synced.
type documentAnswer struct {
	Documents [][]byte        `cbor:"1,keyasint,omitempty"`
	More      bool            `cbor:"2,keyasint,omitempty"`
	Synced    bool            `cbor:"3,keyasint,omitempty"`
	Marks     []document.Mark `cbor:"4,keyasint,omitempty"` // with the last of several answers
}

// Handlers answer the documents' requests of other peers.
func (d *Documents) Handlers() map[string]Handler {
	return map[string]Handler{requestMissing: d.serveMissing}
}

// serveMissing answers with what the asker lacks, and asks it in turn if it has what we lack.
func (d *Documents) serveMissing(_ context.Context, from peer.ID, payload []byte) ([]byte, error) {
	var theirs []document.Held
	if err := decoding.Unmarshal(payload, &theirs); err != nil {
		return nil, err
	}
	if len(theirs) > maxShown {
		return nil, fmt.Errorf("%d versions in one question, at most %d are allowed", len(theirs), maxShown)
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

// behind reports whether who sent the news has something that we lack, as far as it tells. The
// caller holds the lock.
func (d *Documents) behind(n documentNews) bool {
	if slices.ContainsFunc(n.Held, d.set.Lacks) {
		return true
	}
	digest := d.set.Digest(d.now())
	return len(n.Digest) > 0 && string(n.Digest) != string(digest[:])
}

// want notes that another peer has what we lack. Of more than we can note, push/pull tells
// again. The caller holds the lock.
func (d *Documents) want(n documentNews) {
	if _, known := d.wanted[n.From]; known || len(d.wanted) < maxSources {
		n.Documents, n.Marks = nil, nil
		d.wanted[n.From] = n
		d.kick()
	}
}

func (d *Documents) kick() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// fetch asks those that have what we still lack: some at once, each of them once at a time.
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

// start asks one peer for what it has. The caller holds the lock.
func (d *Documents) start(ctx context.Context, group *sync.WaitGroup, n documentNews) {
	d.busy[n.From] = n
	group.Go(func() {
		if err := d.fetchAll(ctx, n.From); err != nil && ctx.Err() == nil {
			d.cfg.Log.Debug("documents not fetched", "peer", d.cfg.Mesh.Name(n.From), "err", err)
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		if delete(d.busy, n.From); len(d.wanted) > 0 {
			d.kick()
		}
	})
}

// compare asks those whose push/pull has not come yet, while this peer does not know what
// the mesh has: of many that start together, some miss each other's first one, and the
// next comes only after half a minute.
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

// underway reports whether the source is being asked, or another one for the same: all that
// fetched something tell so. The caller holds the lock.
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

// fetchAll gets all from one peer that it has and we lack.
func (d *Documents) fetchAll(ctx context.Context, source peer.ID) error {
	var fresh []*document.Document
	defer func() { // only at the end: half of it is nothing that anybody lacks
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
			return fmt.Errorf("documents: %w", err)
		}
		if len(answer.Documents) > document.MaxHeld || len(answer.Marks) > document.MaxWriters {
			return fmt.Errorf("documents: an answer with %d of them", len(answer.Documents))
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
	return errors.New("documents: there is more without end")
}

// ask shows a peer what we have. A question that got no answer is asked again, a few times.
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

// compared notes that we have all that another peer has. That tells what the mesh has if that
// peer knew it; and if nobody who can be reached does, what all of them have together is what
// there is. What it had before and has no more, we know as well. The caller holds the lock.
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

// metAll reports whether we have had all that any peer has that can be reached.
func (d *Documents) metAll() bool {
	for _, id := range d.cfg.Mesh.Others() {
		if !d.all[id] && d.cfg.Mesh.Reachable(id) {
			return false
		}
	}
	return len(d.all) > 0
}

// Synced reports whether this peer knows what the mesh has agreed on: in this run or an
// earlier one, it has had all documents of a peer that did, or founded the mesh.
func (d *Documents) Synced() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.synced
}

// MarkSynced is for who founds a mesh: what it has is what there is. It is kept at once.
func (d *Documents) MarkSynced() error {
	d.mu.Lock()
	changed := !d.synced
	d.synced = true
	d.mu.Unlock()
	if changed {
		d.cfg.Changed()
	}
	if err := d.flush(); err != nil {
		return fmt.Errorf("mesh: %w", err)
	}
	return nil
}
