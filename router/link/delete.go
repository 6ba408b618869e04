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

// attempts is how many times Purge deletes the listed objects.
const attempts = 3

// Purge deletes everything that list returns, in the form that list returns, until the list is
// empty. "Not found" from the kernel is no proof of absence: the kernel also compares attributes that
// the caller did not intend to match, such as a route's scope.
func Purge[T any](what string, list func() ([]T, error), remove func(T) error) error {
	var failed error
	for round := 0; ; round++ {
		left, err := Dump(list)
		switch {
		case err != nil:
			return fmt.Errorf("listing %s in order to remove them: %w", what, err)
		case len(left) == 0:
			return nil
		case round == attempts:
			return fmt.Errorf("removing %s: %d are left: %w", what, len(left), failed)
		}
		failed = errors.New("another program adds them again: find that program with `ip monitor`, and stop it")
		for _, one := range left {
			if err := remove(one); err != nil {
				failed = err
			}
		}
	}
}

// purgeRoutes removes the routes that match accepts. It reads all tables except the kernel's own table
// "local", whose routes follow from addresses.
func purgeRoutes(h *netlink.Handle, what string, match func(netlink.Route) bool) error {
	return Purge(what, func() ([]netlink.Route, error) {
		all, err := h.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
		return slices.DeleteFunc(all, func(r netlink.Route) bool { return r.Table == unix.RT_TABLE_LOCAL || !match(r) }), err
	}, func(r netlink.Route) error { return h.RouteDel(&r) })
}

// RemoveHostRoutes removes every route to a single address in addrs that leads through the link given with
// that address, whatever program added it. If a link is missing, the kernel has removed its routes
// already.
func RemoveHostRoutes(addrs map[netip.Addr]string) error {
	h, err := Handle()
	if err != nil {
		return err
	}
	defer h.Close()
	indexes := map[string]int{}
	for _, name := range addrs {
		if _, known := indexes[name]; known {
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

// leadsInto reports whether a route, or one of its nexthops, leads through a link.
func leadsInto(r netlink.Route, index int) bool {
	return r.LinkIndex == index || slices.ContainsFunc(r.MultiPath, func(hop *netlink.NexthopInfo) bool { return hop.LinkIndex == index })
}

// DeleteLink removes a link. A missing link is no error.
func DeleteLink(h *netlink.Handle, name string) error {
	list := func() ([]netlink.Link, error) { return named(h, name) }
	return Purge("link "+name, list, func(l netlink.Link) error { return h.LinkDel(l) })
}

// longestPoll is the longest interval between two checks whether a link is gone.
const longestPoll = 20 * time.Millisecond

// RemoveLink deletes a link. It returns when the link has left all tables of this host: it has no
// name, no addresses and no routes, and receives no packets. The kernel then waits for an RCU grace
// period of tens of milliseconds, and a goroutine waits with it. The deletion is by index and happens
// once, since another link may get the name meanwhile.
func RemoveLink(name string) error {
	polling, err := Handle()
	if err != nil {
		return err
	}
	defer polling.Close()
	found, err := named(polling, name)
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
	for wait := time.Millisecond; ; wait = min(2*wait, longestPoll) {
		select {
		case <-deleted:
			return DeleteLink(polling, name) // finds nothing, or returns why the link is still there
		case <-time.After(wait):
		}
		// The kernel answers only after the deletion, never during it: lookup and deletion hold the
		// same lock.
		if left, err := named(polling, name); err == nil && len(left) == 0 {
			return nil
		}
	}
}

// named returns the link with a name, or none.
func named(h *netlink.Handle, name string) ([]netlink.Link, error) {
	l, err := h.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil, nil
	}
	return []netlink.Link{l}, err
}
