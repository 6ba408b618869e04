package node

import (
	"context"
	"errors"
	"slices"
	"testing"

	"weft/mesh"
	"weft/prog/agent/agenttest"
	"weft/prog/kube/kubetest"
)

// joined records which hosts were to be joined.
type joined struct{ hosts chan []string }

func (j joined) Connect(hosts []string, replace bool) error {
	if !replace {
		return errors.New("Connect was called without replace, so hosts of deleted Nodes would stay targets; want replace")
	}
	j.hosts <- hosts
	return nil
}
func (joined) Targets() []mesh.Target { return nil }

func TestTheMeshJoinsTheCurrentNodes(t *testing.T) {
	server := kubetest.New()
	server.Set(kubetest.Node("n1", "uid-1", "192.0.2.1"))
	n := following(t, server)
	j := joined{make(chan []string)}
	agenttest.Run(t, func(ctx context.Context) error { return n.followNodes(ctx, j) })
	next := func(want ...string) {
		t.Helper()
		if got := <-j.hosts; !slices.Equal(got, want) {
			t.Errorf("the mesh joins %v, want %v", got, want)
		}
	}
	next() // there are no other Nodes: the targets of the last run are replaced by none
	server.Set(kubetest.Node("n2", "uid-2", "192.0.2.2"))
	next("192.0.2.2")
	server.Set(kubetest.Node("n3", "uid-3", "192.0.2.3"))
	next("192.0.2.2", "192.0.2.3")
	server.Delete(kubetest.Node("n2", "uid-2"))
	next("192.0.2.3")
}
