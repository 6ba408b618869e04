package dns

import (
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// resolvConf is what the host's resolv.conf says. It belongs to Run.
//
// Of the file, the lines `nameserver` count, all of them and in their order. Search lists
// and ndots are for clients, which have their own; timeout, attempts and rotate have fixed
// counterparts here, which suit many clients better than what one process chose.
type resolvConf struct {
	path string
	last os.FileInfo
	read bool
}

// changed reads the file again if it is another one than before, or was written to. A
// missing file has no servers, and neither is 127.0.0.1 assumed, as the C library does:
// where nobody wrote a file, nobody set up a server.
func (c *resolvConf) changed() (servers []netip.Addr, changed bool, err error) {
	now, err := os.Stat(c.path)
	if err != nil {
		now = nil
	}
	same := c.last == nil && now == nil ||
		c.last != nil && now != nil && os.SameFile(c.last, now) && c.last.ModTime().Equal(now.ModTime()) && c.last.Size() == now.Size()
	if c.read && same {
		return nil, false, nil
	}
	c.last, c.read = now, true
	if err != nil {
		return nil, true, err
	}
	conf, err := dns.ClientConfigFromFile(c.path)
	if err != nil {
		return nil, true, err
	}
	for _, s := range conf.Servers {
		a, err := netip.ParseAddr(strings.TrimSpace(s))
		if err == nil && !slices.Contains(servers, a.Unmap()) {
			servers = append(servers, a.Unmap())
		}
	}
	return servers, true, nil
}
