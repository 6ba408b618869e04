package links

import (
	"bytes"
	"slices"
	"time"

	"weft/mesh/document"
	"weft/mesh/path"
	"weft/mesh/peer"
	"weft/mesh/topology"
	"weft/prog/agent/view"
)

// read is a document that was read.
type read struct {
	digest document.Digest
	links  topology.Links
}

// others are the documents of the other peers that count: each was written by the peer that it is about.
type others struct{ links map[peer.ID]read }

// read reads the documents that have changed.
func (o *others) read(docs []*document.Document, self peer.ID) {
	next := make(map[peer.ID]read, len(docs))
	for _, d := range docs {
		id := d.WriterID()
		if id == self || d.Name != id.String() {
			continue
		}
		one := o.links[id]
		if one.digest != d.Digest {
			links, err := topology.DecodeLinks(d.Body)
			if err != nil {
				continue // as if the peer said nothing
			}
			one = read{d.Digest, links}
		}
		next[id] = one
	}
	o.links = next
}

// counting returns what peers tell that have not left, and are not banned.
func (o *others) counting(s standings) map[peer.ID]topology.Links {
	out := make(map[peer.ID]topology.Links, len(o.links)+1)
	for id, r := range o.links {
		if s.known(id) {
			out[id] = r.links
		}
	}
	return out
}

// standings says how peers stand, by a view.
type standings struct {
	*view.View
	banned func(peer.ID) bool
	now    time.Time
}

// standing is how a peer stands.
type standing uint8

const (
	gone    standing = iota // it takes no part, or nothing was heard of it for long
	away                    // its agent does not run, or it may be dead
	present                 // it is alive, and its agent runs
)

// member reports whether a peer belongs to the mesh, dead or alive.
func (s standings) member(id peer.ID) bool {
	r, known := s.Records[id]
	return known && r.State != peer.Left && !s.banned(id)
}

// known reports whether a peer belongs to this host's network, dead or alive.
func (s standings) known(id peer.ID) bool {
	return s.member(id) && string(s.Records[id].Ring) == string(s.Ring.ID[:])
}

// running reports whether a peer takes part, and its agent was not stopped.
func (s standings) running(id peer.ID) bool {
	return s.known(id) && s.Records[id].State == peer.Running
}

// of returns how a peer stands.
func (s standings) of(id peer.ID) standing {
	life := path.Judge(s.now, s.Evidence[id])
	switch {
	case !s.known(id) || life == path.Dead && s.Reach[id] == topology.Lost:
		return gone
	case s.running(id) && life == path.Alive:
		return present
	}
	return away
}

// candidates returns the peers that can relay. capable may be nil.
func (s standings) candidates(self peer.ID, capable func(peer.ID) bool) (out []peer.ID) {
	for id := range s.Records {
		if id != self && s.of(id) == present && (capable == nil || capable(id)) {
			out = append(out, id)
		}
	}
	slices.SortFunc(out, func(a, b peer.ID) int { return bytes.Compare(a[:], b[:]) })
	return out
}
