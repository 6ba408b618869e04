package browser

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"weft/prog/api"
)

// peerID makes up the id of a host.
func peerID(i int) string { return fmt.Sprintf("%016x", uint64(i+1)*0x9e3779b97f4a7c15) }

// three is a network of three hosts: the link between h1 and h3 is cut, and h2 has a problem.
func three() *fakeAgent {
	a := &fakeAgent{}
	for i := range 3 {
		a.network.Hosts = append(a.network.Hosts, api.Host{
			Peer: peerID(i), Nickname: fmt.Sprintf("h%d", i+1), Self: i == 0, State: "running", Version: "v1.4.0", Ready: true, Datapath: "kernel",
			Underlay: []netip.Addr{addr("192.0.2.%d", i+1), addr("2001:db8::%d", i+1)}, Node: []netip.Addr{addr("10.32.%d.1", i*64)},
			Endpoints: 4, Isolated: i, Dropped: uint64(i * 37), Active: 5, Free: 349000,
		})
	}
	a.link(0, 1, 0.00042, 1_240_000, 88_000)
	a.link(1, 2, 0.00051, 310_000, 290_000)
	a.link(0, 2, 0.00118, 42_000, 57_000)
	a.cut(0, 2, 1)
	a.network.Hosts[1].Problems = []api.Problem{{
		Reason: "ForwardDropped", What: "Docker's firewall drops packets to containers on this host",
		Effect: "containers on h2 are not reached from other hosts", Fix: "allow Weft's packets: `iptables -I DOCKER-USER -o weft+ -j ACCEPT`",
	}}
	a.network.Taken, a.network.Endpoints, a.network.Cluster = time.Now(), "1", "7c1ab0f2"
	a.network.Ring = ring(a.network.Hosts, []string{"10.32.0.0/14 10.36.0.0/15", "10.38.0.0/15 10.40.0.0/14", "10.44.0.0/14"})
	names := []struct{ namespace, name, labels string }{
		{"shop", "web-0", "app=web tier=front"},
		{"shop", "web-1", "app=web tier=front"},
		{"shop", "cart-0", "app=cart tier=back"},
		{"shop", "db-0", "app=db tier=data"},
		{"monitoring", "prometheus-0", "app=prometheus"},
		{"monitoring", "grafana-0", "app=grafana"},
		{"payments", "api-0", "app=api pci=yes"},
		{"payments", "ledger-0", "app=ledger pci=yes"},
		{"kube-system", "coredns-0", "k8s-app=kube-dns"},
		{"kube-system", "coredns-1", "k8s-app=kube-dns"},
		{"build", "runner-0", "app=runner"},
		{"build", "runner-1", "app=runner"},
	}
	for i, n := range names {
		a.endpoints = append(a.endpoints, endpoint(i%3, n.namespace, n.name, n.labels, fmt.Sprintf("10.%d.0.%d", 32+4*(i%3), 10+i)))
	}
	a.flows = flowsOf(a, time.Now())
	a.matrix, a.explain = matrixOf(a), explainShop
	return a
}

func endpoint(host int, namespace, name, labels, address string) api.NetworkEndpoint {
	e := api.NetworkEndpoint{
		ID: fmt.Sprintf("%s/%s-%s/eth0", peerID(host), namespace, name), Namespace: namespace, Name: name,
		Labels: map[string]string{}, Addresses: []netip.Addr{addr("%s", address)}, Peer: peerID(host),
	}
	for l := range strings.FieldsSeq(labels) {
		k, v, _ := strings.Cut(l, "=")
		e.Labels[k] = v
	}
	return e
}

// link adds a direct tunnel, as both its ends measure it.
func (a *fakeAgent) link(i, j int, roundTrip, sent, received float64) {
	for _, end := range []struct {
		from, to  int
		out, back float64
	}{{i, j, sent, received}, {j, i, received, sent}} {
		h := &a.network.Hosts[end.from]
		h.Links = append(h.Links, api.Link{
			Peer: a.network.Hosts[end.to].Peer, State: api.ConnDirect, RoundTrip: &roundTrip, Loss: new(0.0), SentRate: end.out, ReceivedRate: end.back,
		})
		h.Direct++
	}
}

// set changes the state of a tunnel at both ends.
func (a *fakeAgent) set(i, j int, change func(*api.Link)) {
	for _, end := range [][2]int{{i, j}, {j, i}} {
		h := &a.network.Hosts[end[0]]
		k := slices.IndexFunc(h.Links, func(l api.Link) bool { return l.Peer == a.network.Hosts[end[1]].Peer })
		if h.Links[k].State == api.ConnDirect {
			h.Direct--
		}
		change(&h.Links[k])
		if h.Links[k].State == api.ConnDirect {
			h.Direct++
		}
	}
}

// cut moves a tunnel to a relay.
func (a *fakeAgent) cut(i, j, relay int) {
	a.set(i, j, func(l *api.Link) { l.State, l.Via = api.ConnRelayed, []string{a.network.Hosts[relay].Peer} })
}

func ring(hosts []api.Host, ranges []string) api.IPAM {
	r := api.IPAM{Status: "ready", Ring: "1", Range: "10.32.0.0/12", Range6: "fd3c:9ad1:77::/96", Size: 1 << 20}
	for i, text := range ranges {
		o := api.Owner{Peer: hosts[i].Peer, Nickname: hosts[i].Nickname, Self: hosts[i].Self, Reachable: hosts[i].Error == ""}
		for p := range strings.FieldsSeq(text) {
			o.Ranges = append(o.Ranges, p)
			o.Slots += 1 << (32 - netip.MustParsePrefix(p).Bits())
		}
		o.Percent = 100 * float64(o.Slots) / float64(r.Size)
		o.Usage = &api.Usage{Active: 5, Free: o.Slots - 5}
		r.Owners = append(r.Owners, o)
	}
	return r
}

func flowEnd(e api.NetworkEndpoint, nickname string) api.FlowEnd {
	return api.FlowEnd{Namespace: e.Namespace, Name: e.Name, Labels: e.Labels, Peer: e.Peer + "(" + nickname + ")"}
}

func flowsOf(a *fakeAgent, now time.Time) (out []api.Flow) {
	for i, c := range []struct {
		from, to int
		port     int
		protocol string
		verdict  string
		bytes    uint64
	}{
		{0, 2, 8080, "TCP", api.FlowAllowed, 48_200},
		{2, 3, 5432, "TCP", api.FlowAllowed, 1_930_000},
		{4, 0, 9090, "TCP", api.FlowAllowed, 730_000},
		{10, 3, 5432, "TCP", api.FlowDenied, 360},
		{0, 8, 53, "UDP", api.FlowAllowed, 640},
		{1, 8, 53, "UDP", api.FlowAllowed, 712},
		{6, 7, 8443, "TCP", api.FlowAllowed, 92_100},
		{5, 4, 9090, "TCP", api.FlowAllowed, 512_000},
		{11, 6, 8443, "TCP", api.FlowDenied, 180},
		{2, 6, 443, "TCP", api.FlowAudit, 3_400},
		{1, 2, 8080, "TCP", api.FlowAllowed, 61_000},
		{10, 3, 5432, "TCP", api.FlowDenied, 600},
	} {
		from, to := a.endpoints[c.from], a.endpoints[c.to]
		h := a.network.Hosts[c.to%3]
		f := api.Flow{
			ID: uint64(i + 1), Peer: h.Peer, Nickname: h.Nickname, Start: now.Add(time.Duration(i-40) * time.Second), Last: now.Add(time.Duration(i-12) * time.Second),
			Verdict: c.verdict, Protocol: c.protocol, Source: addrPort("%v:%d", from.Addresses[0], 40000+i), Destination: addrPort("%v:%d", to.Addresses[0], c.port),
			From: flowEnd(from, a.network.Hosts[c.from%3].Nickname), To: flowEnd(to, h.Nickname), SentBytes: c.bytes / 3, SentPackets: c.bytes/900 + 1, ReceivedBytes: c.bytes, ReceivedPackets: c.bytes/700 + 1,
		}
		if c.verdict != api.FlowAllowed {
			f.Direction, f.Policy, f.Rule, f.ReceivedBytes, f.ReceivedPackets = "ingress", to.Namespace+"/"+to.Labels["app"], "spec.ingress[0]", 0, 0
			f.Why = fmt.Sprintf("%s spec.ingress[0]: the source %s/%s matches no peer of the rule", f.Policy, from.Namespace, from.Name)
		}
		out = append(out, f)
	}
	return out
}

// matrixOf makes up access between namespaces: the same namespace all, payments none from others, and some elsewhere.
func matrixOf(a *fakeAgent) func(api.MatrixRequest) api.Matrix {
	return func(r api.MatrixRequest) (m api.Matrix) {
		group := func(namespace string) (out []api.Group) {
			spaces := map[string]int{}
			for _, e := range a.endpoints {
				switch {
				case namespace == "":
					spaces[e.Namespace]++
				case e.Namespace == namespace:
					out = append(out, api.Group{Name: e.Namespace + "/" + e.Name, Endpoints: 1, Examples: []string{e.Namespace + "/" + e.Name}})
				}
			}
			for name, n := range spaces {
				out = append(out, api.Group{Name: name, Endpoints: n, Examples: []string{name + "/x"}})
			}
			slices.SortFunc(out, func(x, y api.Group) int { return strings.Compare(x.Name, y.Name) })
			return out[:min(len(out), 60)]
		}
		m.Rows, m.Columns = group(r.From), group(r.To)
		for i, row := range m.Rows {
			var cells []api.Access
			for j, column := range m.Columns {
				from, _, _ := strings.Cut(row.Name, "/")
				to, _, _ := strings.Cut(column.Name, "/")
				switch {
				case from == to && to != "payments":
					cells = append(cells, api.Access{Kind: api.AccessAll})
				case to == "payments" && from != "payments":
					cells = append(cells, api.Access{Kind: api.AccessNone})
				case from == "monitoring":
					cells = append(cells, api.Access{Kind: api.AccessSome, Ports: "9090/TCP"})
				case (i+j)%3 == 0:
					cells = append(cells, api.Access{Kind: api.AccessSome})
				default:
					cells = append(cells, api.Access{Kind: api.AccessAll})
				}
			}
			m.Cells = append(m.Cells, cells)
		}
		return m
	}
}

// explainShop denies every connection to shop/db-0 but those of shop/cart-0.
func explainShop(r api.ExplainRequest) (api.Explanation, error) {
	if r.Source == "nobody" {
		return api.Explanation{}, &api.Error{Code: api.CodeNotFound, Message: `nothing is called "nobody": give NAMESPACE/NAME, or an address`}
	}
	allowed := r.Destination != "shop/db-0" || r.Source == "shop/cart-0"
	from, to := addr("10.32.0.10"), addr("10.36.0.13")
	v := api.Verdict{
		Source: from, Destination: to, Allowed: allowed,
		Egress:  api.Decision{Endpoint: r.Source, Peer: peerID(0) + "(h1)", Allowed: true, Kernel: &api.Kernel{Allowed: true}},
		Ingress: api.Decision{Endpoint: r.Destination, Peer: peerID(0) + "(h1)", Allowed: allowed, Policies: []string{"shop/db"}, Kernel: &api.Kernel{Allowed: allowed, Chain: "in-12", Dropped: 41}},
	}
	reason := api.Reason{Policy: "shop/db", Rule: "spec.ingress[0]", Text: "the source has the labels app=cart, as the rule's podSelector wants"}
	if allowed {
		v.Ingress.By = &reason
	} else {
		reason.Text = "the source's labels app=web,tier=front do not match the rule's podSelector app=cart"
		v.Ingress.Misses = []api.Reason{reason}
	}
	port := "any"
	if r.Port != 0 {
		port = fmt.Sprintf("%d/%s", r.Port, r.Protocol)
	}
	return api.Explanation{
		Source:      api.Party{Asked: r.Source, Endpoint: r.Source, Labels: map[string]string{"app": "web", "tier": "front"}, Addresses: []netip.Addr{from}, Peer: peerID(0) + "(h1)"},
		Destination: api.Party{Asked: r.Destination, Endpoint: r.Destination, Labels: map[string]string{"app": "db"}, Addresses: []netip.Addr{to}, Peer: peerID(0) + "(h1)"},
		Port:        port, Verdicts: []api.Verdict{v},
	}, nil
}

// many is a network of hosts with 20 endpoints each, of which some have faults.
func many(hosts int) *fakeAgent {
	a := &fakeAgent{}
	var ranges []string
	for i := range hosts {
		h := api.Host{
			Peer: peerID(i), Nickname: fmt.Sprintf("node-%03d", i+1), Self: i == 0, State: "running", Version: "v1.4.0", Ready: true, Datapath: "kernel",
			Underlay: []netip.Addr{addr("192.0.%d.%d", i/250, i%250+1)}, Endpoints: 20, Active: 21, Free: 2000, Direct: hosts - 1,
		}
		switch {
		case i%97 == 41:
			h.Error, h.State, h.Ready = "it did not answer within 2s", "unreachable", false
		case i%61 == 30:
			h.Problems = []api.Problem{{Reason: "ClockSkew", What: "its clock is 3 s late", Effect: "times of flows are wrong", Fix: "start a time service, such as `systemctl start chrony`"}}
		}
		a.network.Hosts = append(a.network.Hosts, h)
		ranges = append(ranges, fmt.Sprintf("10.%d.%d.0/22", 32+i/64, i%64*4))
	}
	for i := range hosts {
		for k := range 64 { // as many as a host reports
			if j := (i + 1 + k*7) % hosts; j != i && a.network.Hosts[i].Error == "" {
				l := api.Link{Peer: peerID(j), State: api.ConnDirect, RoundTrip: new(0.0003 + float64((i*j)%17)*0.0001), SentRate: float64((i * 7919 * (k + 1)) % 900_000), ReceivedRate: float64((j * 104729) % 700_000)}
				if (i*31+j)%1373 == 0 {
					l.State, l.Via = api.ConnRelayed, []string{peerID((i + 100) % hosts)}
				}
				a.network.Hosts[i].Links = append(a.network.Hosts[i].Links, l)
			}
		}
		for k := range 20 {
			e := endpoint(i, fmt.Sprintf("team-%02d", (i+k)%50), fmt.Sprintf("app-%03d-%02d", i, k), fmt.Sprintf("app=app%d tier=t%d", k, k%3), fmt.Sprintf("10.%d.%d.%d", 32+i/64, i%64*4, k+2))
			a.endpoints = append(a.endpoints, e)
		}
	}
	a.network.Taken, a.network.Endpoints = time.Now(), "1"
	a.network.Ring = ring(a.network.Hosts, ranges)
	a.matrix, a.explain = matrixOf(a), explainShop
	now := time.Now()
	for i := range 3000 {
		from, to := a.endpoints[i*7%len(a.endpoints)], a.endpoints[i*13%len(a.endpoints)]
		h := a.host(to.Peer)
		a.flows = append(a.flows, api.Flow{
			ID: uint64(i), Peer: h.Peer, Nickname: h.Nickname, Start: now, Last: now.Add(time.Duration(i-3000) * 10 * time.Millisecond), Verdict: []string{api.FlowAllowed, api.FlowAllowed, api.FlowDenied}[i%3],
			Protocol: "TCP", Source: addrPort("%v:%d", from.Addresses[0], 30000+i), Destination: addrPort("%v:%d", to.Addresses[0], 8080),
			From: flowEnd(from, "x"), To: flowEnd(to, h.Nickname), SentBytes: uint64(i * 100), SentPackets: 3,
		})
	}
	return a
}
