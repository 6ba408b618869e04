package agent

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

// Docker's containers that run again without their attachment are named; those that are
// stopped, removed, or attached again are not, nor is what Docker does not know.
func TestContainersThatWereStartedAgainAreNamed(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "docker.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	id := func(digit string) string { return strings.Repeat(digit, 64) }
	docker := http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch strings.Split(r.URL.Path, "/")[2] {
		case id("a"), id("d"):
			fmt.Fprint(w, `{"State": {"Running": true}}`)
		case id("b"):
			fmt.Fprint(w, `{"State": {"Running": false}}`)
		default:
			http.NotFound(w, r)
		}
	})}
	go docker.Serve(l) //nolint:errcheck // ends with the test
	t.Cleanup(func() { docker.Close() })

	var d ended
	now := time.Now()
	note := func(id, source string) string {
		e := &endpointRecord{AttachRequest: api.AttachRequest{ContainerID: id, Interface: "ethwe", Source: source, Name: "web"}}
		d.note(e, now)
		return e.ref().Key()
	}
	for _, c := range []string{id("a"), id("b"), id("c"), "netns-4026532001"} {
		note(c, SourceAttach)
	}
	note(strings.Repeat("ad", 32), SourceCNI)
	again := note(id("d"), SourceAttach)
	d.look(t.Context(), socket, now)
	if w := d.warnings(); len(w) != 2 || !strings.Contains(w[0], "aaaaaaaaaaaa (web)") || !strings.Contains(w[0], "weft attach") {
		t.Errorf("%q", w)
	}
	if l := d.list(); len(l) != 2 || l[0].ContainerID != id("a") || l[0].Interface != "ethwe" || l[0].Name != "web" {
		t.Errorf("%+v", l)
	}
	d.forget(again)
	if w := d.warnings(); len(w) != 1 {
		t.Errorf("attached again: %q", w)
	}
	d.look(t.Context(), socket, now.Add(endedFor+time.Second))
	if w := d.warnings(); len(w) != 0 || len(d.known) != 0 {
		t.Errorf("a day later: %q", w)
	}
	last := ""
	for i := range 2 * maxEnded {
		last = note(fmt.Sprintf("%064x", i), SourceAttach)
		now = now.Add(time.Second)
	}
	if len(d.known) != maxEnded || d.known[last] == nil {
		t.Errorf("%d are remembered, of the latest: %v", len(d.known), d.known[last])
	}
	if d.look(t.Context(), socket, now); len(d.known) != 0 {
		t.Errorf("%d are remembered that Docker has no more", len(d.known))
	}
}
