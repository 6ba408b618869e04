package mesh

import (
	"bytes"
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
		Identity: m.cfg.Identity, Run: m.name, Network: network, Refused: m.reject,
		Best: m.best, Addresses: m.recorded, Inside: m.inside, Confined: m.confined, Knows: m.isPlace, Find: m.passable,
		Older: m.tellOlder, OlderThere: m.greetOlder,
		Moved:   m.lostPackets,
		Show:    m.show,
		Welcome: m.welcome,
		Gossip:  m.judged,
		Serve: func(s *session.Stream) {
			if s.Use == session.Admit {
				m.admit(s)
				return
			}
			m.answer(ctx, s)
		},
		Incoming: m.judgePacket, Outgoing: m.judge.Sent,
	})
	if err != nil {
		_ = network.Shutdown()
	}
	return t, err
}

var errUnknownUse = errors.New("it wants to use a stream for what this version of Weft does not know: upgrade the older one")

// show returns what proves to the other end that this host is a member. A host that asks to become one
// knows only a hash of the root key.
func (m *Mesh) show(use session.Use) []byte {
	if use == session.Admit {
		return append(bytes.Clone(m.cfg.Root), m.cfg.Certificate...)
	}
	return m.cfg.Certificate
}

// welcome refuses a peer whose certificate does not chain to the cluster's root key, or that is banned.
func (m *Mesh) welcome(p session.Peer, use session.Use) error {
	switch {
	case use == session.Admit && m.cfg.Admit == nil:
		return errAdmitsNobody
	case use == session.Admit && !member.IsCluster(p.Body, m.cfg.Root):
		return errors.New("its token is of another network: check the address and the token")
	case use == session.Admit:
		return nil
	case use < session.Keys || use > session.Forward:
		return errUnknownUse
	}
	err := m.checkMember(p.Key, p.Body)
	if banned, ok := errors.AsType[*BannedError](err); ok {
		return banned
	}
	if err != nil {
		m.cfg.Log.Debug("refusing a peer", "peer", m.Name(p.ID), "addr", p.Addr, "err", err)
		return errors.New(wrongSecret)
	}
	return nil
}
