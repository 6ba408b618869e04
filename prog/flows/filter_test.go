package flows

import (
	"net/netip"
	"testing"
	"time"

	"weft/router/policy"
)

func TestFiltersSelectFlows(t *testing.T) {
	f := &Flow{
		Entry: Entry{
			Original: Tuple{Src: netip.MustParseAddrPort("10.32.0.3:40412"), Dst: netip.MustParseAddrPort("10.96.0.1:80"), Protocol: policy.TCP},
			ReplySrc: netip.MustParseAddrPort("10.40.0.1:5432"),
		},
		Facts: &Facts{From: &End{Namespace: "shop", Name: "web"}, To: &End{Name: "h2", Node: true}, Verdict: Denied},
		last:  begin.UnixNano(),
	}
	for name, c := range map[string]struct {
		filter Filter
		want   bool
	}{
		"nothing":                 {Filter{}, true},
		"name":                    {Filter{From: ParseEnds("web")}, true},
		"name in other case":      {Filter{From: ParseEnds("Shop/WEB")}, true},
		"namespace":               {Filter{From: ParseEnds("shop/")}, true},
		"other namespace":         {Filter{From: ParseEnds("team/web")}, false},
		"other name":              {Filter{From: ParseEnds("db")}, false},
		"host":                    {Filter{To: ParseEnds("h2")}, true},
		"address":                 {Filter{From: ParseEnds("10.32.0.3"), To: ParseEnds("10.40.0.1")}, true},
		"mapped address":          {Filter{From: ParseEnds("::ffff:10.32.0.3")}, true},
		"network":                 {Filter{To: ParseEnds("10.40.9.9/16")}, true},
		"other network":           {Filter{To: ParseEnds("10.41.0.0/16")}, false},
		"address before NAT":      {Filter{To: ParseEnds("10.96.0.1")}, true},
		"port":                    {Filter{Port: 5432}, true},
		"port before NAT":         {Filter{Port: 80}, true},
		"port of the source":      {Filter{Port: 40412}, false},
		"protocol":                {Filter{Protocols: []policy.Protocol{policy.UDP, policy.TCP}}, true},
		"other protocol":          {Filter{Protocols: []policy.Protocol{policy.UDP}}, false},
		"verdict":                 {Filter{Verdict: Denied}, true},
		"other verdict":           {Filter{Verdict: Allowed}, false},
		"since the last packet":   {Filter{Since: begin}, true},
		"since a later time":      {Filter{Since: begin.Add(time.Second)}, false},
		"one of two is different": {Filter{From: ParseEnds("web"), Port: 1}, false},
	} {
		if got := c.filter.Fits(f); got != c.want {
			t.Errorf("%s: the flow is selected: %v, want %v", name, got, c.want)
		}
	}
}
