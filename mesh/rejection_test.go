package mesh

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

// The reason of a failed join is explained on one line, whatever memberlist's error looks like.
func TestFailedJoinsAreExplainedOnOneLine(t *testing.T) {
	a := netip.MustParseAddrPort("[2001:db8::1]:6783")
	for cause, says := range map[string]string{
		"dial tcp [2001:db8::1]:6783: connect: network is unreachable": "no route to that network: add one (`ip route get 2001:db8::1`",
		"dial tcp [2001:db8::1]:6783: connect: no route to host":       "is the host up, is the address right",
		"dial tcp [2001:db8::1]:6783: connect: connection refused":     "is Weft running on that host?",
		"dial tcp [2001:db8::1]:6783: i/o timeout":                     "no answer",
		"dial tcp [2001:db8::1]:6783: connect: permission denied":      "[2001:db8::1]:6783: permission denied",
		"Number of received\nnodes: 7":                                 "[2001:db8::1]:6783: Number of received nodes: 7",
	} {
		err := explainJoin(a, fmt.Errorf("1 error occurred:\n\t* failed to join %v: %s\n\n", a, cause)) // memberlist's errors have this format
		text := err.Error()
		if !strings.Contains(text, says) || !strings.HasPrefix(text, a.String()) || strings.ContainsAny(text, "\n\t*") || strings.Contains(text, "dial tcp") {
			t.Errorf("the explanation of %s is %q; want one line that contains %q", cause, text, says)
		}
	}
}
