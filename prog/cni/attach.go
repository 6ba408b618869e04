package cni

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

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

// Attach makes the veth pair, asks the agent for the address and the host side,
// and sets up the container's side; `weft attach` and CNI ADD are this. If a later
// step fails, the earlier ones are undone.
func Attach(ctx context.Context, client *api.Client, at Attachment) (_ Attached, err error) {
	at.HostLink = endpoint.HostLink(at.ContainerID, at.Interface)
	ref := api.EndpointRef{ContainerID: at.ContainerID, Interface: at.Interface}
	pair, err := endpoint.Create(at.HostLink, at.Netns, at.Interface)
	if errors.Is(err, endpoint.ErrExists) {
		if err := leftOver(ctx, client, ref, at.HostLink); err != nil {
			return Attached{}, err
		}
		pair, err = endpoint.Create(at.HostLink, at.Netns, at.Interface)
	}
	if err != nil {
		return Attached{}, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, endpoint.Delete(at.HostLink))
		}
	}()
	at.MAC = pair.ContainerMAC.String()
	reply, err := client.Attach(ctx, at.AttachRequest)
	if err != nil {
		return Attached{}, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, client.Detach(context.WithoutCancel(ctx), ref))
		}
	}()
	if err := endpoint.Configure(at.Netns, at.Interface, containerSide(reply, pair, at.Default)); err != nil {
		return Attached{}, err
	}
	return Attached{reply, pair.HostMAC, pair.ContainerMAC}, nil
}

// leftOver removes the link of an attachment that was broken off halfway: one that
// the agent knows nothing of. One that it does know is an error that names its address.
func leftOver(ctx context.Context, client *api.Client, ref api.EndpointRef, hostLink string) error {
	e, err := client.Endpoint(ctx, ref)
	if answer, ok := errors.AsType[*api.Error](err); ok && answer.Code == api.CodeNotFound {
		return endpoint.Delete(hostLink)
	}
	if err != nil {
		return err
	}
	return &api.Error{Code: api.CodeConflict, Message: fmt.Sprintf(
		"%s of container %s is attached already, as %v: detach it first", ref.Interface, ref.ContainerID, e.Addresses[0])}
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
