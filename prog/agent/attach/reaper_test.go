package attach

import (
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"weft/prog/agent/settings"
	"weft/prog/api"
)

// An endpoint whose link was deleted by hand is a problem with its fix: within half a minute, but not
// before a runtime's own DEL would have come.
func TestADeletedLinkIsReported(t *testing.T) {
	f := newFixture(t, nil, nil)
	req := request("c0ffee")
	req.Namespace, req.Name = "shop", "cart"
	if _, err := f.Attach(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	told := func() bool {
		for _, p := range f.Problems() {
			text := p.String()
			if strings.HasPrefix(text, "shop/cart cannot be reached") && strings.Contains(text, req.HostLink) && strings.Contains(text, "Delete the pod") {
				return true
			}
		}
		return false
	}
	rounds := 0
	for ; !told() && rounds < 100; rounds++ {
		f.releaseEnded(t.Context())
	}
	if after := time.Duration(rounds) * period; after > 30*time.Second || after < 10*time.Second {
		t.Errorf("the problem was reported after %v, want 10 s to 30 s", after)
	}
	f.endpoints["c0ffee/eth0"].missing = 0 // as if the link were there again
	if told() {
		t.Error("a problem was reported for an existing link, want none")
	}
}

// ended has the UIDs of pods whose objects were deleted from the API server.
type ended struct {
	NoPods
	mu   sync.Mutex
	uids []string
}

func (e *ended) Ended(_, _, uid string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Contains(e.uids, uid)
}

// Some chained plugins do not pass on the DEL of a pod. Its address is released once its link and its
// object have been gone for a while. A pod that the API server has keeps its address, and so does an
// endpoint that is no pod.
func TestPodsWithoutDELReleaseTheirAddresses(t *testing.T) {
	pods := &ended{}
	f := newFixture(t, nil, func(c *Config) { c.Pods = pods })
	for _, uid := range []string{"ended", "running", ""} {
		req := request("c" + uid)
		req.Namespace, req.Name, req.PodUID = "shop", uid, uid
		if _, err := f.Attach(t.Context(), req); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 * forgotten {
		f.releaseEnded(t.Context())
	}
	if len(f.Get()) != 3 {
		t.Errorf("%d endpoints are left before any pod counts as ended, want 3", len(f.Get()))
	}
	pods.uids = []string{"ended"}
	f.releaseEnded(t.Context())
	if _, left := f.get("cended/eth0"); left || len(f.Get()) != 2 || f.ipam.Given() != 2 {
		t.Errorf("endpoints %v and %d allocated addresses are left; want two of each, none of the pod that ended", f.Get(), f.ipam.Given())
	}
}

func TestAPodWhoseObjectIsGoneKeepsItsAddressForAWhile(t *testing.T) {
	pods := &ended{uids: []string{"u"}}
	f := newFixture(t, nil, func(c *Config) { c.Pods = pods })
	req := request("c1")
	req.PodUID = "u"
	if _, err := f.Attach(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	rounds := 0
	for ; len(f.Get()) > 0 && rounds < 100; rounds++ {
		f.releaseEnded(t.Context())
	}
	if rounds != forgotten {
		t.Errorf("the pod was released after %d rounds, want the constant forgotten", rounds)
	}
}

// A link may just be moving between namespaces, so an attachment by hand only ends in the second
// round without it. If Docker may start the container again, it is recorded. Its names are released.
func TestAnAttachmentByHandEndsWithItsNamespace(t *testing.T) {
	f := newFixture(t, nil, nil)
	id := strings.Repeat("a", 64)
	req := request(id)
	req.Source, req.Name = api.SourceAttach, "web.weft.internal"
	if _, err := f.Attach(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	key := req.ContainerID + "/eth0"
	if e, _ := f.get(key); e.Name != "web" {
		t.Errorf("the endpoint's name is %s, want it without the domain", e.Name)
	}
	if err := f.settings.Change(func(v *settings.Values) error {
		v.Names = append(v.Names, settings.Name{Name: "shop", Endpoint: key})
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	f.releaseEnded(t.Context())
	if len(f.Get()) != 1 {
		t.Fatal("the attachment ended in the first round, want the second")
	}
	f.releaseEnded(t.Context())
	if len(f.Get()) != 0 || f.ipam.Given() != 0 || f.settings.Get().Named(key) {
		t.Errorf("endpoints %v, %d addresses and names %v are left, want none of the attachment", f.Get(), f.ipam.Given(), f.settings.Get().Names)
	}
}

func TestCollectDetachesContainersThatTheRuntimeDoesNotList(t *testing.T) {
	f := newFixture(t, nil, nil)
	for id, network := range map[string]string{"known": "weft", "forgotten": "weft", "other": "other"} {
		req := request(id)
		req.Network = network
		if _, err := f.Attach(t.Context(), req); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Collect(t.Context(), api.CollectRequest{Network: "weft", Valid: []api.EndpointRef{ref("known")}}); err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, e := range f.Get() {
		left = append(left, e.ContainerID)
	}
	if !slices.Equal(left, []string{"known", "other"}) {
		t.Errorf("endpoints of containers %v are left, want known and other", left)
	}
}
