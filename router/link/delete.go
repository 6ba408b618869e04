package link

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// attempts is how often Purge deletes what is left.
const attempts = 3

// Purge deletes all that a function lists, each as it is listed, until it lists nothing. That
// the kernel does not find what is to be deleted proves nothing: it compares more than what was
// meant, as the scope of a route. Only an empty list does.
func Purge[T any](what string, list func() ([]T, error), remove func(T) error) error {
	var failed error
	for round := 0; ; round++ {
		left, err := Dump(list)
		switch {
		case err != nil:
			return fmt.Errorf("remove %s: %w", what, err)
		case len(left) == 0:
			return nil
		case round == attempts:
			return fmt.Errorf("remove %s: %d are left: %w", what, len(left), failed)
		}
		failed = errors.New("others make them again")
		for _, one := range left {
			if err := remove(one); err != nil {
				failed = err
			}
		}
	}
}

// purgeRoutes removes the routes that match, of all tables but the kernel's own, which holds
// what follows from addresses.
func purgeRoutes(h *netlink.Handle, what string, match func(netlink.Route) bool) error {
	return Purge(what, func() ([]netlink.Route, error) {
		all, err := h.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
		return slices.DeleteFunc(all, func(r netlink.Route) bool { return r.Table == unix.RT_TABLE_LOCAL || !match(r) }), err
	}, func(r netlink.Route) error { return h.RouteDel(&r) })
}

// CutOff removes every route to an address, of those given, that leads into the link it is
// given with, whoever made it and however. With a link, the kernel has removed all of its
// routes.
func CutOff(addrs map[netip.Addr]string) error {
	h, err := Handle()
	if err != nil {
		return err
	}
	defer h.Close()
	indexes := map[string]int{}
	for _, name := range addrs {
		if _, asked := indexes[name]; asked {
			continue
		}
		l, err := named(h, name)
		if err != nil {
			return fmt.Errorf("link %s: %w", name, err)
		}
		for _, l := range l {
			indexes[name] = l.Attrs().Index
		}
	}
	if len(indexes) == 0 {
		return nil
	}
	return purgeRoutes(h, "routes to endpoints", func(r netlink.Route) bool {
		p, ok := prefixOf(r.Dst)
		index, exists := indexes[addrs[p.Addr()]]
		return ok && exists && p.IsSingleIP() && leadsInto(r, index)
	})
}

// leadsInto reports whether a route, or one of its ways, leads into a link.
func leadsInto(r netlink.Route, index int) bool {
	return r.LinkIndex == index || slices.ContainsFunc(r.MultiPath, func(way *netlink.NexthopInfo) bool { return way.LinkIndex == index })
}

// DeleteLink removes a link; one that is gone is no error.
func DeleteLink(h *netlink.Handle, name string) error {
	list := func() ([]netlink.Link, error) { return named(h, name) }
	return Purge("link "+name, list, func(l netlink.Link) error { return h.LinkDel(l) })
}

// longestLook is the most time between two looks at whether a link is gone.
const longestLook = 20 * time.Millisecond

// RemoveLink deletes a link, and returns once it is out of all tables of this host: it has no
// name, no addresses and no routes, and nothing comes in by it. The kernel then waits for
// readers of its memory, tens of milliseconds in which nobody needs to wait with it: the
// goroutine that asked for the deletion ends with that. It deletes by index, once: the name
// may be another link's by then.
func RemoveLink(name string) error {
	looking, err := Handle()
	if err != nil {
		return err
	}
	defer looking.Close()
	found, err := named(looking, name)
	if err != nil || len(found) == 0 {
		return err
	}
	deleting, err := Handle()
	if err != nil {
		return err
	}
	deleted := make(chan struct{})
	go func() {
		defer close(deleted)
		defer deleting.Close()
		_ = deleting.LinkDel(found[0])
	}()
	for wait := time.Millisecond; ; wait = min(2*wait, longestLook) {
		select {
		case <-deleted:
			return DeleteLink(looking, name) // nothing is left to do, or it says why that is not so
		case <-time.After(wait):
		}
		// The kernel answers after the deletion, not in its midst: both take the same lock.
		if left, err := named(looking, name); err == nil && len(left) == 0 {
			return nil
		}
	}
}

// named is the link of a name, or none.
func named(h *netlink.Handle, name string) ([]netlink.Link, error) {
	l, err := h.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil, nil
	}
	return []netlink.Link{l}, err
}
