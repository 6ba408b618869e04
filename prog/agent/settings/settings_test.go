package settings_test

import (
	"errors"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"weft/prog/agent/agenttest"
	"weft/prog/agent/settings"
)

func load(t *testing.T, store settings.Store, exclude []netip.Prefix) *settings.Settings {
	t.Helper()
	s, err := settings.Load(store, exclude)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// name returns a change that gives an endpoint a name.
func name(name, endpoint string) func(*settings.Values) error {
	return func(v *settings.Values) error {
		v.Names = append(v.Names, settings.Name{Name: name, Endpoint: endpoint})
		return nil
	}
}

func TestAChangeIsPublishedAndOutlivesARestart(t *testing.T) {
	disk := &agenttest.Settings{}
	s := load(t, disk, nil)
	before, version := s.Read()
	if err := s.Change(name("web", "c1/eth0")); err != nil {
		t.Fatal(err)
	}
	select {
	case <-s.Changed(version):
	default:
		t.Error("a change was not published, want a new version")
	}
	for who, v := range map[string]settings.Values{"now": s.Get(), "after a restart": load(t, disk, nil).Get()} {
		if !slices.Equal(v.Aliases("c1/eth0"), []string{"web"}) || !v.Named("c1/eth0") || v.Named("c2/eth0") {
			t.Errorf("%s: settings %+v, want the alias web of c1 only", who, v)
		}
	}
	if len(before.Names) != 0 {
		t.Error("values that were published before have changed")
	}
}

func TestAChangeThatIsRefusedOrCannotBeKeptChangesNothing(t *testing.T) {
	disk := &agenttest.Settings{}
	s := load(t, disk, nil)
	if err := s.Change(name("web", "c1/eth0")); err != nil {
		t.Fatal(err)
	}
	version := s.Version()
	refused := errors.New("the name belongs to another container")
	err := s.Change(func(v *settings.Values) error {
		v.Exposed, v.Names[0].Name = true, "changed"
		return refused
	})
	disk.Fail = errors.New("the disk is full")
	full := s.Change(name("db", "c2/eth0"))
	disk.Fail = nil
	if !errors.Is(err, refused) || full == nil {
		t.Errorf("a refused change: %v; a full disk: %v; want both errors", err, full)
	}
	for who, v := range map[string]settings.Values{"now": s.Get(), "after a restart": load(t, disk, nil).Get()} {
		if v.Exposed || len(v.Names) != 1 || v.Names[0].Name != "web" {
			t.Errorf("%s: settings %+v, want the name web only", who, v)
		}
	}
	if s.Version() != version {
		t.Error("a change that failed was published, want the old version")
	}
}

func TestNamesOfAnEndpointEndWithIt(t *testing.T) {
	disk := &agenttest.Settings{}
	s := load(t, disk, nil)
	for _, one := range [][2]string{{"web", "c1/eth0"}, {"shop", "c1/eth0"}, {"db", "c2/eth0"}, {"printer", ""}} {
		if err := s.Change(name(one[0], one[1])); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Change(func(v *settings.Values) error { v.Withdrawn = []string{"c1/eth0", "c2/eth0"}; return nil }); err != nil {
		t.Fatal(err)
	}
	if v := s.Get(); !slices.Equal(v.Aliases("c1/eth0"), []string{"shop", "web"}) || v.Outside("printer") != 1 || v.Outside("web") != 0 {
		t.Errorf("settings %+v; want aliases shop and web of c1, and printer outside", v)
	}
	if err := s.Forget("c1/eth0"); err != nil {
		t.Fatal(err)
	}
	for who, v := range map[string]settings.Values{"now": s.Get(), "after a restart": load(t, disk, nil).Get()} {
		if v.Named("c1/eth0") || !v.Named("c2/eth0") || len(v.Names) != 2 || !slices.Equal(v.Withdrawn, []string{"c2/eth0"}) {
			t.Errorf("%s: settings %+v, want the names of c2 and of the outside address only", who, v)
		}
	}
	version := s.Version()
	disk.Fail = errors.New("the disk is full")
	if err := s.Forget("c3/eth0"); err != nil || s.Version() != version {
		t.Errorf("Forget of an endpoint without names: error %v; want none, and nothing stored", err)
	}
	if err := s.Forget("c2/eth0"); err == nil || !s.Get().Named("c2/eth0") {
		t.Errorf("Forget on a full disk: error %v; want one, and the names kept", err)
	}
}

func TestConcurrentChangesAreAllKept(t *testing.T) {
	s := load(t, &agenttest.Settings{}, nil)
	var group sync.WaitGroup
	for range 20 {
		group.Go(func() {
			if err := s.Change(name("web", "c1/eth0")); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if n := len(s.Get().Names); n != 20 {
		t.Errorf("%d names after 20 concurrent changes, want 20", n)
	}
}

func TestExcludedRangesReplaceTheStoredOnes(t *testing.T) {
	disk := &agenttest.Settings{}
	first, second := netip.MustParsePrefix("10.32.0.0/24"), netip.MustParsePrefix("10.32.1.0/24")
	for _, c := range []struct{ asked, want []netip.Prefix }{
		{[]netip.Prefix{first}, []netip.Prefix{first}},
		{nil, []netip.Prefix{first}}, // nothing requested: unchanged
		{[]netip.Prefix{second}, []netip.Prefix{second}},
		{[]netip.Prefix{}, nil},
		{nil, nil},
	} {
		if got := load(t, disk, c.asked).Get().Exclude; !slices.Equal(got, c.want) {
			t.Errorf("requested %v: got %v, want %v", c.asked, got, c.want)
		}
	}
}
