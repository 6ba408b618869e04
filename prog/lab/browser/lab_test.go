package browser

import (
	"context"
	"net"
	"strings"
	"testing"

	"weft/prog/lab"
	"weft/prog/lab/labtest"
	"weft/prog/lab/probe"
)

// openLab shows the page of a host of a lab.
func openLab(t *testing.T, l *lab.Lab, host string) *page {
	t.Helper()
	at, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { at.Close() })
	ctx, stop := context.WithCancel(t.Context())
	urls, ended := make(chan string, 1), make(chan error, 1)
	go func() {
		ended <- l.ServeUI(ctx, host, at.(*net.TCPListener), func(url string) { urls <- url })
	}()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("the page ended with %v, want nil", err)
		}
	})
	select {
	case url := <-urls:
		return open(t, url)
	case err := <-ended:
		ended <- err
		t.Fatalf("the page did not start: %v", err)
	}
	return nil
}

const onlyCart = `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: only-cart, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress: [{from: [{podSelector: {matchLabels: {app: cart}}}]}]
`

// Three real hosts: a cut link appears while the page is open, and the page answers why web cannot reach db.
func TestRealHosts(t *testing.T) {
	l := labtest.New(t, lab.Options{Containers: 1})
	pods := map[string]lab.Identity{
		"h1/web": {Namespace: "shop", Name: "web", Labels: map[string]string{"app": "web"}},
		"h3/db":  {Namespace: "shop", Name: "db", Labels: map[string]string{"app": "db"}},
	}
	addresses := map[string]string{}
	for container, as := range pods {
		if err := l.AddContainer(t.Context(), container); err != nil {
			t.Fatal(err)
		}
		addrs, err := l.PlugAs(t.Context(), container, as)
		if err != nil {
			t.Fatal(err)
		}
		addresses[container] = addrs[0]
	}
	p := openLab(t, l, "h2") // any host shows the whole network
	p.says(".host .name", "h3")
	p.says(".summary", "3 tunnels: 3 direct")
	p.says(".glance", "3 hosts · 5 endpoints")
	p.says(".linklabel", "ms ·")

	if err := l.Link(t.Context(), "h1", "h3", false); err != nil {
		t.Fatal(err)
	}
	p.says(".linklabel", "relayed through h2")
	p.wait("relayed link", `document.querySelector('[data-state="relayed"]')`)
	p.says("#live", "relayed through h2")
	if err := l.Link(t.Context(), "h1", "h3", true); err != nil {
		t.Fatal(err)
	}
	p.says(".summary", "3 tunnels: 3 direct")

	if _, err := l.Exec(t.Context(), "h1", strings.NewReader(onlyCart), "weft", "policy", "apply", "--wait", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Background(t.Context(), "h3/db", probe.ListenReady, "weft", "probe", "listen"); err != nil {
		t.Fatal(err)
	}
	labtest.Fails(t, l, "h1/web", "", "weft", "probe", "udp", "--count", "2", "--timeout", "300ms", addresses["h3/db"])
	p.show("flows")
	p.says(".row.denied", "shop/only-cart")
	p.click(".row.denied")
	p.says(".panel", "shop/web")
	p.click(`.panel [data-click="askBoth"]`)
	p.says(".answer.bad h3", "shop/web → shop/db on 7007/UDP: DENIED, by ingress at the destination")
	p.says(".answer", "selected by shop/only-cart")
	p.says(".mhead", "shop")
	p.click(`[aria-label^="shop to shop"]`)
	p.says(".mhead", "shop/db")

	p.show("ring")
	p.says(".row", "h3")
	p.show("health")
	p.says(".tiles", "3 of 3")
	if err := l.Kill(t.Context(), "h2", "agent"); err != nil { // the host whose agent the page asks
		t.Fatal(err)
	}
	p.says("#banner", "The agent does not answer")
	if err := l.Start(t.Context(), "h2"); err != nil {
		t.Fatal(err)
	}
	p.wait("end of the banner", `!document.querySelector('#banner .banner')`)
	if err := l.PowerOff(t.Context(), "h3"); err != nil {
		t.Fatal(err)
	}
	p.says(".hostcard.bad", "h3")
}
