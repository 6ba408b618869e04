package mesh

import (
	"context"
	"errors"

	"github.com/hashicorp/memberlist"

	"weft/mesh/member"
	"weft/mesh/session"
)

// newTransport returns memberlist's transport: sessions over the network.
func (m *Mesh) newTransport(ctx context.Context, conf *memberlist.Config) (*session.Transport, error) {
	network := m.cfg.Transport
	if network == nil {
		var err error
		network, err = memberlist.NewNetTransport(&memberlist.NetTransportConfig{BindAddrs: []string{conf.BindAddr}, BindPort: conf.BindPort, Logger: conf.Logger})
		if err != nil {
			return nil, err
		}
	}
	t, err := session.New(session.Config{
		Identity: m.cfg.Identity, Run: m.name, Network: network, Addresses: m.recorded, Refused: m.reject, Older: m.tellOlder,
		Show:     func(session.Use) []byte { return m.cfg.Certificate },
		Welcome:  m.welcome,
		Gossip:   m.judged,
		Serve:    func(s *session.Stream) { m.answer(ctx, s) },
		Incoming: m.judgePacket, Outgoing: m.judge.Sent,
	})
	if err != nil {
		_ = network.Shutdown()
	}
	return t, err
}

var errUnknownUse = errors.New("it wants to use a stream for what this version of Weft does not know: upgrade the older one")

// welcome refuses a peer whose certificate does not chain to the cluster's root key.
func (m *Mesh) welcome(p session.Peer, use session.Use) error {
	if use < session.Keys || use > session.Request {
		return errUnknownUse
	}
	if _, err := member.Verify(m.cfg.Root, p.Key, p.Body); err != nil {
		m.cfg.Log.Debug("refusing a peer", "peer", m.Name(p.ID), "addr", p.Addr, "err", err)
		return errors.New(wrongSecret)
	}
	return nil
}
