package agent

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// An endpoint whose link somebody deleted is a warning with its fix, within half a minute and
// not before a runtime's own deletion would have come.
func TestADeletedLinkIsTold(t *testing.T) {
	a := shop(t)
	ref := a.give(t, "c0ffee")
	e := a.endpoint(ref.Key())
	e.Namespace, e.Name = "shop", "cart"
	told := func() bool {
		list := a.unlinked()
		return slices.ContainsFunc(list, func(text string) bool {
			return strings.HasPrefix(text, "shop/cart cannot be reached") && strings.Contains(text, e.HostLink) && strings.Contains(text, "Delete the pod")
		})
	}
	rounds := 0
	for ; !told() && rounds < 100; rounds++ {
		a.releaseEnded(t.Context())
	}
	if after := time.Duration(rounds) * period; after > 30*time.Second || after < 10*time.Second {
		t.Errorf("told after %v", after)
	}
	e.missing = 0 // the link is there again
	if told() {
		t.Error("it is told of a link that is there")
	}
}
