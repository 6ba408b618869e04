package wire

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/printer"
	"go/token"
	"maps"
	"net/netip"
	"strings"
	"testing"

	"github.com/fxamacker/cbor/v2"

	"weft/mesh"
	"weft/prog/api"
)

// These items are requests about policies and their answers. Their types belong to the agent, which
// nothing else may import. So the types are written out here again, and
// TestPolicyTypesMatchThoseOfTheAgent compares them. Fields are encoded under names, not numbers;
// those of package api under their JSON names.

type (
	inForce struct {
		Generation string
		Isolated   int
		Dropped    map[string]uint64
		Policies   map[string]int
		Unread     map[string][]string `cbor:",omitempty"`
	}
	judgeRequest struct {
		Direction                       uint8
		Src, Dst                        netip.Addr
		Protocol                        uint8
		SrcPort, Port                   uint16
		AnyPort, FromOwnHost, ToOwnHost bool
	}
	judgeReply struct {
		Decision api.Decision
		Exempt   string
	}
	flowChanges struct {
		Flows []api.FlowChange
		More  int
	}
)

var policyItems = map[string]item{
	"policy/in-force-answer": {what: "the answer to request policy/in-force (its payload is empty)", read: readPolicy[inForce], newer: withFields},
	"policy/judge-request":   {what: "request policy/judge: the verdict on a packet", read: readPolicy[judgeRequest], newer: withFields},
	"policy/judge-answer":    {what: "its answer, with all fields", read: readPolicy[judgeReply], newer: newerJudged},
	"policy/judge-exempt":    {what: "its answer, about a packet to which no policies apply", read: readPolicy[judgeReply], newer: newerJudged},
	"policy/try-request":     {what: "request policy/try: what if these changes were made", read: readPolicy[[]mesh.Change], newer: each(withFields)},
	"policy/try-answer":      {what: "its answer: the connections with another verdict", read: readPolicy[flowChanges], newer: withFields},
}

func newerJudged(data []byte) []byte {
	m := must(decode[map[string]cbor.RawMessage](data))
	m["Decision"] = withFields(m["Decision"])
	return withFields(encode(m))
}

func producePolicy(t *testing.T) map[string][]byte {
	t.Helper()
	src, dst := netip.MustParseAddr("10.32.0.2"), netip.MustParseAddr("10.32.128.5")
	reason := api.Reason{Policy: "default/web", Rule: "spec.ingress[0]", Text: "port TCP 80 is not among 443"}
	all := map[string][]byte{}
	for name, v := range map[string]any{
		"policy/in-force-answer": inForce{"0123456789abcdef", 2, map[string]uint64{"ingress": 17}, map[string]int{"default/web": 1}, nil},
		"policy/judge-request":   judgeRequest{1, src, dst, 6, 40000, 80, false, true, false},
		"policy/judge-answer": judgeReply{Decision: api.Decision{
			Endpoint: "default/web", Peer: "alpha", Policies: []string{"default/web"}, By: &reason, Misses: []api.Reason{reason},
			Audit: &api.Decision{Allowed: true}, Kernel: &api.Kernel{Allowed: true, Chain: "in-1", Dropped: 3, Differs: true},
		}},
		"policy/judge-exempt": judgeReply{api.Decision{Allowed: true, Unasked: "policies do not apply"}, "what this host sends to its own endpoints"},
		"policy/try-request":  []mesh.Change{{Kind: "networkpolicy", Name: "default/web", Body: []byte(policyBody)}, {Kind: "namespace", Name: "default", Deleted: true}},
		"policy/try-answer": flowChanges{[]api.FlowChange{{
			Peer: "alpha", Protocol: "TCP", Source: netip.AddrPortFrom(src, 40000), Destination: netip.AddrPortFrom(dst, 80),
			From: "default/web", To: "default/db", Allowed: true, Why: "no policy selects its ends",
		}}, 4},
	} {
		all[name] = must(cbor.Marshal(v))
	}
	return all
}

func readPolicy[T any](t *testing.T, data []byte) string {
	t.Helper()
	var v T
	if err := cbor.Unmarshal(data, &v); err != nil {
		return show(err)
	}
	return show(v)
}

// The types above have the same fields as the agent's.
func TestPolicyTypesMatchThoseOfTheAgent(t *testing.T) {
	ours, agents := declared(t, "policy_test.go"), map[string]string{}
	for _, file := range []string{"enforce/status.go", "explain/evaluate.go", "dryrun/dryrun.go"} {
		maps.Copy(agents, declared(t, "../agent/"+file))
	}
	for here, there := range map[string]string{"inForce": "InForce", "judgeRequest": "question", "judgeReply": "reply", "flowChanges": "flowChanges"} {
		if ours[here] == "" || ours[here] != agents[there] {
			t.Errorf("%s is\n%s\nhere, but %s in the agent is\n%s\nwant the same: change the type here too; the other tests then report whether older agents can read it", here, ours[here], there, agents[there])
		}
	}
}

// declared returns the structs that a file declares, without comments and spaces.
func declared(t *testing.T, path string) map[string]string {
	t.Helper()
	set := token.NewFileSet()
	file, err := parser.ParseFile(set, path, nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	ast.Inspect(file, func(n ast.Node) bool {
		if spec, ok := n.(*ast.TypeSpec); ok {
			var b bytes.Buffer
			if err := printer.Fprint(&b, set, spec.Type); err != nil {
				t.Fatal(err)
			}
			out[spec.Name.Name] = strings.Join(strings.Fields(b.String()), " ")
		}
		return true
	})
	return out
}
