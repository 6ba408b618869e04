package network

import (
	"cmp"
	"slices"

	"weft/prog/api"
	"weft/prog/words"
)

// Bounds of a summary, also of one that a peer sends.
const (
	mostLinks    = 64
	mostProblems = 32
	mostText     = 1000 // characters of one text
)

// summarize makes the summary of the host that made a report.
func summarize(r api.Report) api.Host {
	h := api.Host{
		Version: r.Version, Ready: r.Ready, NotReady: r.NotReady, Datapath: r.Router.Datapath, Endpoints: len(r.Endpoints), Isolated: r.Policy.Isolated,
		Active: r.IPAM.Active, Free: r.IPAM.Free, Problems: r.Problems, Links: []api.Link{},
	}
	for _, n := range r.Policy.Dropped {
		h.Dropped += n
	}
	links := slices.Clone(r.Router.Connections)
	slices.SortStableFunc(links, func(a, b api.Connection) int {
		return cmp.Or(rank(a)-rank(b), cmp.Compare(b.ReceivedRate+b.SentRate, a.ReceivedRate+a.SentRate))
	})
	for i, c := range links {
		if c.State == api.ConnDirect {
			h.Direct++
			if i >= mostLinks {
				h.More++
			}
		}
		if i < mostLinks {
			h.Links = append(h.Links, api.Link{
				Peer: c.Peer, State: c.State, Info: c.Info, Via: c.Via, RoundTrip: c.RoundTrip, Loss: c.Loss, ReceivedRate: c.ReceivedRate, SentRate: c.SentRate,
			})
		}
	}
	bound(&h)
	return h
}

// rank sorts tunnels that need attention first.
func rank(c api.Connection) int {
	switch c.State {
	case api.ConnDirect:
		return 2
	case api.ConnRelayed:
		return 1
	}
	return 0
}

// bound keeps a summary within its bounds, and its texts printable.
func bound(h *api.Host) {
	h.Links, h.Problems = h.Links[:min(len(h.Links), mostLinks)], slices.Clone(h.Problems[:min(len(h.Problems), mostProblems)])
	for i := range h.Links {
		l := &h.Links[i]
		clean(&l.Peer, &l.State, &l.Info)
		l.Via = slices.Clone(l.Via[:min(len(l.Via), mostLinks)])
		for i := range l.Via {
			clean(&l.Via[i])
		}
	}
	for i := range h.Problems {
		p := &h.Problems[i]
		clean(&p.Area, &p.Reason, &p.What, &p.Effect, &p.Fix)
	}
	clean(&h.Error, &h.Version, &h.NotReady, &h.Datapath)
	if h.Links == nil {
		h.Links = []api.Link{}
	}
}

func clean(texts ...*string) {
	for _, t := range texts {
		*t = words.Printable(*t, mostText)
	}
}
