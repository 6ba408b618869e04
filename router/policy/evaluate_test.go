package policy

import (
	"net/netip"
	"strings"
	"testing"
)

// suite is the cluster of Kubernetes' test suite (kubernetes/test/e2e/network/netpol). It has the
// namespaces x, y and z with pods a, b and c, which serve ports 80 and 81 over TCP, UDP and SCTP.
//
//	x/a 10.0.1.1   x/b 10.0.1.2   x/c 10.0.1.3      and the same with fd00::
//	y/a 10.0.2.1   …              z/c 10.0.3.3
var suite = func() World {
	w := World{Namespaces: map[string]map[string]string{}}
	for i, ns := range []string{"x", "y", "z"} {
		w.Namespaces[ns] = map[string]string{"ns": ns}
		for j, pod := range []string{"a", "b", "c"} {
			e := Endpoint{ID: ns + "/" + pod, Namespace: ns, Name: pod, Labels: map[string]string{"pod": pod}, Addrs: []netip.Addr{
				netip.AddrFrom4([4]byte{10, 0, byte(i + 1), byte(j + 1)}),
				netip.AddrFrom16([16]byte{0: 0xfd, 14: byte(i + 1), 15: byte(j + 1)}),
			}}
			for _, proto := range []Protocol{TCP, UDP, SCTP} {
				name := "serve-" + strings.ToLower(proto.String())
				e.Ports = append(e.Ports, NamedPort{name, proto, 80})
			}
			w.Endpoints = append(w.Endpoints, e)
		}
	}
	return w
}()

func pods(labels ...string) *Selector {
	s := &Selector{}
	for i := 0; i < len(labels); i += 2 {
		if s.Labels == nil {
			s.Labels = map[string]string{}
		}
		s.Labels[labels[i]] = labels[i+1]
	}
	return s
}

// on returns a policy that isolates the pods of namespace x with a label, or all pods of x.
func on(labels ...string) Policy {
	return Policy{Namespace: "x", Name: "p", Pods: *pods(labels...), Isolates: Of(Ingress)}
}

func (p Policy) in(rules ...Rule) Policy {
	p.Ingress, p.Isolates = rules, p.Isolates|Of(Ingress)
	return p
}
func (p Policy) out(rules ...Rule) Policy { p.Egress, p.Isolates = rules, Of(Egress); return p }

func from(peers ...Peer) Rule { return Rule{Peers: peers} }

func (r Rule) ports(list ...Port) Rule { r.Ports = list; return r }

func inNamespace(labels ...string) Peer { return Peer{Namespaces: pods(labels...)} }

func block(cidr string, except ...string) Peer {
	b := &Block{CIDR: netip.MustParsePrefix(cidr)}
	for _, e := range except {
		b.Except = append(b.Except, netip.MustParsePrefix(e))
	}
	return Peer{Block: b}
}

var all = strings.Fields("x/a x/b x/c y/a y/b y/c z/a z/b z/c")

var tcp80, tcp81 = Port{Protocol: TCP, Number: 80}, Port{Protocol: TCP, Number: 81}

// situations are the cases of Kubernetes' test suite, by their names there, and some more.
var situations = map[string]struct {
	policies []Policy
	to       string // the destination of all connections; if egress is set, their source
	egress   bool
	allowed  string   // the endpoints at the other end whose connections succeed; an endpoint always reaches itself
	port     uint16   // 0 means 80
	proto    Protocol // 0 means TCP
}{
	"support a 'default-deny-ingress' policy":                             {[]Policy{on().in()}, "x/a", false, "", 0, 0},
	"support a 'default-deny-all' policy, egress":                         {[]Policy{on().in().both()}, "x/a", true, "", 0, 0},
	"allow ingress traffic from pods in all namespaces":                   {[]Policy{on("pod", "a").in(from(inNamespace()))}, "x/a", false, "x/a x/b x/c y/a y/b y/c z/a z/b z/c", 0, 0},
	"allow ingress traffic only from pods in own namespace":               {[]Policy{on("pod", "a").in(from(Peer{Pods: pods()}))}, "x/a", false, "x/a x/b x/c", 0, 0},
	"based on PodSelector":                                                {[]Policy{on("pod", "a").in(from(Peer{Pods: pods("pod", "b")}))}, "x/a", false, "x/b", 0, 0},
	"based on NamespaceSelector":                                          {[]Policy{on("pod", "a").in(from(inNamespace("ns", "y")))}, "x/a", false, "y/a y/b y/c", 0, 0},
	"based on the namespace's name":                                       {[]Policy{on("pod", "a").in(from(inNamespace(NameLabel, "z")))}, "x/a", false, "z/a z/b z/c", 0, 0},
	"based on NamespaceSelector and PodSelector":                          {[]Policy{on("pod", "a").in(from(Peer{Namespaces: pods("ns", "y"), Pods: pods("pod", "b")}))}, "x/a", false, "y/b", 0, 0},
	"based on either":                                                     {[]Policy{on("pod", "a").in(from(inNamespace("ns", "y"), Peer{Pods: pods("pod", "b")}))}, "x/a", false, "x/b y/a y/b y/c", 0, 0},
	"multiple rules are ORed":                                             {[]Policy{on("pod", "a").in(from(inNamespace("ns", "y")), from(Peer{Pods: pods("pod", "c")}))}, "x/a", false, "x/c y/a y/b y/c", 0, 0},
	"multiple policies are ORed":                                          {[]Policy{on("pod", "a").in(from(inNamespace("ns", "y"))), on().in(from(Peer{Pods: pods("pod", "c")}))}, "x/a", false, "x/c y/a y/b y/c", 0, 0},
	"MatchExpressions In":                                                 {[]Policy{on("pod", "a").in(from(Peer{Namespaces: &Selector{Expressions: []Expression{{"ns", In, []string{"y", "z"}}}}}))}, "x/a", false, "y/a y/b y/c z/a z/b z/c", 0, 0},
	"MatchExpressions NotIn":                                              {[]Policy{on("pod", "a").in(from(Peer{Namespaces: &Selector{Expressions: []Expression{{"ns", NotIn, []string{"x"}}}}}))}, "x/a", false, "y/a y/b y/c z/a z/b z/c", 0, 0},
	"MatchExpressions NotIn of a label that is missing":                   {[]Policy{on("pod", "a").in(from(Peer{Namespaces: &Selector{Expressions: []Expression{{"old", NotIn, []string{"yes"}}}}}))}, "x/a", false, "x/a x/b x/c y/a y/b y/c z/a z/b z/c", 0, 0},
	"MatchExpressions DoesNotExist":                                       {[]Policy{on("pod", "a").in(from(Peer{Pods: &Selector{Expressions: []Expression{{"pod", DoesNotExist, nil}}}}))}, "x/a", false, "", 0, 0},
	"a policy of another namespace selects no pod here":                   {[]Policy{{Namespace: "y", Name: "p", Isolates: Of(Ingress)}}, "x/a", false, "x/b x/c y/a y/b y/c z/a z/b z/c", 0, 0},
	"an empty rule allows all":                                            {[]Policy{on().in(Rule{})}, "x/a", false, "x/b x/c y/a y/b y/c z/a z/b z/c", 0, 0},
	"enforce policy based on Ports":                                       {[]Policy{on("pod", "a").in(from(inNamespace("ns", "y")).ports(tcp81))}, "x/a", false, "y/a y/b y/c", 81, 0},
	"enforce policy based on Ports: another port":                         {[]Policy{on("pod", "a").in(from(inNamespace("ns", "y")).ports(tcp81))}, "x/a", false, "", 80, 0},
	"enforce policy based on Ports: another protocol":                     {[]Policy{on("pod", "a").in(Rule{}.ports(tcp80))}, "x/a", false, "", 80, UDP},
	"multiple ports":                                                      {[]Policy{on("pod", "a").in(from(inNamespace("ns", "y")).ports(tcp80, tcp81))}, "x/a", false, "y/a y/b y/c", 81, 0},
	"stacked policies with overlapping podSelectors":                      {[]Policy{on("pod", "a").in(from(inNamespace("ns", "y")).ports(tcp80)), on("pod", "a").in(from(inNamespace("ns", "y")).ports(tcp81))}, "x/a", false, "y/a y/b y/c", 81, 0},
	"all protocols where no port is given":                                {[]Policy{on("pod", "a").in(from(inNamespace("ns", "z")))}, "x/a", false, "z/a z/b z/c", 80, SCTP},
	"a protocol without a number is all its ports":                        {[]Policy{on("pod", "a").in(Rule{}.ports(Port{Protocol: SCTP}))}, "x/a", false, "x/b x/c y/a y/b y/c z/a z/b z/c", 9999, SCTP},
	"named port in ingress":                                               {[]Policy{on("pod", "a").in(Rule{}.ports(Port{Protocol: UDP, Name: "serve-udp"}))}, "x/a", false, "x/b x/c y/a y/b y/c z/a z/b z/c", 80, UDP},
	"named port of another protocol":                                      {[]Policy{on("pod", "a").in(Rule{}.ports(Port{Protocol: UDP, Name: "serve-tcp"}))}, "x/a", false, "", 80, UDP},
	"endPort: the last of the range":                                      {[]Policy{on("pod", "a").in(Rule{}.ports(Port{Protocol: TCP, Number: 79, End: 81}))}, "x/a", false, "x/b x/c y/a y/b y/c z/a z/b z/c", 81, 0},
	"endPort: after the range":                                            {[]Policy{on("pod", "a").in(Rule{}.ports(Port{Protocol: TCP, Number: 79, End: 81}))}, "x/a", false, "", 82, 0},
	"based on CIDR":                                                       {[]Policy{on("pod", "a").in(from(block("10.0.2.0/24"), block("fd00::200/120")))}, "x/a", false, "y/a y/b y/c", 0, 0},
	"based on CIDR with except":                                           {[]Policy{on("pod", "a").in(from(block("10.0.2.0/24", "10.0.2.2/32"), block("fd00::200/120", "fd00::202/128")))}, "x/a", false, "y/a y/c", 0, 0},
	"a CIDR overrides the except of another":                              {[]Policy{on("pod", "a").in(from(block("10.0.2.0/24", "10.0.2.2/32"), block("fd00::200/120"), block("10.0.2.2/32")))}, "x/a", false, "y/a y/b y/c", 0, 0},
	"egress: support denying of egress traffic":                           {[]Policy{on("pod", "a").out()}, "x/a", true, "", 0, 0},
	"egress: denying it does not deny ingress":                            {[]Policy{on("pod", "a").out()}, "x/a", false, "x/b x/c y/a y/b y/c z/a z/b z/c", 0, 0},
	"egress: based on PodSelector":                                        {[]Policy{on("pod", "a").out(from(Peer{Pods: pods("pod", "b")}))}, "x/a", true, "x/b", 0, 0},
	"egress: based on NamespaceSelector":                                  {[]Policy{on("pod", "a").out(from(inNamespace("ns", "y")))}, "x/a", true, "y/a y/b y/c", 0, 0},
	"egress: named port, at the destination":                              {[]Policy{on("pod", "a").out(Rule{}.ports(Port{Protocol: TCP, Name: "serve-tcp"}))}, "x/a", true, "x/b x/c y/a y/b y/c z/a z/b z/c", 80, 0},
	"egress: except denies the excluded range":                            {[]Policy{on("pod", "a").out(from(block("0.0.0.0/0", "10.0.2.0/24"), block("::/0", "fd00::200/120")))}, "x/a", true, "x/b x/c z/a z/b z/c", 0, 0},
	"egress at the source and ingress at the destination are both needed": {[]Policy{on("pod", "a").out(from(inNamespace("ns", "y"))), {Namespace: "y", Name: "q", Pods: *pods("pod", "b"), Isolates: Of(Ingress)}}, "x/a", true, "y/a y/c", 0, 0},
	"a policy in audit mode isolates no pod":                              {[]Policy{on().in().tried()}, "x/a", false, "x/b x/c y/a y/b y/c z/a z/b z/c", 0, 0},
}

// The verdicts are those of Kubernetes' test suite in both families. A reply is allowed exactly if the
// packet that it answers is allowed.
func TestEvaluateMatchesKubernetesTestSuite(t *testing.T) {
	for name, c := range situations {
		port, proto := c.port, c.proto
		if port == 0 {
			port = 80
		}
		if proto == 0 {
			proto = TCP
		}
		for family := range 2 {
			for _, other := range all {
				src, dst := other, c.to
				if c.egress {
					src, dst = c.to, other
				}
				p := Packet{Src: addr(src, family), Dst: addr(dst, family), Protocol: proto, SrcPort: 40000, DstPort: port}
				want := other == c.to || strings.Contains(" "+c.allowed+" ", " "+other+" ")
				v := Evaluate(c.policies, suite, p)
				if v.Allowed != want {
					t.Errorf("%s: a packet from %s to %s is allowed: %v; want %v: %+v", name, src, dst, v.Allowed, want, v)
				}
				back := Packet{Src: p.Dst, Dst: p.Src, Protocol: proto, SrcPort: port, DstPort: 40000, Reply: true}
				if r := Evaluate(c.policies, suite, back); r.Allowed != want {
					t.Errorf("%s: the reply of %s to %s is allowed: %v, want %v", name, dst, src, r.Allowed, want)
				}
			}
		}
	}
}

func (p Policy) both() Policy  { p.Isolates = Both; return p }
func (p Policy) tried() Policy { p.Audit = true; return p }

func addr(ref string, family int) netip.Addr {
	for _, e := range suite.Endpoints {
		if e.Ref() == ref {
			return e.Addrs[family]
		}
	}
	panic(ref)
}

// The verdict on a denied packet names the first requirement that does not match, for each rule
// that could have allowed it.
func TestDenialNamesFirstMismatchPerRule(t *testing.T) {
	policies := []Policy{
		on("pod", "a").in(
			from(inNamespace("ns", "y")).ports(Port{Protocol: TCP, Number: 443}, Port{Protocol: UDP, Name: "serve-udp"}),
			from(Peer{Pods: pods("pod", "b")}, block("10.0.2.0/24", "10.0.2.2/32")),
		),
		{Namespace: "x", Name: "closed", Isolates: Of(Ingress)},
	}
	p := Packet{Src: addr("y/b", 0), Dst: addr("x/a", 0), Protocol: TCP, SrcPort: 4000, DstPort: 80}
	v := Evaluate(policies, suite, p)
	want := []Reason{
		{"x/p", 0, "80/TCP is none of the ports 443/TCP, serve-udp/UDP (80 there)"},
		{"x/p", 1, "y/b is in namespace y, want x; 10.0.2.2 is not in 10.0.2.0/24 except 10.0.2.2/32"},
		{"x/closed", -1, "the policy allows no ingress at all"},
	}
	if v.Allowed || v.Ingress.Endpoint != "x/a" || len(v.Ingress.Misses) != len(want) {
		t.Fatalf("the verdict is %+v; want 3 misses", v)
	}
	for i := range want {
		if v.Ingress.Misses[i] != want[i] {
			t.Errorf("the miss is\n%+v; want\n%+v", v.Ingress.Misses[i], want[i])
		}
	}
	p.Src = addr("x/b", 0)
	if v = Evaluate(policies, suite, p); !v.Allowed || *v.Ingress.By != (Reason{"x/p", 1, "x/b is selected"}) || v.Ingress.Misses != nil {
		t.Errorf("the verdict for a packet from a selected peer is %+v; want allowed by rule 1 of x/p", v)
	}
	p.Src = netip.MustParseAddr("192.0.2.7")
	if v = Evaluate(policies, suite, p); v.Allowed || !strings.Contains(v.Ingress.Misses[1].Text, "192.0.2.7 is not a known endpoint") {
		t.Errorf("the verdict for a packet from an unknown address is %+v; want denied, with the address in the miss", v)
	}
	p.FromOwnHost = true
	if v = Evaluate(policies, suite, p); !v.Allowed || v.Exempt == "" {
		t.Errorf("a probe from the endpoint's own host has the verdict %+v; want it allowed as exempt", v)
	}
}

// The decision of policies in audit mode is reported where it differs from the decision in force.
func TestAuditPoliciesReportDifferences(t *testing.T) {
	tried := on("pod", "a").in(from(Peer{Pods: pods("pod", "b")})).tried()
	p := Packet{Src: addr("x/c", 0), Dst: addr("x/a", 0), Protocol: TCP, DstPort: 80}
	v := Evaluate([]Policy{tried}, suite, p)
	if !v.Allowed || v.Ingress.Tried == nil || v.Ingress.Tried.Allowed || len(v.Ingress.Tried.Misses) != 1 {
		t.Errorf("the verdict with an audit policy that would deny is %+v; want allowed, with the denial reported", v)
	}
	p.Src = addr("x/b", 0)
	if v = Evaluate([]Policy{tried}, suite, p); !v.Allowed || v.Ingress.Tried != nil {
		t.Errorf("the verdict with an audit policy that would allow is %+v; want allowed, with nothing reported", v)
	}
	closed := on("pod", "a")
	if v = Evaluate([]Policy{closed, tried}, suite, p); v.Allowed || v.Ingress.Tried == nil || !v.Ingress.Tried.Allowed {
		t.Errorf("the verdict with an audit policy that would allow a denied packet is %+v; want denied, with the allowance reported", v)
	}
}

// An unparsed part of a rule allows nothing. A rule that has only unparsed peers matches no peer,
// not every peer.
func TestUnparsedRulePartsAllowNothing(t *testing.T) {
	p := Packet{Src: addr("x/b", 0), Dst: addr("x/a", 0), Protocol: TCP, DstPort: 80}
	unread, open := Port{Unread: true}, Peer{Pods: pods()}
	for name, c := range map[string]struct {
		rule Rule
		says string // part of the reason for the denial; empty if the packet is allowed
	}{
		"only such a peer":    {from(Peer{Unread: true}), "could not be parsed"},
		"another peer too":    {from(Peer{Unread: true}, open), ""},
		"only such a port":    {from(open).ports(unread), "80/TCP is none of the ports (unparsed port)"},
		"another port too":    {from(open).ports(unread, Port{Protocol: TCP, Number: 80}), ""},
		"such a peer, a port": {from(Peer{Unread: true}).ports(Port{Protocol: TCP, Number: 80}), "could not be parsed"},
	} {
		policies := []Policy{on("pod", "a").in(c.rule)}
		v := Evaluate(policies, suite, p)
		if v.Allowed != (c.says == "") || c.says != "" && !strings.Contains(v.Ingress.Misses[0].Text, c.says) {
			t.Errorf("%s: the decision is %+v; want a miss that contains %q, or allowed if empty", name, v.Ingress, c.says)
		}
		any := p
		any.AnyPort, any.DstPort = true, 0
		if got := Evaluate(policies, suite, any); got.Allowed != v.Allowed {
			t.Errorf("%s: the decision for any port is %+v; want the same as for port 80", name, got.Ingress)
		}
		src, _ := suite.At(p.Src)
		dst, _ := suite.At(p.Dst)
		if got := Between(policies, suite, src, dst).String(); (got == "none") == v.Allowed {
			t.Errorf("%s: Between returned %s; want \"none\" exactly if Evaluate denies the packet", name, got)
		}
	}
}
