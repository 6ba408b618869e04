package check

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/errgroup"

	"weft/prog/agent/statedir"
	"weft/prog/api"
	"weft/prog/words"
	"weft/router/link"
)

// measure tests what the report does not have.
func (c *Checker) measure(ctx context.Context, r api.Report) measured {
	m := newMeasured()
	m.disk = statedir.CheckDisk(c.cfg.StateDir)
	var group errgroup.Group
	group.Go(func() error {
		m.dns = askServer(ctx, r.DNS)
		return nil
	})
	pingAll(ctx, r, &m)
	_ = group.Wait() // its function returns no error
	m.forwarding(r)
	return m
}

// forwarding notes links of endpoints that are down, and links between which the kernel does not forward packets.
func (m *measured) forwarding(r api.Report) {
	paths := [][]string{{"ipv4", "ip_forward"}, {"ipv6", "conf", "all", "forwarding"}}
	links := []string{link.Device}
	for _, e := range r.Endpoints {
		if l, err := net.InterfaceByName(e.HostLink); err != nil || l.Flags&net.FlagUp == 0 {
			m.links = append(m.links, e.HostLink+" of "+cmp.Or(e.Name, e.ContainerID))
			continue
		}
		links = append(links, e.HostLink)
	}
	for _, name := range links {
		paths = append(paths, []string{"ipv4", "conf", name, "forwarding"}, []string{"ipv6", "conf", name, "forwarding"})
	}
	for _, path := range paths {
		if link.SysctlIs("0", path...) && (path[0] == "ipv4" || r.Router.IPv6) {
			m.sysctls = append(m.sysctls, "net."+strings.Join(path, "."))
		}
	}
}

// askServer asks the name server at its first address for its own domain.
func askServer(ctx context.Context, d api.DNS) error {
	if d.Off || d.Problem != "" || len(d.Listening) == 0 {
		return nil
	}
	q := new(dns.Msg).SetQuestion(dns.Fqdn(d.Domain), dns.TypeSOA)
	client := dns.Client{Timeout: time.Second}
	server := netip.AddrPortFrom(d.Listening[0], 53).String()
	answer, _, err := client.ExchangeContext(ctx, q, server)
	if err != nil {
		answer, _, err = client.ExchangeContext(ctx, q, server) // one packet may be lost
	}
	switch {
	case err != nil:
		return fmt.Errorf("%s: %s", server, words.Cause(err))
	case answer.Rcode != dns.RcodeSuccess:
		return fmt.Errorf("%s answers %s to a question about its own domain", server, dns.RcodeToString[answer.Rcode])
	}
	return nil
}

func newMeasured() measured {
	return measured{silent: map[string][]string{}, quiet: map[string][]string{}, asked: map[string]int{}, answered: map[string]bool{}}
}

// note notes whether a peer answered. works says that its tunnel works by the measurements of the tunnel itself.
func (m *measured) note(area, name string, works bool, err error) {
	m.asked[area]++
	switch {
	case err == nil:
		m.answered[name] = true
	case works:
		m.quiet[area] = append(m.quiet[area], name+": "+words.Cause(err))
	default:
		m.silent[area] = append(m.silent[area], name+": "+words.Cause(err))
	}
}

// pingAll sends echo requests to the node addresses of all peers whose tunnels work or were not used yet, at most
// atOnce at a time.
func pingAll(ctx context.Context, r api.Report, m *measured) {
	const atOnce = 32
	var mu sync.Mutex
	var group errgroup.Group
	group.SetLimit(atOnce)
	note := func(area, name string, works bool, err error) {
		mu.Lock()
		defer mu.Unlock()
		m.note(area, name, works, err)
	}
	for _, c := range r.Router.Connections {
		i := slices.IndexFunc(r.Router.Peers, func(p api.Peer) bool { return p.ID == c.Peer })
		if i < 0 || !slices.Contains([]string{api.ConnDirect, api.ConnRelayed, api.ConnPending}, c.State) {
			continue
		}
		name := nameOf(c)
		for _, addr := range r.Router.Peers[i].Node {
			group.Go(func() error {
				area, headers := api.AreaIPv4, 20+8 // of IPv4 (RFC 791) and ICMP
				if addr.Is6() {
					area, headers = api.AreaIPv6, 40+8
				}
				err := ping(ctx, addr, 8)
				note(area, name, c.State != api.ConnPending, err)
				if err == nil && c.MTU > headers {
					note(api.AreaMTU, fmt.Sprintf("%s, %d-byte packets to %v", name, c.MTU, addr), false, ping(ctx, addr, c.MTU-headers))
				}
				return nil
			})
		}
	}
	_ = group.Wait() // its functions return no error
}
