package cni

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"testing"

	"weft/prog/api"
	"weft/router/endpoint"
	"weft/router/routertest"
)

func TestMain(m *testing.M) { routertest.Main(m) }

// fake is an agent that knows some endpoints and attaches all others.
type fake struct {
	api.Agent
	known map[string]api.Endpoint
}

func (f fake) Endpoint(_ context.Context, ref api.EndpointRef) (api.Endpoint, error) {
	if e, ok := f.known[ref.Key()]; ok {
		return e, nil
	}
	return api.Endpoint{}, &api.Error{Code: api.CodeNotFound, Message: "not attached here"}
}

func (f fake) Attach(context.Context, api.AttachRequest) (api.AttachReply, error) {
	return api.AttachReply{Addresses: []netip.Addr{netip.MustParseAddr("10.32.0.7")}, MTU: 1400}, nil
}

// A link that was left by an attachment that was broken off (kill -9) is in nobody's
// way; one that the agent knows is refused and stays.
func TestAttachOverALeftOver(t *testing.T) {
	host, container := routertest.New(t), routertest.New(t)
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	agent := fake{known: map[string]api.Endpoint{"taken/eth1": {Addresses: []netip.Addr{netip.MustParseAddr("10.32.0.9")}}}}
	server := http.Server{Handler: api.Handler(agent)}
	go server.Serve(l) //nolint:errcheck // ends with the test
	t.Cleanup(func() { server.Close() })
	host.Do(func() {
		for id, iface := range map[string]string{"left": "eth0", "taken": "eth1"} {
			if _, err := endpoint.Create(endpoint.HostLink(id, iface), container.Path(), iface); err != nil {
				t.Fatal(err)
			}
		}
		at := Attachment{Netns: container.Path(), AttachRequest: api.AttachRequest{ContainerID: "left", Interface: "eth0"}}
		if _, err := Attach(t.Context(), api.NewClient(socket), at); err != nil {
			t.Errorf("over a left-over: %v", err)
		}
		at.ContainerID, at.Interface = "taken", "eth1"
		_, err := Attach(t.Context(), api.NewClient(socket), at)
		if e, ok := errors.AsType[*api.Error](err); !ok || e.Code != api.CodeConflict {
			t.Errorf("one that is attached: %v", err)
		}
		if links, err := endpoint.List(); len(links) != 2 {
			t.Errorf("links %v, %v", links, err)
		}
	})
}
