package publish

import (
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"weft/ipam/slot"
	"weft/mesh/directory"
	"weft/prog/agent/agenttest"
	"weft/prog/agent/attach"
	"weft/prog/agent/live"
	"weft/prog/agent/settings"
	"weft/prog/agent/view"
)

func endpoint(name string, s slot.Slot) attach.Endpoint {
	e := attach.Endpoint{Slot: s}
	e.ContainerID, e.Interface, e.Namespace, e.Name, e.Labels = "id-"+name, "eth0", "shop", name, map[string]string{"app": name}
	return e
}

// byID returns entries by their ids. It fails if the directory would refuse one of them.
func byID(t *testing.T, list []directory.Endpoint) map[string]directory.Endpoint {
	t.Helper()
	out := map[string]directory.Endpoint{}
	for _, d := range list {
		if err := d.Check(); err != nil {
			t.Errorf("entry %s: the directory would refuse it: %v; want no error", d.ID, err)
		}
		out[d.ID] = d
	}
	return out
}

func TestEndpointsArePublishedWithTheirNames(t *testing.T) {
	web, db := endpoint("web", 10), endpoint("db", 11)
	set := settings.Values{
		Names: []settings.Name{
			{Name: "shop", Endpoint: web.Key()},
			{Name: "gate", Endpoint: settings.NodeKey},
			{Name: "printer", Addr: netip.MustParseAddr("192.0.2.7")},
			{Name: "printer", Addr: netip.MustParseAddr("192.0.2.8")},
		},
		Withdrawn: []string{db.Key()},
	}
	got := byID(t, own([]attach.Endpoint{web, db}, set, 7, agenttest.View(), true))
	if len(got) != 4 {
		t.Errorf("entries %+v, want 4", got)
	}
	if d := got[web.Key()]; d.Name != "web" || d.Namespace != "shop" || d.Labels["app"] != "web" || !slices.Equal(d.Aliases, []string{"shop"}) || !slices.Equal(d.Slots, []slot.Slot{10}) || d.IPv4Only {
		t.Errorf("entry of web %+v; want its name, alias, label and slot", d)
	}
	if d := got[db.Key()]; d.Name != "" || len(d.Aliases) != 0 || d.Labels["app"] != "db" {
		t.Errorf("entry of db %+v; want no name, since it is withdrawn, and its label", d)
	}
	if d := got[settings.NodeKey]; !slices.Equal(d.Aliases, []string{"gate"}) || !slices.Equal(d.Slots, []slot.Slot{7}) {
		t.Errorf("entry of the host %+v; want alias gate and slot 7", d)
	}
	if d := got["outside/printer"]; len(d.Outside) != 2 || !slices.Equal(d.Aliases, []string{"printer"}) || len(d.Slots) != 0 {
		t.Errorf("entry outside the network %+v; want two addresses, alias printer and no slot", d)
	}
}

func TestAddressesThatAHostDoesNotHaveAreNotPublished(t *testing.T) {
	set := settings.Values{Names: []settings.Name{{Name: "gate", Endpoint: settings.NodeKey}}}
	got := byID(t, own([]attach.Endpoint{endpoint("web", 10)}, set, 0, agenttest.View(), false))
	if len(got) != 1 || !got["id-web/eth0"].IPv4Only {
		t.Errorf("entries %+v, want only the endpoint, without IPv6", got)
	}
}

// Another peer owns the address now, and has another endpoint there.
func TestEndpointsWhoseAddressAnotherPeerOwnsAreNotPublished(t *testing.T) {
	v, web, db := agenttest.View(), endpoint("web", 10), endpoint("db", 11)
	v.Lost[web.Key()] = 10
	got := byID(t, own([]attach.Endpoint{web, db}, settings.Values{}, 7, v, true))
	if _, there := got[db.Key()]; len(got) != 1 || !there {
		t.Errorf("entries %+v, want only db, which is not lost", got)
	}
}

func TestNamesThatExceedDNSLimitsAreNotPublished(t *testing.T) {
	e := endpoint("web", 10)
	e.Name = strings.Repeat("x", 71)
	got := byID(t, own([]attach.Endpoint{e}, settings.Values{}, 7, agenttest.View(), true))
	if d := got[e.Key()]; len(got) != 1 || d.Name != "" || d.Labels["app"] != "web" {
		t.Errorf("entries %+v, want one without the name, and with its label", got)
	}
}

// recorder is a directory that records its calls.
type recorder struct {
	mu    sync.Mutex
	ids   []string // the ids in the last set
	times int
	fail  error
}

func (r *recorder) Publish(list []directory.Endpoint) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.times++
	if r.fail != nil {
		return r.fail
	}
	r.ids = nil
	for _, d := range list {
		r.ids = append(r.ids, d.ID)
	}
	slices.Sort(r.ids)
	return nil
}

// told returns the last published ids, and the number of calls since the last told.
func (r *recorder) told() (ids []string, times int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	times, r.times = r.times, 0
	return r.ids, times
}

type fixture struct {
	Config
	directory recorder
	log       strings.Builder
}

// run runs a publisher that has no ring yet, until the test ends.
func run(t *testing.T) *fixture {
	f := &fixture{}
	f.Config = Config{
		Directory: &f.directory, Attached: &live.Value[[]attach.Endpoint]{}, Settings: &live.Value[settings.Values]{}, NodeAddr: &live.Value[slot.Slot]{},
		View: &live.Value[*view.View]{}, Log: slog.New(slog.NewTextHandler(&f.log, nil)),
	}
	agenttest.Run(t, New(f.Config).Run)
	return f
}

func settle() {
	time.Sleep(2 * pause)
	synctest.Wait()
}

func TestAChangeOfAnyInputIsPublishedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := run(t)
		agenttest.Set(f.Attached, []attach.Endpoint{endpoint("web", 10)})
		settle()
		if _, times := f.directory.told(); times != 0 {
			t.Error("a set was published without a ring, want none")
		}
		for _, c := range []struct {
			what   string
			change func()
			want   string
		}{
			{"a ring", func() { agenttest.Set(f.View, agenttest.View()) }, "id-web/eth0"},
			{"an endpoint", func() { agenttest.Set(f.Attached, []attach.Endpoint{endpoint("web", 10), endpoint("db", 11)}) }, "id-db/eth0 id-web/eth0"},
			{"a name of the host", func() {
				agenttest.Set(f.Settings, settings.Values{Names: []settings.Name{{Name: "gate", Endpoint: settings.NodeKey}}})
			}, "id-db/eth0 id-web/eth0"},
			{"its node address", func() { agenttest.Set(f.NodeAddr, 7) }, "id-db/eth0 id-web/eth0 node"},
		} {
			c.change()
			settle()
			if ids, times := f.directory.told(); strings.Join(ids, " ") != c.want || times != 1 {
				t.Errorf("%s: ids %v, published %d times; want the row's ids, once", c.what, ids, times)
			}
		}
		for n := range 50 { // all containers of a host start at once
			agenttest.Set(f.Attached, []attach.Endpoint{endpoint("web", slot.Slot(n+10))})
			time.Sleep(pause / 50)
		}
		settle()
		if _, times := f.directory.told(); times > 3 {
			t.Errorf("changes at the same time were published %d times, want at most 3", times)
		}
	})
}

func TestAFailedPublicationIsLoggedOnceAndRetried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := run(t)
		f.directory.mu.Lock()
		f.directory.fail = errors.New("it is full")
		f.directory.mu.Unlock()
		for range 3 {
			agenttest.Set(f.View, agenttest.View())
			settle()
		}
		if _, times := f.directory.told(); times != 3 || strings.Count(f.log.String(), "it is full") != 1 {
			t.Errorf("the directory was asked %d times, log: %s; want 3 times, logged once", times, f.log.String())
		}
	})
}
