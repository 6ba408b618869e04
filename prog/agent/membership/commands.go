package membership

import (
	"context"
	"fmt"
	"strings"
	"time"

	"weft/mesh"
	"weft/mesh/member"
	"weft/mesh/peer"
	"weft/prog/api"
)

// mayAdmit refuses a command on a host without the right.
func (m *Membership) mayAdmit() error {
	if m.Admits() {
		return nil
	}
	return &api.Error{Code: api.CodeConflict, Message: "this host may not admit or ban others: use a host that holds the network's secret, or one that a token with --admits admitted"}
}

// CreateToken makes a token and announces its hash.
func (m *Membership) CreateToken(_ context.Context, req api.TokenRequest) (r api.TokenReply, err error) {
	if err := m.mayAdmit(); err != nil {
		return r, err
	}
	if req.Admits && !m.cfg.Trust.Holds() {
		return r, &api.Error{Code: api.CodeConflict, Message: "only a host that holds the network's secret creates tokens with --admits"}
	}
	token, err := member.New(m.cfg.Random, m.cfg.Trust.Root)
	if err != nil {
		return r, err
	}
	body := member.TokenBody{
		Created: time.Now().Unix(), TTL: req.TTL, Uses: req.Uses, Name: req.Name, Certificate: m.cfg.Trust.Certificate,
	}
	if req.Admits {
		body.Rights = member.Admits
	}
	if err := m.writeToken(token.ID(), body); err != nil {
		return r, err
	}
	return api.TokenReply{Token: token.Reveal(), ID: token.ID().String()}, nil
}

func (m *Membership) writeToken(id member.TokenID, body member.TokenBody) error {
	data, err := body.Encode()
	if err != nil {
		return &api.Error{Code: api.CodeBadRequest, Message: err.Error()}
	}
	err = m.Documents.Write([]mesh.Change{{Kind: member.KindToken, Name: id.Name(), Body: data}})
	m.read()
	return err
}

// Tokens lists the tokens, the oldest first.
func (m *Membership) Tokens(context.Context) ([]api.Token, error) {
	m.read()
	ledger, out := m.Ledger(), []api.Token{}
	for _, t := range ledger.Tokens() {
		next := api.Token{
			ID: t.ID.String(), Name: t.Name, Created: time.Unix(t.Created, 0).UTC(), Expires: time.Unix(t.Expires, 0).UTC(),
			Uses: t.Uses, Used: t.Used, Revoked: t.Revoked, Admits: t.Rights.Has(member.Admits), By: m.Mesh.Name(t.By), Hosts: []string{},
		}
		for _, j := range ledger.Joins() {
			if j.Token == t.ID {
				next.Hosts = append(next.Hosts, nameOf(j.Peer, j.Nickname))
			}
		}
		out = append(out, next)
	}
	return out, nil
}

// RevokeToken ends a token, given by the start of its id or by its name.
func (m *Membership) RevokeToken(_ context.Context, req api.RevokeRequest) (r api.RevokeReply, err error) {
	if err := m.mayAdmit(); err != nil {
		return r, err
	}
	m.read()
	id, err := m.find(req.Token)
	if err != nil {
		return r, err
	}
	for _, d := range m.Documents.List(member.KindToken) {
		if d.Name != id.Name() {
			continue
		}
		body, err := member.DecodeTokenBody(d.Body)
		if err != nil {
			return r, err
		}
		body.Revoked, body.Certificate = true, m.cfg.Trust.Certificate
		return api.RevokeReply{ID: id.String()}, m.writeToken(id, body)
	}
	return r, &api.Error{Code: api.CodeNotFound, Message: fmt.Sprintf("token %v is gone", id)}
}

func (m *Membership) find(name string) (found member.TokenID, err error) {
	tokens, lower := m.Ledger().Tokens(), strings.ToLower(name)
	for _, t := range tokens { // whatever names other tokens have
		if lower == t.ID.String() || lower == t.ID.Name() {
			return t.ID, nil
		}
	}
	for _, t := range tokens {
		if t.Name != name && (len(name) < 4 || !strings.HasPrefix(t.ID.Name(), lower)) {
			continue
		}
		if !found.IsZero() {
			return found, &api.Error{Code: api.CodeBadRequest, Message: fmt.Sprintf("several tokens fit %s: give the id (`weft token list`)", name)}
		}
		found = t.ID
	}
	if found.IsZero() {
		return found, &api.Error{Code: api.CodeNotFound, Message: fmt.Sprintf("no token has the id or the name %.64s (`weft token list` shows them)", name)}
	}
	return found, nil
}

// Ban bans a peer, or ends its ban.
func (m *Membership) Ban(id peer.ID, ban bool, reason string) error {
	if err := m.mayAdmit(); err != nil {
		return err
	}
	m.read()
	if !m.cfg.Trust.Holds() && m.holds(id) {
		return &api.Error{Code: api.CodeConflict, Message: fmt.Sprintf("%s holds the network's secret: only a host that holds the network's secret can ban it, or end its ban", m.Mesh.Name(id))}
	}
	if _, banned := m.Ledger().Banned(id); !banned && !ban {
		return &api.Error{Code: api.CodeNotFound, Message: fmt.Sprintf("peer %v is not banned", id)}
	}
	body, err := member.BanBody{Banned: ban, Reason: reason, At: time.Now().Unix(), Certificate: m.cfg.Trust.Certificate}.Encode()
	if err != nil {
		return &api.Error{Code: api.CodeBadRequest, Message: err.Error()}
	}
	changes := []mesh.Change{{Kind: member.KindBan, Name: member.BanName(id, m.cfg.Trust.Member.Rights), Body: body}}
	if name := member.BanName(id, member.Admits); !ban && name != changes[0].Name { // a holder also ends the ban of another member
		changes = append(changes, mesh.Change{Kind: member.KindBan, Name: name, Body: body})
	}
	if err := m.Documents.Write(changes); err != nil {
		return err
	}
	m.read()
	if _, banned := m.Ledger().Banned(id); banned != ban {
		return &api.Error{Code: api.CodeConflict, Message: fmt.Sprintf("the ban of %s does not count: only a host that holds the network's secret can ban another one that does, or end a ban of such a host", m.Mesh.Name(id))}
	}
	return nil
}
