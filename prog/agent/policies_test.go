package agent

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"weft/mesh"
	"weft/mesh/peer"
	"weft/prog/api"
	"weft/router/nft"
	"weft/router/policy"
)

// policed is an agent that knows its ring, with endpoints of namespace/name: labels.
func policed(t *testing.T, endpoints map[string]map[string]string) *Agent {
	t.Helper()
	a := partial(t)
	var err error
	if a.directory, err = mesh.NewDirectory(mesh.DirectoryConfig{
		Identity: a.keys.Identity, Mesh: alone{}, Store: a.store, Log: a.log, Wanted: a.wanted, Changed: a.repolice,
	}); err != nil {
		t.Fatal(err)
	}
	if err := a.documents.MarkSynced(); err != nil {
		t.Fatal(err)
	}
	node, err := a.ipam.Allocate(t.Context(), nodeKey, nil)
	if err != nil {
		t.Fatal(err)
	}
	snap, err := a.ipam.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for name, labels := range endpoints {
		ref := a.give(t, "id-"+strings.ReplaceAll(name, "/", "-"))
		e := a.endpoint(ref.Key())
		e.Namespace, e.Name, _ = strings.Cut(name, "/")
		e.Labels = labels
	}
	a.view.Store(&view{ring: snap.Ring, owners: snap.Ring.Owned(), present: map[peer.ID]bool{a.self(): true}, records: map[peer.ID]peer.Record{
		a.self(): {Nickname: "here", Node: node},
	}})
	return a
}

const shopYAML = `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: web}}}]
    ports: [{port: 5432}]
`

func shop(t *testing.T) *Agent {
	return policed(t, map[string]map[string]string{
		"shop/db": {"app": "db"}, "shop/web": {"app": "web"}, "jobs/batch": {"app": "batch"}, "jobs/db": {"app": "db"},
	})
}

func apply(t *testing.T, a *Agent, manifest string) (api.ApplyReply, error) {
	t.Helper()
	return a.ApplyPolicy(t.Context(), api.ApplyRequest{Manifest: manifest})
}

// What is applied is in the program; what is deleted is out of it; what cannot be read
// changes nothing.
func TestPoliciesFollowDocuments(t *testing.T) {
	a := shop(t)
	for _, want := range []string{api.Created, api.Unchanged} {
		reply, err := apply(t, a, shopYAML)
		if err != nil || len(reply.Changes) != 1 || reply.Changes[0].Change != want || reply.Generation != a.policies.enforced {
			t.Fatalf("%+v, %v; want %s", reply, err, want)
		}
	}
	if p := a.policies.compiler.Program(); len(p.Isolated) != 1 || len(p.Chains) != 1 || len(p.Sets) != 1 || len(p.Sets[0].Addrs) != 1 {
		t.Errorf("%+v", p)
	}
	for _, bad := range []string{strings.Replace(shopYAML, "ingress:", "ingres:", 1), shopYAML + "---\nkind: Pod\n", ""} {
		_, err := apply(t, a, bad)
		if e, ok := errors.AsType[*api.Error](err); !ok || e.Code != api.CodeBadRequest {
			t.Errorf("%q: %v", bad, err)
		}
	}
	list, err := a.Policies(t.Context())
	if err != nil || len(list) != 1 || list[0].Endpoints != 1 || list[0].Selector != "app=db" || !slices.Equal(list[0].Types, []string{"Ingress"}) {
		t.Errorf("%+v, %v", list, err)
	}
	_, err = a.DeletePolicy(t.Context(), api.DeleteRequest{Refs: []api.DocumentRef{list[0].DocumentRef, {Kind: api.KindPolicy, Namespace: "shop", Name: "other"}}})
	if e, ok := errors.AsType[*api.Error](err); !ok || e.Code != api.CodeNotFound || len(a.documents.List(kindPolicy)) != 1 {
		t.Errorf("half a deletion: %v", err)
	}
	if _, err := a.DeletePolicy(t.Context(), api.DeleteRequest{Manifest: shopYAML}); err != nil || len(a.policies.compiler.Program().Isolated) != 0 {
		t.Errorf("%v: %+v", err, a.policies.compiler.Program())
	}
}

// A document that this version does not understand is said, and the others are enforced.
func TestUnreadDocuments(t *testing.T) {
	a := shop(t)
	if err := a.documents.Write([]mesh.Change{
		{Kind: kindPolicy, Name: "shop/new", Body: []byte("apiVersion: networking.k8s.io/v9\nkind: NetworkPolicy\n")},
		{Kind: kindPolicy, Name: "shop/other", Body: []byte(shopYAML)},
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := apply(t, a, shopYAML); err != nil {
		t.Fatal(err)
	}
	if w := a.policyWarnings(); len(w) != 2 || !strings.Contains(w[0].text, "shop/new") || !strings.Contains(w[1].text, "it is not the networkpolicy shop/other") || len(a.policies.list) != 1 {
		t.Errorf("%+v, %v", w, a.policies.list)
	}
}

// A policy of which this version cannot read a part is in force without it, and shown as such:
// here by everybody's status, by the list, and by one warning.
func TestPartlyUnreadDocuments(t *testing.T) {
	a := shop(t)
	odd := strings.Replace(shopYAML, "{port: 5432}", "{port: 443, protocol: QUIC}, {port: 5432}", 1)
	if err := a.documents.Write([]mesh.Change{{Kind: kindPolicy, Name: "shop/db", Body: []byte(odd)}}); err != nil {
		t.Fatal(err)
	}
	if err := a.settled(); err != nil {
		t.Fatal(err)
	}
	const says = `spec.ingress[0].ports[0].protocol: "QUIC" is not TCP, UDP or SCTP`
	if w := a.policyWarnings(); len(w) != 1 || !strings.Contains(w[0].text, "shop/db is not read as it was written ("+says+")") || w[0].about != "shop/db" || w[0].elsewhere {
		t.Errorf("%+v", w)
	}
	a.policies.compiler.Remove(a.self().String() + "/id-shop-db/eth0")
	if w := a.policyWarnings(); len(w) != 1 || !w[0].elsewhere {
		t.Errorf("it selects nobody here: %+v", w)
	}
	a.policies.here = here{}
	status := policyAnswers{PolicyStatus: api.PolicyStatus{Generation: a.generation()}}
	status.policies(a.policies.list)
	status.add(a.self(), "here", a.inForce())
	status.add(peer.ID{1}, "knows more", inForce{Generation: a.generation(), Policies: map[string]int{"shop/db": 1}})
	if p := status.Policies; len(p) != 1 || p[0].Peers != 2 || !slices.Equal(p[0].Unread, []string{says}) {
		t.Errorf("%+v", status)
	}
	list, err := a.Policies(t.Context())
	if err != nil || len(list) != 1 || !slices.Equal(list[0].Unread, []string{says}) {
		t.Errorf("%+v, %v", list, err)
	}
	if r := a.reportPolicy(); r.Policies != 1 || r.Partial != 1 {
		t.Errorf("%+v", r)
	}
	for port, allowed := range map[uint16]bool{443: false, 5432: true} {
		if e, err := a.Explain(t.Context(), api.ExplainRequest{Source: "web", Destination: "shop/db", Port: port}); err != nil || e.Verdicts[0].Allowed != allowed {
			t.Errorf("%d: %+v, %v", port, e, err)
		}
	}
	if _, err := apply(t, a, odd); err == nil || !strings.Contains(err.Error(), "line 8: spec.ingress[0].ports[0].protocol") {
		t.Errorf("it can be applied: %v", err)
	}
}

// Before a host knows the policies of the network nobody can write over them.
func TestNothingIsWrittenBlindly(t *testing.T) {
	a := partial(t)
	_, err := apply(t, a, shopYAML)
	if e, ok := errors.AsType[*api.Error](err); !ok || e.Code != api.CodeNotReady || len(a.documents.List(kindPolicy)) != 0 {
		t.Errorf("%v, %v", err, a.documents.List(kindPolicy))
	}
}

// Whom words name.
func TestSides(t *testing.T) {
	a := shop(t)
	k := a.know()
	web := k.world.Endpoints[slices.IndexFunc(k.world.Endpoints, func(e policy.Endpoint) bool { return e.Name == "web" })]
	for word, want := range map[string]string{
		"web": "shop/web", "shop/web": "shop/web", "web.shop": "shop/web", "here/web": "shop/web", "id-shop-w": "shop/web", "here/id-shop-w": "shop/web",
		"jobs/db": "jobs/db", web.Addrs[0].String(): "shop/web", "10.32.0.1": "the node", "here": "the node", "192.0.2.7": "",
		"db": "names several", "nobody": "is no container", "id-": "names several", "here/": "is no container",
	} {
		s, err := a.side(word, k.world)
		got := s.Endpoint
		switch {
		case err != nil:
			got = err.Error()
		case s.Node:
			got = "the node"
		}
		if got != want && (err == nil || !strings.Contains(got, want)) {
			t.Errorf("%s: %q, want %q", word, got, want)
		}
	}
}

// Without a port, an explanation says which can be reached.
func TestExplain(t *testing.T) {
	a := shop(t)
	if _, err := apply(t, a, shopYAML); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		src, dst, open string
		allowed        bool
		exempt         bool
	}{
		{"web", "shop/db", "5432/TCP", true, false},
		{"batch", "shop/db", "none", false, false},
		{"shop/db", "batch", "all", true, false},
		{"here", "shop/db", "all", true, true},
		{"192.0.2.7", "shop/db", "none", false, false},
	} {
		e, err := a.Explain(t.Context(), api.ExplainRequest{Source: c.src, Destination: c.dst})
		if err != nil || len(e.Verdicts) == 0 || e.Verdicts[0].Allowed != c.allowed || (e.Verdicts[0].Exempt != "") != c.exempt || !c.exempt && e.Open != c.open {
			t.Errorf("%s to %s: %+v, %v", c.src, c.dst, e, err)
		}
	}
	for _, bad := range []api.ExplainRequest{{Source: "web", Destination: "nobody"}, {Source: "web", Destination: "shop/db", Port: 8, Protocol: "icmp"}, {Source: "web", Destination: "batch", Port: 1, Protocol: "QUIC"}, {Source: "192.0.2.1", Destination: "2001:db8::1"}} {
		if e, err := a.Explain(t.Context(), bad); err == nil {
			t.Errorf("%+v: %+v", bad, e)
		}
	}
}

// A rule with ports never allows ICMP, one without them does: in IPv6 it is ICMPv6.
func TestExplainICMP(t *testing.T) {
	a := shop(t)
	if _, err := apply(t, a, shopYAML); err != nil {
		t.Fatal(err)
	}
	explain := func(allowed bool) {
		t.Helper()
		e, err := a.Explain(t.Context(), api.ExplainRequest{Source: "web", Destination: "shop/db", Protocol: "icmp"})
		if err != nil || len(e.Verdicts) == 0 || e.Port != "ICMP" || e.Open != "" {
			t.Fatalf("%+v, %v", e, err)
		}
		for _, v := range e.Verdicts {
			name := "ICMP is none"
			if v.Source.Is6() {
				name = "ICMPv6 is none"
			}
			if v.Allowed != allowed || !allowed && !strings.Contains(v.Ingress.Misses[0].Text, name) {
				t.Errorf("%v: %+v", v.Source, v.Ingress)
			}
		}
	}
	explain(false)
	if _, err := apply(t, a, strings.Replace(shopYAML, "    ports: [{port: 5432}]\n", "", 1)); err != nil {
		t.Fatal(err)
	}
	explain(true)
}

// A dry run says what would be reached otherwise, and changes nothing.
func TestPairsThatWouldChange(t *testing.T) {
	a := shop(t)
	before, after, err := a.tried([]mesh.Change{{Kind: kindPolicy, Name: "shop/db", Body: []byte(shopYAML)}})
	if err != nil {
		t.Fatal(err)
	}
	var out api.Effects
	pairChanges(before, after, &out)
	want := []api.PairChange{{From: "jobs/batch", To: "shop/db", Before: "all", After: "none"}, {From: "jobs/db", To: "shop/db", Before: "all", After: "none"}, {From: "shop/web", To: "shop/db", Before: "all", After: "5432/TCP"}}
	slices.SortFunc(out.Pairs, func(x, y api.PairChange) int { return strings.Compare(x.From, y.From) })
	if !slices.Equal(out.Pairs, want) || len(a.documents.List(kindPolicy)) != 0 {
		t.Errorf("%+v", out)
	}
}

// Alike packets are one drop, an answer is told as what it answers, and old ones make room.
func TestDrops(t *testing.T) {
	var d drops
	now := time.Unix(1000, 0)
	client, server := netip.MustParseAddr("10.32.0.2"), netip.MustParseAddr("10.32.0.3")
	p := nft.Packet{Src: client, Dst: server, Protocol: 6, SrcPort: 40000, DstPort: 80}
	d.note(nft.Logged{Packet: p}, now)
	p.SrcPort++
	d.note(nft.Logged{Packet: p}, now.Add(time.Second))
	d.note(nft.Logged{Packet: nft.Packet{Src: server, Dst: client, Protocol: 6, SrcPort: 80, DstPort: 40001, Reply: true}}, now.Add(2*time.Second))
	list, packets := d.list()
	if len(list) != 1 || list[0].Count != 3 || packets[0] != p || !list[0].Last.Equal(now.Add(2*time.Second)) {
		t.Errorf("%+v, %+v", list, packets)
	}
	for port := range uint16(2 * mostDrops) {
		p.DstPort = 1000 + port
		d.note(nft.Logged{Packet: p}, now.Add(time.Hour+time.Duration(port)))
	}
	if list, _ := d.list(); len(list) != mostDrops || list[0].Dest.Port() != 1000+2*mostDrops-1 {
		t.Errorf("%d are remembered, the last is %+v", len(list), list[0])
	}
}

func TestParseExempt(t *testing.T) {
	for words, want := range map[string]nft.Exempt{
		"own-host,icmp-errors": {OwnHost: true, ICMPErrors: true}, "dns": {Resolver: true}, "none": {},
	} {
		if got, err := ParseExempt(strings.Split(words, ",")); err != nil || got != want {
			t.Errorf("%s: %+v, %v", words, got, err)
		}
	}
	for _, words := range []string{"all", "none,dns", ""} {
		if got, err := ParseExempt(strings.Split(words, ",")); err == nil {
			t.Errorf("%q: %+v", words, got)
		}
	}
}
