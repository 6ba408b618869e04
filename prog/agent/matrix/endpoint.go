package matrix

import (
	"context"
	"errors"
	"math/rand/v2"

	"weft/prog/api"
	"weft/router/endpoint"
)

const (
	ifname    = "eth0"
	namespace = "weft-check" // of test endpoints: policies of other namespaces do not select them
)

// ref is the test endpoint of a host. Its name is constant, so that an agent finds what a killed one has left.
var ref = api.EndpointRef{ContainerID: namespace, Interface: ifname}

// attach makes and attaches a test endpoint.
func (m *Matrix) attach(ctx context.Context) (_ *tester, err error) {
	if err := m.clean(ctx); err != nil {
		return nil, err
	}
	hostLink := endpoint.HostLink(ref.ContainerID, ref.Interface)
	defer func() {
		if err != nil {
			err = errors.Join(err, m.clean(context.WithoutCancel(ctx)))
		}
	}()
	if err := endpoint.MakeLocal(hostLink); err != nil {
		return nil, err
	}
	pair := endpoint.PairOf(hostLink)
	reply, err := m.cfg.Endpoints.Attach(ctx, api.AttachRequest{
		ContainerID: ref.ContainerID, Interface: ref.Interface, Source: api.SourceAttach, Namespace: namespace, HostLink: hostLink, MAC: pair.ContainerMAC.String(),
	})
	if err != nil {
		return nil, err
	}
	frames, err := endpoint.OpenLocal(hostLink, reply.MTU)
	if err != nil {
		return nil, err
	}
	if err := m.cfg.Endpoints.Plug(ctx, ref); err != nil {
		return nil, errors.Join(err, frames.Close())
	}
	t := newTester(frames, pair, reply.Addresses, reply.MTU, 1+rand.IntN(0xffff))
	t.close = func() {
		_ = frames.Close() // nothing is lost with it
		if err := m.clean(context.WithoutCancel(ctx)); err != nil {
			m.cfg.Log.Warn("a test endpoint is not removed: the next check or the next start of the agent removes it", "err", err)
		}
	}
	return t, nil
}

// clean removes the test endpoint of this host and its link, if there is one.
func (m *Matrix) clean(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, allTalk)
	defer cancel()
	err := endpoint.Remove(endpoint.HostLink(ref.ContainerID, ref.Interface))
	return errors.Join(err, m.cfg.Endpoints.Detach(ctx, ref))
}
