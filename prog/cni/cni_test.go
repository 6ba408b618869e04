package cni

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"

	"weft/prog/api"
	"weft/prog/api/server"
	"weft/router/endpoint"
	"weft/router/routertest"
)

func TestMain(m *testing.M) { routertest.Main(m) }

// fake is an agent that already has some endpoints, and attaches all others.
type fake struct {
	server.Agent
	known    []string
	plug     error
	detached chan string
}

func (f fake) Attach(_ context.Context, req api.AttachRequest) (api.AttachReply, error) {
	ref := api.EndpointRef{ContainerID: req.ContainerID, Interface: req.Interface}
	if slices.Contains(f.known, ref.Key()) {
		return api.AttachReply{}, &api.Error{Code: api.CodeConflict, Message: "attached already"}
	}
	return api.AttachReply{Addresses: []netip.Addr{netip.MustParseAddr("10.32.0.7")}, MTU: 1400}, nil
}

func (f fake) Plug(context.Context, api.EndpointRef) error { return f.plug }

func (f fake) Detach(_ context.Context, ref api.EndpointRef) error {
	f.detached <- ref.Key()
	return nil
}

func (f fake) serve(t *testing.T) *api.Client {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := http.Server{Handler: server.Handler(f)}
	go srv.Serve(l) //nolint:errcheck // fails when the test closes the listener
	t.Cleanup(func() { srv.Close() })
	return api.NewClient(socket)
}

// ADD replaces a link that an interrupted attachment left (kill -9). For an endpoint that the agent
// already has, ADD fails and keeps the link.
func TestAddReplacesALinkOfAnInterruptedAttachment(t *testing.T) {
	host, container := routertest.New(t), routertest.New(t)
	client := fake{known: []string{"taken/eth1"}}.serve(t)
	host.Do(func() {
		for id, iface := range map[string]string{"left": "eth0", "taken": "eth1"} {
			in, err := endpoint.Open(container.Path(), iface)
			if err != nil {
				t.Fatal(err)
			}
			defer in.Close()
			if err := in.Create(endpoint.HostLink(id, iface)); err != nil {
				t.Fatal(err)
			}
		}
		at := Attachment{Netns: container.Path(), AttachRequest: api.AttachRequest{ContainerID: "left", Interface: "eth0"}}
		if _, err := Attach(t.Context(), client, at); err != nil {
			t.Errorf("ADD over a left-over link returned %v, want success", err)
		}
		at.ContainerID, at.Interface = "taken", "eth1"
		_, err := Attach(t.Context(), client, at)
		if e, ok := errors.AsType[*api.Error](err); !ok || e.Code != api.CodeConflict {
			t.Errorf("ADD of an attached endpoint returned %v, want a conflict", err)
		}
		if links, err := endpoint.List(); len(links) != 2 {
			t.Errorf("the links are %v, error %v; want the links of two endpoints", links, err)
		}
	})
}

// If a step fails, no link is left, and the agent is told to release the address.
func TestAttachUndoesAllStepsOnFailure(t *testing.T) {
	host, container := routertest.New(t), routertest.New(t)
	broken := errors.New("no such table")
	at := Attachment{Netns: container.Path(), AttachRequest: api.AttachRequest{ContainerID: "c1", Interface: "eth0"}}
	nowhere, loopback := at, at
	nowhere.Netns, loopback.Interface = "/nowhere", "lo"
	for name, c := range map[string]struct {
		agent    fake
		at       Attachment
		says     string
		detaches bool
	}{
		"refused":      {fake{known: []string{"c1/eth0"}}, at, "attached already", false},
		"no namespace": {fake{}, nowhere, "/nowhere", true},
		"name taken":   {fake{}, loopback, "has an interface lo already", true},
		"not plugged":  {fake{plug: broken}, at, broken.Error(), true},
	} {
		c.agent.detached = make(chan string, 1)
		client := c.agent.serve(t)
		host.Do(func() {
			if _, err := Attach(t.Context(), client, c.at); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%s: Attach returned %v; want the error of the failed step", name, err)
			}
			if links, err := endpoint.List(); len(links) != 0 {
				t.Errorf("%s: the links %v are left, error %v; want none", name, links, err)
			}
		})
		if got := len(c.agent.detached); got != 0 != c.detaches {
			t.Errorf("%s: the agent got %d requests to detach the endpoint, want one request if it attached the endpoint, else none", name, got)
		}
	}
}

// pair makes a container's veth pair, from the host's namespace.
func pair(t *testing.T, container routertest.Namespace) {
	t.Helper()
	in, err := endpoint.Open(container.Path(), "eth0")
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if err := in.Create(endpoint.HostLink("c1", "eth0")); err != nil {
		t.Fatal(err)
	}
}

// If the agent hangs (as after SIGSTOP), DEL still removes the link, and fails in time with an error
// code of the CNI spec.
func TestDelRemovesTheLinkIfTheAgentHangs(t *testing.T) {
	host, container := routertest.New(t), routertest.New(t)
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket) // no connection is accepted
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	host.Do(func() {
		pair(t, container)
		err = Detach(t.Context(), api.NewClient(socket).Within(50*time.Millisecond), api.EndpointRef{ContainerID: "c1", Interface: "eth0"})
		if _, down := errors.AsType[*api.NotRunningError](err); err == nil || down {
			t.Errorf("DEL with a hanging agent returned %v, want an error other than NotRunningError", err)
		}
		e, ok := errors.AsType[*types.Error](cniError(err))
		if !ok || e.Code != types.ErrTryAgainLater || !strings.Contains(e.Msg+e.Details, "does not answer") || strings.Contains(e.Msg, "address") {
			t.Errorf("DEL returned %v; want code 11 and a message that the agent does not answer", e)
		}
		if links, err := endpoint.List(); len(links) != 0 {
			t.Errorf("DEL left the links %v, error %v; want none", links, err)
		}
	})
	if patience >= 10*time.Second {
		t.Errorf("the plugin waits %v for the agent, want less than 10s", patience)
	}
}

// DEL also removes a link that belongs to no endpoint of the agent.
func TestDelRemovesALinkOfNoEndpoint(t *testing.T) {
	host, container := routertest.New(t), routertest.New(t)
	client := fake{detached: make(chan string, 1)}.serve(t)
	host.Do(func() {
		pair(t, container)
		if err := Detach(t.Context(), client, api.EndpointRef{ContainerID: "c1", Interface: "eth0"}); err != nil {
			t.Error(err)
		}
		if links, err := endpoint.List(); len(links) != 0 {
			t.Errorf("DEL left the links %v, error %v; want none", links, err)
		}
	})
}

// A container's name, namespace, labels and ports come from CNI_ARGS or from args.
func TestNameLabelsAndPortsComeFromCNIArguments(t *testing.T) {
	const conf = `{"cniVersion": "1.1.0", "name": "n", "type": "weft-cni", "labels": {"tier": "back", "zone": "a"},
		"args": {"cni": {"labels": [{"key": "tier", "value": "front"}], "name": "web", "namespace": "prod",
			"ports": [{"name": "http", "protocol": "tcp", "port": 80}]}}}`
	for name, c := range map[string]struct {
		k8s  arguments
		want api.AttachRequest
	}{
		"args":       {arguments{}, api.AttachRequest{Name: "web", Namespace: "prod"}},
		"kubernetes": {arguments{K8S_POD_NAME: "pod-1", K8S_POD_NAMESPACE: "default", K8S_POD_UID: "u1"}, api.AttachRequest{Name: "pod-1", Namespace: "default", PodUID: "u1"}},
	} {
		parsed, _, err := parse([]byte(conf))
		if err != nil {
			t.Fatal(err)
		}
		c.want.Labels = map[string]string{"tier": "front", "zone": "a"}
		c.want.Ports = []api.Port{{Name: "http", Protocol: "tcp", Number: 80}}
		var got api.AttachRequest
		parsed.describe(c.k8s, &got)
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("%s: wrong request (-want +got):\n%s", name, d)
		}
	}
}
