package browser

import (
	"slices"
	"strings"
	"testing"

	"weft/prog/api"
)

func TestMeshShowsTunnelsAndRelays(t *testing.T) {
	p := open(t, serve(t, three()))
	p.says(".host .name", "h3")
	p.says(".summary", "3 tunnels: 2 direct, 1 relayed")
	p.says(".linklabel", "0.42 ms · 1.3 MB/s")
	p.says(".linklabel", "relayed through h2")
	p.says(`.host.warn[aria-label]`, "h2")
	// A relayed tunnel is drawn over its relay: its path has a point at the place of h2.
	p.wait("path over h2", `(() => {
		const at = document.querySelector('.host[data-key="`+peerID(1)+`"]').getAttribute('transform').match(/[\d.]+/g).map((x) => Math.round(x * 10) / 10);
		return document.querySelector('[data-state="relayed"] path.relayed').getAttribute('d').includes(' ' + at[0] + ' ' + at[1] + 'Q');
	})()`)
	p.click(".host.warn")
	p.says(".panel h2", "h2")
	p.says(".panel .fix", "iptables -I DOCKER-USER")
	p.says(".panel tbody", "direct")
	p.says(".panel .plain", "shop/web-1")
	p.click(`.panel [aria-label="Close"]`)
	p.click(`[data-arg="table"]`)
	p.says(`[role="table"] [role="row"]`, "relayed")
	p.click(`.table-links .row[data-key]`)
	p.says(".panel", "Another host forwards the sealed packets")
	p.says(".panel", "Relay")
}

func TestMeshSearchFindsAHost(t *testing.T) {
	p := open(t, serve(t, three()))
	p.says(".hostlist", "h1")
	p.typeIn(`[data-input="meshSearch"]`, "192.0.2.3")
	p.wait("hit", `document.querySelectorAll('.host.hit').length === 1 && document.querySelectorAll('.hostlist li').length === 1`)
	p.typeIn(`[data-input="meshSearch"]`, "zzz")
	p.says(".panel", "No host matches.")
}

// A picture of many hosts is not made anew with each step of the wheel, but names appear where there is room for them.
func TestNamesAppearWhenTheMeshIsLarge(t *testing.T) {
	p := open(t, serve(t, many(100)))
	names := `[...document.querySelectorAll('.host .name')].filter((e) => e.textContent.startsWith('node-')).length`
	p.wait("hosts without their names", `document.querySelectorAll('.host').length === 100 && `+names+` < 50`)
	// The page draws in the next frame. It draws all anew with the next report, too, which would hide a fault.
	after := func(clicks string) int {
		return eval[int](p, `(async () => {
			const frame = () => new Promise(requestAnimationFrame);
			`+clicks+`
			await frame();
			await frame();
			return `+names+`;
		})()`)
	}
	if n := after(`for (let i = 0; i < 3; i++) document.querySelector('[data-click="meshZoom"][aria-label="Larger"]').click();`); n != 100 {
		t.Errorf("when the mesh is large, %d hosts have their names, want 100", n)
	}
	if n := after(`document.querySelector('[data-click="meshFit"]').click();`); n >= 50 {
		t.Errorf("when the whole mesh is shown, %d hosts have their names, want less than 50", n)
	}
}

func TestAddressesShowOwners(t *testing.T) {
	a := three()
	a.network.Ring.Owners[2].Reachable = false
	p := open(t, serve(t, a))
	p.show("ring")
	p.says(".row", "unreachable")
	p.says(".segment text", "h1")
	p.wait("hatched part for the host that is gone", `document.querySelectorAll('.segment .hatched').length === 1`)
	p.click(`.table-owners .row[data-key="` + peerID(1) + `"]`)
	p.says(".band dl", "10.38.0.0/15  10.40.0.0/14")
}

func TestEndpointsAreFoundByLabel(t *testing.T) {
	p := open(t, serve(t, three()))
	p.show("endpoints")
	p.says(".summary", "12 endpoints in 5 namespaces")
	p.typeIn(`[data-input="endpointSearch"]`, "tier=data h1")
	p.says(".summary", "1 endpoint in 1 namespace")
	p.click(".table-endpoints .row.clickable")
	p.says(".panel", "10.32.0.13")
	p.click(`.panel [data-click="askTo"]`)
	p.wait("question about it", `document.querySelector('#ask-to')?.value === 'shop/db-0'`)
}

// The operator's question: web cannot reach db, why?
func TestAccessNamesTheRule(t *testing.T) {
	a := three()
	p := open(t, serve(t, a))
	p.show("access")
	p.says(".mhead", "shop")
	p.typeIn("#ask-from", "web-0")
	p.says(".suggestions", "shop/web-0")
	p.press(down, enter)
	p.wait("name from the list", `document.querySelector('#ask-from').value === 'shop/web-0'`)
	p.typeIn("#ask-to", "shop/db-0")
	p.typeIn(`[name="port"]`, "5432x")
	p.press(enter)
	p.says("#ask-fault", "is no port")
	p.typeIn(`[name="port"]`, "5432")
	p.press(enter)
	p.says(".answer.bad h3", "shop/web-0 → shop/db-0 on 5432/TCP: DENIED, by ingress at the destination")
	p.says(".answer", "shop/db spec.ingress[0]: the source's labels app=web,tier=front do not match the rule's podSelector app=cart")
	p.says(".answer", "the kernel agrees (chain in-12, 41 packets dropped so far)")
	p.typeIn("#ask-from", "nobody")
	p.press(enter)
	p.says(".ask .note.bad", `nothing is called "nobody"`)
}

func TestMatrixLeadsToTheRule(t *testing.T) {
	p := open(t, serve(t, three()))
	p.show("access")
	p.click(`[aria-label="build to payments: nothing"]`)
	p.says("#matrix-title", "build → payments")
	p.click(`[aria-label^="build/runner-1 to payments/api-0"]`)
	p.says(".answer h3", "build/runner-1 → payments/api-0")
	p.says(".ends", "payments/api-0")
	p.click(`[data-click="matrixAll"]`)
	p.says(".mhead", "kube-system")
}

func TestFlowsAreFilteredAndExplained(t *testing.T) {
	a := three()
	p := open(t, serve(t, a))
	p.show("flows")
	p.says(".summary", "12 flows")
	p.says(".row.denied", "matches no peer of the rule")
	eval[bool](p, `(() => { const s = document.querySelector('[data-arg="verdict"]'); s.value = 'denied'; s.dispatchEvent(new Event('change', { bubbles: true })); return true; })()`)
	p.says(".summary", "3 flows")
	p.typeIn(`[name="port"]`, "8443")
	p.says(".summary", "1 flow")
	p.click(".row.denied")
	p.says(".panel", "payments/api spec.ingress[0]")
	p.click(`.panel [data-click="askBoth"]`)
	p.says(".answer h3", "build/runner-1 → payments/api-0 on 8443/TCP")
}

func TestFlowsTellWhatIsMissing(t *testing.T) {
	a := three()
	a.off = []string{"h2"}
	a.network.Hosts[2].Error = "it did not answer within 2s"
	p := open(t, serve(t, a))
	p.show("flows")
	p.says(".notes", "Flows are off on h2")
	p.says(".notes", "No answer from h3: it did not answer within 2s")
}

func TestHealthHasEachFix(t *testing.T) {
	a := three()
	a.network.Hosts[2] = api.Host{Peer: peerID(2), Nickname: "h3", State: "unreachable", Error: "it did not answer within 2s"}
	a.network.Hosts[0].Version = "v1.5.0"
	p := open(t, serve(t, a))
	p.show("health")
	p.says(".hostcard.bad", "it did not answer within 2s")
	p.says(".hostcard.warn .what", "Docker's firewall drops packets")
	p.says(".hostcard.warn .effect", "containers on h2 are not reached")
	p.says(".hostcard.warn .fix code", "iptables -I DOCKER-USER -o weft+ -j ACCEPT")
	p.says(".note.warn", "different versions")
	p.says(".bubble", "2")
}

func TestAHealthyNetworkSaysSo(t *testing.T) {
	a := three()
	a.network.Hosts[1].Problems = nil
	p := open(t, serve(t, a))
	p.show("health")
	p.says(".allwell", "All is well")
}

func TestSmallestNetworks(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*fakeAgent)
		want   map[string]string // view: text
	}{
		"one host": {func(a *fakeAgent) {
			a.network.Hosts = a.network.Hosts[:1]
			a.network.Hosts[0].Links, a.network.Hosts[0].Direct = nil, 0
			a.network.Ring.Owners = a.network.Ring.Owners[:1]
		}, map[string]string{"mesh": "no tunnels", "health": "1 of 1", "ring": "h1"}},
		"nothing": {func(a *fakeAgent) {
			a.network.Hosts, a.network.Ring, a.endpoints, a.flows = nil, api.IPAM{}, nil, nil
		}, map[string]string{"mesh": "no tunnels", "ring": "Nobody owns addresses yet", "endpoints": "no endpoints yet", "access": "no endpoints to compare", "flows": "No flow matches", "health": "No host answers"}},
	} {
		t.Run(name, func(t *testing.T) {
			a := three()
			c.change(a)
			p := open(t, serve(t, a))
			for _, view := range []string{"mesh", "ring", "endpoints", "access", "flows", "health"} {
				p.wait("view", `document.querySelector('main h1')`)
				p.show(view)
				p.says("main", c.want[view])
			}
		})
	}
}

// Names, labels and problems come from pods and peers: they are text, never markup.
func TestHostileNamesAreText(t *testing.T) {
	const evil = `<img src=x onerror="window.owned=1"><script>window.owned=1</script>"'><b>`
	a := three()
	for i := range a.network.Hosts {
		a.network.Hosts[i].Nickname = evil + strings.Repeat("!", i)
		a.network.Hosts[i].Version = evil
		a.network.Ring.Owners[i].Nickname = evil
	}
	a.network.Hosts[1].Problems = []api.Problem{{Reason: evil, What: evil, Effect: evil, Fix: "`" + evil + "`"}}
	a.network.Hosts[2].Error = evil
	a.network.Cluster, a.network.Ring.Conflict = evil, evil
	for i := range a.endpoints {
		a.endpoints[i].Name, a.endpoints[i].Namespace, a.endpoints[i].Labels = evil, evil, map[string]string{evil: evil}
	}
	for i := range a.flows {
		a.flows[i].From, a.flows[i].To, a.flows[i].Why, a.flows[i].Policy = api.FlowEnd{Name: evil, Namespace: evil, Peer: evil}, api.FlowEnd{Name: evil}, evil, evil
		a.flows[i].Nickname, a.flows[i].Verdict, a.flows[i].Protocol = evil, evil, evil
	}
	a.matrix = func(api.MatrixRequest) api.Matrix {
		g := []api.Group{{Name: evil, Endpoints: 1, Examples: []string{evil}}}
		return api.Matrix{Rows: g, Columns: g, Cells: [][]api.Access{{{Kind: api.AccessSome, Ports: evil}}}}
	}
	p := open(t, serve(t, a))
	for _, view := range []string{"mesh", "ring", "endpoints", "access", "flows", "health"} {
		p.wait("view", `document.querySelector('main h1')`)
		p.show(view)
		p.says("main", evil)
		for _, selector := range []string{".host", ".row.clickable", ".mcell", ".mcell", ".segment"} {
			if eval[bool](p, `Boolean(document.querySelector(`+quote(selector)+`))`) {
				eval[bool](p, `(document.querySelector(`+quote(selector)+`).dispatchEvent(new MouseEvent('click', { bubbles: true })), true)`)
				p.wait("next picture", `new Promise((r) => requestAnimationFrame(() => requestAnimationFrame(() => r(true))))`)
			}
		}
		if bad := eval[[]string](p, `[...document.querySelectorAll('main img, main script, main b, main iframe, #banner img, #tip img')].map((e) => e.outerHTML)`); len(bad) > 0 {
			t.Errorf("view %s: a name became markup, want text: %q", view, bad)
		}
	}
	if eval[bool](p, `Boolean(window.owned)`) {
		t.Error("a name ran as a script, want text")
	}
}

// The token leaves the address bar at once. A reload still works, and a wrong token is said.
func TestTokenIsKeptForTheTabOnly(t *testing.T) {
	url := serve(t, three())
	p := open(t, url)
	p.says(".host .name", "h1")
	p.wait("address without token", `!location.href.includes('token') && location.hash === '#/mesh'`)
	p.show("health")
	p.reload("0")
	p.wait("the same view after a reload", `document.title === 'Health – Weft' && document.querySelector('.tiles')`)
	p.expect("401")
	p.reload(`sessionStorage.setItem('weft-token', 'wrong')`)
	p.says("h1", "This page needs its token")
	p.typeIn(`[name="token"]`, url)
	p.press(enter)
	p.says(".tiles", "hosts are ready")
	if left := eval[[]string](p, `Object.keys(localStorage)`); slices.Contains(left, "weft-token") {
		t.Errorf("the browser keeps %v for ever, want the token in this tab only", left)
	}
}
