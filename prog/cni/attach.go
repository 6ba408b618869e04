package cni

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"

	"golang.org/x/sync/errgroup"

	"weft/prog/api"
	"weft/router/endpoint"
)

// Attachment is one interface of one container, as it is to be made.
type Attachment struct {
	api.AttachRequest
	Netns   string // path of the container's network namespace
	Default bool   // whether all traffic goes this way, or only the universe's
}

// Attached is what came of it.
type Attached struct {
	api.AttachReply
	HostMAC, ContainerMAC net.HardwareAddr
}

// Attach makes the veth pair and asks the agent for an address meanwhile; then it
// sets up the container's side and the agent the host's. `weft attach` and CNI ADD
// are this. If a step fails, all of it is undone.
func Attach(ctx context.Context, client *api.Client, at Attachment) (_ Attached, err error) {
	at.HostLink = endpoint.HostLink(at.ContainerID, at.Interface)
	pair := endpoint.PairOf(at.HostLink)
	at.MAC = pair.ContainerMAC.String()
	container, err := endpoint.Open(at.Netns, at.Interface)
	if err != nil {
		return Attached{}, err
	}
	defer container.Close()
	reply, err := begin(ctx, client, container, at)
	if err != nil {
		return Attached{}, err
	}
	var both errgroup.Group
	both.Go(func() error { return client.Plug(ctx, at.ref()) })
	both.Go(func() error { return container.Configure(containerSide(reply, pair, at.Default)) })
	if err := both.Wait(); err != nil {
		return Attached{}, errors.Join(err, Detach(context.WithoutCancel(ctx), client, at.ref()))
	}
	return Attached{reply, pair.HostMAC, pair.ContainerMAC}, nil
}

func (at Attachment) ref() api.EndpointRef {
	return api.EndpointRef{ContainerID: at.ContainerID, Interface: at.Interface}
}

// begin makes the pair and gets the address, or leaves neither.
func begin(ctx context.Context, client *api.Client, container *endpoint.Container, at Attachment) (reply api.AttachReply, err error) {
	var refused, failed error
	var side sync.WaitGroup
	side.Go(func() { reply, refused = client.Attach(ctx, at.AttachRequest) })
	failed = container.Create(at.HostLink)
	side.Wait()
	if refused == nil && errors.Is(failed, endpoint.ErrExists) { // the agent knew nothing of it: it was broken off halfway
		if failed = endpoint.Delete(at.HostLink); failed == nil {
			failed = container.Create(at.HostLink)
		}
	}
	switch {
	case refused == nil && failed == nil:
		return reply, nil
	case refused == nil:
		return reply, errors.Join(failed, client.Detach(context.WithoutCancel(ctx), at.ref()))
	case failed == nil:
		return reply, errors.Join(refused, endpoint.Delete(at.HostLink))
	case errors.Is(failed, endpoint.ErrExists):
		return reply, refused
	}
	return reply, failed
}

func containerSide(reply api.AttachReply, pair endpoint.Pair, isDefault bool) endpoint.Config {
	c := endpoint.Config{HostMAC: pair.HostMAC, MTU: reply.MTU, Routes: reply.Universe}
	for _, a := range reply.Addresses {
		if a.Is4() {
			c.Addr4 = a
		} else {
			c.Addr6 = a
		}
	}
	if isDefault {
		c.Routes = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}
		if c.Addr6.IsValid() {
			c.Routes = append(c.Routes, netip.MustParsePrefix("::/0"))
		}
	}
	return c
}

// Detach ends an endpoint: its link at once, then its address. It returns an
// *api.NotRunningError if no agent answers; the link is gone then all the same.
func Detach(ctx context.Context, client *api.Client, ref api.EndpointRef) error {
	if err := endpoint.Delete(endpoint.HostLink(ref.ContainerID, ref.Interface)); err != nil {
		return err
	}
	return client.Detach(ctx, ref)
}
