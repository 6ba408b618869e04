package browser

import (
	"fmt"
	"testing"
	"time"

	"weft/prog/api"
)

func TestACutLinkAppears(t *testing.T) {
	a := three()
	a.set(0, 2, func(l *api.Link) { l.State, l.Via = api.ConnDirect, nil })
	p := open(t, serve(t, a))
	p.says(".summary", "3 tunnels: 3 direct")
	place := eval[string](p, `document.querySelector('.host[data-key="`+peerID(2)+`"]').getAttribute('transform')`)
	a.do(func() { a.cut(0, 2, 1) })
	p.says(".linklabel", "relayed through h2")
	p.says("#live", "Tunnel h1 – h3: relayed through h2")
	a.do(func() {
		a.set(0, 1, func(l *api.Link) { l.State, l.Info = api.ConnBlocked, "UDP port 6784 does not answer" })
	})
	p.wait("cross on the blocked tunnel", `document.querySelector('[data-state="blocked"] .cross')`)
	p.says(".linklabel.bad", "blocked")
	if now := eval[string](p, `document.querySelector('.host[data-key="`+peerID(2)+`"]').getAttribute('transform')`); now != place {
		t.Errorf("the host moved from %s to %s, want it at its place", place, now)
	}
	a.do(func() {
		a.set(0, 2, func(l *api.Link) { l.State, l.Via = api.ConnDirect, nil })
		a.set(0, 1, func(l *api.Link) { l.State, l.Info = api.ConnDirect, "" })
	})
	p.says(".summary", "3 tunnels: 3 direct")
}

func TestTheAgentRestarts(t *testing.T) {
	a := three()
	p := open(t, serve(t, a))
	p.says(".host .name", "h1")
	a.stop()
	p.says("#banner .banner", "The agent does not answer")
	p.says("#banner .banner", "is not running on this host")
	p.says(".status .badge", "as of")
	p.says(".host .name", "h1") // the last picture stays
	p.show("flows")
	p.says(".notes", "is not running on this host")
	a.start(t)
	p.wait("end of the banner", `!document.querySelector('#banner .banner')`)
	p.says(".status .badge", "live")
	p.says(".summary", "12 flows")
	a.do(func() {
		a.refusal = &api.Error{Code: api.CodeNotReady, Message: "the agent is not ready: it joins the network"}
	})
	p.says("#banner", "it joins the network")
	a.do(func() { a.refusal = nil })
	p.wait("end of the banner", `!document.querySelector('#banner .banner')`)
}

func TestHostsAndEndpointsComeAndGo(t *testing.T) {
	a := three()
	p := open(t, serve(t, a))
	p.says(".glance", "12 endpoints")
	a.do(func() {
		a.network.Hosts = append(a.network.Hosts, api.Host{Peer: peerID(7), Nickname: "h4", State: "running", Ready: true})
		a.endpoints = append(a.endpoints, endpoint(7, "shop", "late-0", "app=late", "10.44.0.9"))
		a.network.Endpoints = "2"
	})
	p.says(".host .name", "h4")
	p.says("#live", "Host h4 is new.")
	p.says(".glance", "13 endpoints")
	a.do(func() { a.network.Hosts = a.network.Hosts[:3] })
	p.says("#live", "Host h4 is gone.")
}

func TestNewFlowsComeFirstUntilPaused(t *testing.T) {
	a := three()
	p := open(t, serve(t, a))
	p.show("flows")
	p.says(".summary", "12 flows")
	come := func(name string) {
		a.do(func() {
			f := a.flows[3]
			f.ID, f.Last, f.From.Name = uint64(len(a.flows)+1), time.Now(), name
			a.flows = append(a.flows, f)
		})
	}
	come("fresh-0")
	p.wait("new flow at the top", `document.querySelector('.table-flows [data-row]').textContent.includes('build/fresh-0')`)
	p.click(`[data-click="flowPause"]`)
	p.says(".summary", "paused")
	come("fresh-1")
	p.says(".summary", "1 newer flow")
	if top := p.text(".table-flows [data-row]"); top == "" || eval[bool](p, `document.querySelector('.table-flows').textContent.includes('fresh-1')`) {
		t.Errorf("a paused list shows a newer flow: %s", top)
	}
	p.click(`[data-click="flowPause"]`)
	p.says(".table-flows", "build/fresh-1")
}

// A change elsewhere must not take away what the user types or has chosen.
func TestUpdatesLeaveFocusAndText(t *testing.T) {
	a := three()
	p := open(t, serve(t, a))
	p.show("endpoints")
	p.typeIn(`[data-input="endpointSearch"]`, "sho")
	for i := range 3 {
		a.do(func() { a.network.Hosts[0].Dropped, a.network.Endpoints = uint64(1000+i), fmt.Sprint(10+i) })
		asked := eval[float64](p, `performance.getEntriesByType('resource').length`)
		p.wait("next picture", fmt.Sprintf(`performance.getEntriesByType('resource').length > %v`, asked+1))
	}
	p.press("p")
	if have := p.focused(); have != "input Find by name, label, address or host" {
		t.Errorf("the focus is on %q, want it on the search field", have)
	}
	p.wait("text", `document.activeElement.value === 'shop'`)
	p.says(".summary", "4 endpoints")
}
