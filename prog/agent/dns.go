package agent

import (
	"context"
	"net/netip"
	"strings"
	"time"

	"weft/ipam"
	"weft/prog/api"
	"weft/prog/dns"
	"weft/router/endpoint"
	"weft/router/link"
)

// DNSOptions are the operator's part of the name server.
type DNSOptions struct {
	Off         bool
	Domain      string                      // without the last dot
	TTL         time.Duration               // of answers about the network
	PreferLocal bool                        // endpoints of this host come first
	Forward     map[string][]netip.AddrPort // names below a domain are asked of these servers
	Fallback    bool                        // containers get this host's own server as a second one
	ResolvConf  string                      // where this host's own servers are named
}

func (a *Agent) makeDNS() (err error) {
	o := a.opts.DNS
	if o.Off {
		return nil
	}
	a.dns, err = dns.New(dns.Config{
		Domain: o.Domain, TTL: o.TTL, PreferLocal: o.PreferLocal, Self: a.self(), Names: names{a},
		Client: a.dnsClient, Forward: o.Forward, ResolvConf: o.ResolvConf, Log: a.log,
		Own: func(addr netip.Addr) bool { return addr == endpoint.Gateway4 || addr.WithZone("") == endpoint.Gateway6 },
	})
	return err
}

// serveDNS runs the name server, if there is to be one, until the function that it returns is
// called: it goes on answering while the agent says goodbye, so that a restart is short.
func (a *Agent) serveDNS(ctx context.Context) (stop func()) {
	if a.dns == nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan error, 1)
	go func() { done <- a.dns.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			a.log.Warn("the name server ended", "err", err)
		}
	}
}

// dnsClient says who asks: an endpoint of this host with its link-local address, told by
// the interface, or anybody with an address of the network, which the guard has seen to.
// Nobody else is answered: this is no open resolver. Both addresses of a slot are one client.
func (a *Agent) dnsClient(remote netip.AddrPort, zone string) (client dns.Client, ok bool) {
	addr := remote.Addr().Unmap().WithZone("")
	if addr.IsLinkLocalUnicast() {
		return dns.Client{Name: zone}, strings.HasPrefix(zone, link.EndpointPrefix)
	}
	v := a.view.Load()
	if v == nil || addr.IsLoopback() {
		return dns.Client{Name: addr.String()}, addr.IsLoopback()
	}
	s, inside := v.ring.Universe.Slot(addr)
	if !inside {
		return dns.Client{}, false
	}
	client.Name = v.ring.Universe.Addr4(s).String()
	if owner, _ := v.ring.Owner(s); owner != a.self() {
		client.Host = owner.String()
	}
	return client, true
}

// resolver is what belongs into the resolv.conf of an endpoint of a namespace.
func (a *Agent) resolver(namespace string) *api.Resolver {
	if a.dns == nil {
		return nil
	}
	domain := a.opts.DNS.Domain
	r := &api.Resolver{
		Servers: []string{endpoint.Gateway4.String()}, Domain: domain, Search: []string{domain},
		Options: []string{"ndots:2"}, // NAME.NAMESPACE is looked up here before anybody outside is asked
	}
	if namespace != "" {
		r.Search = []string{strings.ToLower(namespace) + "." + domain, domain}
	}
	if a.opts.DNS.Fallback {
		for _, u := range a.dns.Status().Upstreams {
			if u.Domain == "" && !u.Own && !u.Addr.Addr().IsLoopback() { // a container's loopback is its own
				r.Servers = append(r.Servers, u.Addr.Addr().String())
				break
			}
		}
	}
	return r
}

func (a *Agent) reportDNS(snap ipam.Snapshot) api.DNS {
	if a.dns == nil {
		return api.DNS{Off: true}
	}
	s := a.dns.Status()
	r := api.DNS{
		Domain: s.Domain, TTL: s.TTL.Seconds(), Containers: []netip.Addr{endpoint.Gateway4}, Upstreams: []api.Upstream{},
		Entries: a.directory.Named(snap.Ring), NoUpstream: s.ResolvConf, Cached: s.Cached, Counts: api.DNSCounts(s.Counts),
	}
	for _, at := range s.Sockets {
		if at.Err != "" {
			r.Problem = at.Err
			continue
		}
		r.Listening = append(r.Listening, at.Addr.Addr())
	}
	if a.ipv6 {
		r.Containers = append(r.Containers, endpoint.Gateway6)
	}
	for _, u := range s.Upstreams {
		r.Upstreams = append(r.Upstreams, api.Upstream{Domain: u.Domain, Server: u.Addr.String(), Error: u.Err, Own: u.Own})
	}
	return r
}
