package unattached

import (
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"weft/prog/api"
)

// Containers that Docker has started again without their attachment are problems. Containers that are
// stopped, removed, attached again, or unknown to Docker are none.
func TestContainersThatWereStartedAgainAreNamed(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "docker.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	id := func(digit string) string { return strings.Repeat(digit, 64) }
	docker := http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch strings.Split(r.URL.Path, "/")[2] {
		case id("a"), id("d"), id("e"):
			fmt.Fprint(w, `{"State": {"Running": true}}`)
		case id("b"):
			fmt.Fprint(w, `{"State": {"Running": false}}`)
		default:
			http.NotFound(w, r)
		}
	})}
	go docker.Serve(l) //nolint:errcheck // ends with the test
	t.Cleanup(func() { docker.Close() })

	var c Containers
	now := time.Now()
	note := func(id, source string) string {
		c.Note(api.Endpoint{ContainerID: id, Interface: "ethwe", Source: source, Name: "web"}, now)
		return api.EndpointRef{ContainerID: id, Interface: "ethwe"}.Key()
	}
	for _, one := range []string{id("a"), id("b"), id("c"), "netns-4026532001"} {
		note(one, api.SourceAttach)
	}
	note(id("e"), api.SourceCNI) // a CNI runtime attaches a restarted container by itself
	again := note(id("d"), api.SourceAttach)
	c.look(t.Context(), socket, now)
	if list := c.Problems(); len(list) != 2 || !strings.Contains(list[0].What, "aaaaaaaaaaaa (web)") || !strings.Contains(list[0].Fix, "weft attach") {
		t.Errorf("problems %+v; want two, the first about web, with weft attach", list)
	}
	if l := c.List(); len(l) != 2 || l[0].ContainerID != id("a") || l[0].Interface != "ethwe" || l[0].Name != "web" {
		t.Errorf("containers %+v; want two, the first web with its interface", l)
	}
	c.Forget(again)
	if list := c.Problems(); len(list) != 1 {
		t.Errorf("after one was attached again: problems %+v, want one", list)
	}
	c.look(t.Context(), socket, now.Add(longest+time.Second))
	if list := c.Problems(); len(list) != 0 || len(c.known) != 0 {
		t.Errorf("after the longest time: problems %+v; want none, and no container remembered", list)
	}
	last := ""
	for i := range 2 * most {
		last = note(fmt.Sprintf("%064x", i), api.SourceAttach)
		now = now.Add(time.Second)
	}
	if len(c.known) != most || c.known[last] == nil {
		t.Errorf("%d containers are remembered, want most; the latest is %v, want it among them", len(c.known), c.known[last])
	}
	if c.look(t.Context(), socket, now); len(c.known) != 0 {
		t.Errorf("%d containers are remembered that Docker does not know, want none", len(c.known))
	}
}
