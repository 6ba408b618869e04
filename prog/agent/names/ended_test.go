package names

import (
	"testing"

	"weft/prog/agent/attach"
)

// shrinking has an endpoint at the first look only.
type shrinking struct{ looks int }

func (s *shrinking) Get() []attach.Endpoint {
	if s.looks++; s.looks > 1 {
		return nil
	}
	e := attach.Endpoint{}
	e.ContainerID, e.Interface, e.Name = "c1", "eth0", "web"
	return []attach.Endpoint{e}
}

func (*shrinking) Find(string) ([]string, error) { return nil, nil }

// A container that ends while its names are looked at is no reason to panic.
func TestAnEndpointThatEndsDuringALookupDoesNotPanic(t *testing.T) {
	if n := New(Config{Attached: &shrinking{}}); !n.owns("c1/eth0", "web") {
		t.Error("owns returned false for the name of a container that just ended, want true")
	}
}
