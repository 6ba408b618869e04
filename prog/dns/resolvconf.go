package dns

import (
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// resolvConf reads the host's resolv.conf. It belongs to the goroutine of Run.
//
// It uses all nameserver lines, in their order. Search lists and ndots are for clients, which have
// their own. It ignores timeout, attempts and rotate: the server's fixed values suit many clients
// better than those chosen for one process.
type resolvConf struct {
	path string
	last os.FileInfo
	read bool
}

// changed reads the file again if it was replaced or written to. A missing file has no servers. The C
// library would assume 127.0.0.1, but without a file no server was configured.
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
