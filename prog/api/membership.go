package api

import (
	"context"
	"time"
)

// These are the paths of tokens and bans.
const (
	PathTokens      = "/v1/tokens"
	PathCreateToken = "/v1/tokens/create"
	PathRevokeToken = "/v1/tokens/revoke"
	PathUnban       = "/v1/unban"
)

// UnbanRequest ends the ban of a peer.
type UnbanRequest struct {
	Peer string `json:"peer"` // the peer's id
}

// TokenRequest describes a token to create.
type TokenRequest struct {
	TTL    int64  `json:"ttl"`  // seconds
	Uses   uint32 `json:"uses"` // how many hosts it admits
	Name   string `json:"name,omitempty"`
	Admits bool   `json:"admits,omitempty"` // the hosts that it admits may admit and ban others
}

// TokenReply is a new token.
type TokenReply struct {
	Token string `json:"token"` // a secret until it has expired
	ID    string `json:"id"`
}

// Token describes a token; it does not contain it.
type Token struct {
	ID      string    `json:"id"`
	Name    string    `json:"name,omitempty"`
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires"`
	Uses    int       `json:"uses"`
	Used    int       `json:"used"`
	Revoked bool      `json:"revoked"`
	Admits  bool      `json:"admits"`
	By      string    `json:"by"`    // the peer that created it, or revoked it
	Hosts   []string  `json:"hosts"` // those that it admitted
}

// RevokeRequest ends a token.
type RevokeRequest struct {
	Token string `json:"token"` // the start of its id, or its name
}

// RevokeReply names the token that was revoked.
type RevokeReply struct {
	ID string `json:"id"`
}

// CreateToken creates a token.
func (c *Client) CreateToken(ctx context.Context, req TokenRequest) (r TokenReply, err error) {
	return r, c.call(ctx, PathCreateToken, req, &r)
}

// Tokens lists the tokens, the oldest first.
func (c *Client) Tokens(ctx context.Context) (r []Token, err error) {
	return r, c.call(ctx, PathTokens, nil, &r)
}

// RevokeToken ends a token.
func (c *Client) RevokeToken(ctx context.Context, req RevokeRequest) (r RevokeReply, err error) {
	return r, c.call(ctx, PathRevokeToken, req, &r)
}

// Unban ends the ban of a peer.
func (c *Client) Unban(ctx context.Context, req UnbanRequest) error {
	return c.call(ctx, PathUnban, req, nil)
}
