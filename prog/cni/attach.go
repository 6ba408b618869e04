package cni

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"weft/prog/api"
	"weft/router/endpoint"
)

// Attachment describes one interface of one container that Attach makes.
type Attachment struct {
	api.AttachRequest
	Netns   string // path of the container's network namespace
	Default bool   // whether the container gets the default route, or only routes to the overlay's addresses
	Beside  bool   // whether the container has another network, whose routes stay
}

// ParseAddresses parses the addresses that a container requests. CNI's conventions require a prefix
// length. It is ignored, since an endpoint has single addresses.
func ParseAddresses(list []string) (out []netip.Addr, err error) {
	for _, s := range list {
		addr, err := netip.ParseAddr(s)
		if p, e := netip.ParsePrefix(s); e == nil {
			addr, err = p.Addr(), nil
		}
		if err != nil || addr.Zone() != "" {
			return nil, fmt.Errorf("%q is no IP address: want one such as 10.32.0.7", s)
		}
		out = append(out, addr.Unmap())
	}
	return out, nil
}

// Attached is what Attach has configured.
type Attached struct {
	api.AttachReply
	HostMAC, ContainerMAC net.HardwareAddr
}

// Attach attaches a container for `weft attach` and for CNI ADD. It makes the veth pair while it
// waits for the addresses from the agent. Then it configures the container's side while the agent
// configures the host's side. If a step fails, Attach undoes all earlier steps.
func Attach(ctx context.Context, client *api.Client, at Attachment) (_ Attached, err error) {
	if err := endpoint.CheckInterface(at.Interface); err != nil {
		return Attached{}, &api.Error{Code: api.CodeBadRequest, Message: err.Error()}
	}
	at.HostLink = endpoint.HostLink(at.ContainerID, at.Interface)
	pair := endpoint.PairOf(at.HostLink)
	at.MAC = pair.ContainerMAC.String()
	reply, container, err := begin(ctx, client, at)
	if err != nil {
		return Attached{}, err
	}
	defer container.Close()
	plugged := client.StartPlug(ctx, at.ref())
	err = errors.Join(container.Configure(containerSide(reply, pair, at)), plugged())
	if err != nil {
		return Attached{}, errors.Join(err, Detach(context.WithoutCancel(ctx), client, at.ref()))
	}
	return Attached{reply, pair.HostMAC, pair.ContainerMAC}, nil
}

func (at Attachment) ref() api.EndpointRef {
	return api.EndpointRef{ContainerID: at.ContainerID, Interface: at.Interface}
}

// begin makes the veth pair and gets the addresses. On an error, neither is left.
func begin(ctx context.Context, client *api.Client, at Attachment) (api.AttachReply, *endpoint.Container, error) {
	addressed := client.StartAttach(ctx, at.AttachRequest)
	container, failed := create(at)
	reply, refused := addressed()
	if refused == nil && errors.Is(failed, endpoint.ErrExists) { // no endpoint of the agent has this link: an interrupted attachment left it
		if failed = endpoint.Delete(at.HostLink); failed == nil {
			container, failed = create(at)
		}
	}
	switch {
	case refused == nil && failed == nil:
		return reply, container, nil
	case refused == nil:
		return reply, nil, errors.Join(failed, client.Detach(context.WithoutCancel(ctx), at.ref()))
	case failed == nil:
		container.Close()
		return reply, nil, errors.Join(refused, endpoint.Delete(at.HostLink))
	case errors.Is(failed, endpoint.ErrExists):
		return reply, nil, refused
	}
	return reply, nil, failed
}

func create(at Attachment) (*endpoint.Container, error) {
	container, err := endpoint.Open(at.Netns, at.Interface)
	if err != nil {
		return nil, err
	}
	if err := container.Create(at.HostLink); err != nil {
		container.Close()
		return nil, err
	}
	return container, nil
}

func containerSide(reply api.AttachReply, pair endpoint.Pair, at Attachment) endpoint.Config {
	c := endpoint.Config{HostMAC: pair.HostMAC, MTU: reply.MTU, Beside: at.Beside}
	if at.Beside || !at.Default {
		c.Routes = slices.Clone(reply.Universe)
	}
	for _, a := range reply.Addresses {
		if a.Is4() {
			c.Addr4 = a
		} else {
			c.Addr6 = a
		}
	}
	if at.Default {
		c.Routes = append(c.Routes, netip.MustParsePrefix("0.0.0.0/0"))
		if c.Addr6.IsValid() {
			c.Routes = append(c.Routes, netip.MustParsePrefix("::/0"))
		}
	}
	return c
}

// Detach removes an endpoint's link, then releases its address. Detach asks the agent to do both, since
// a short-lived process would have to wait until the kernel has freed the link. If the agent does not
// remove the link, Detach does. The error is an *api.NotRunningError if there is no agent, and an
// *api.SilentError if the agent does not answer.
func Detach(ctx context.Context, client *api.Client, ref api.EndpointRef) error {
	err := client.Detach(ctx, ref)
	if left := endpoint.Delete(endpoint.HostLink(ref.ContainerID, ref.Interface)); left != nil {
		return left
	}
	return err
}
