package browser

import (
	"testing"
)

func TestEveryViewShowsASmallNetwork(t *testing.T) {
	p := open(t, serve(t, three()))
	p.says(".host .name", "h3")
	p.show("ring")
	p.says(".row", "h2")
	p.show("endpoints")
	p.says(".row", "ledger-0")
	p.show("access")
	p.says(".mhead", "payments")
	p.show("flows")
	p.says(".row", "5432/TCP")
	p.show("health")
	p.says(".fix", "iptables -I DOCKER-USER")
}
