package discover

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"weft/router/link"
)

// look opens sockets on new links, and closes those of links that are gone.
func (d *Discover) look(now time.Time) {
	d.looked = now
	addrs, err := link.Underlay(d.cfg.Universe)
	if err != nil { // links change at any time: keep the sockets
		d.report(place{}, err)
		return
	}
	addrs = slices.DeleteFunc(addrs, func(a link.HostAddr) bool { return a.Tunnel })
	d.mu.Lock()
	d.own = addrs
	d.mu.Unlock()
	wanted := map[place]bool{{}: true}
	d.report(place{}, nil)
	for _, a := range addrs {
		at := place{a.Link, a.Addr.Is6()}
		if wanted[at] {
			continue
		}
		wanted[at] = true
		if d.sockets[at] != nil {
			continue
		}
		s, err := open(at)
		if err != nil {
			d.report(at, err)
			continue
		}
		d.sockets[at] = s
		go s.read(d.heard) // ends when the socket is closed
	}
	for at, s := range d.sockets {
		if !wanted[at] {
			s.Close()
			delete(d.sockets, at)
		}
	}
	maps.DeleteFunc(d.trouble, func(at place, _ string) bool { return !wanted[at] })
}

// report keeps the trouble of a place, and logs it when it is new. The zero place stands for all.
func (d *Discover) report(at place, err error) {
	if err == nil {
		delete(d.trouble, at)
		return
	}
	if d.trouble[at] != err.Error() {
		d.cfg.Log.Warn("cannot look for other hosts on a link (--discover): trying again", "err", err)
	}
	d.trouble[at] = err.Error()
}

// noLink says why this host can announce itself nowhere.
func (d *Discover) noLink() string {
	why := slices.Sorted(maps.Values(d.trouble))
	if len(why) == 0 {
		why = []string{"no link has an address that other hosts could reach"}
	}
	return "it cannot announce itself: " + strings.Join(why, "; ")
}

// send sends a packet from each address of this host. A socket that cannot send is opened again.
func (d *Discover) send(packet []byte) {
	for _, a := range d.own {
		at := place{a.Link, a.Addr.Is6()}
		if s := d.sockets[at]; s != nil && !a.Unstable {
			if err := s.send(packet, a.Addr); err != nil {
				d.report(at, fmt.Errorf("sending from %v to UDP port %d: %w", a.Addr, Port, err))
				s.Close()
				delete(d.sockets, at)
			} else {
				d.report(at, nil)
			}
		}
	}
}
