package member

import (
	"fmt"
	"slices"
	"strings"

	"weft/mesh/peer"
)

// maxSkew is by how many seconds a member's clock may be behind that of the member that created a token.
const maxSkew = 10 * 60

const another = "create another with `weft token create`"

// UnknownTokenError says that this member has no document of the token.
type UnknownTokenError struct{ Token TokenID }

func (e *UnknownTokenError) Error() string {
	return fmt.Sprintf("token %v: this member does not know it: it is of another network, or the news of it has not arrived here yet; try again in a minute, or join at the host that created it", e.Token)
}

// RevokedError says that the token was revoked.
type RevokedError struct {
	Token TokenState
}

func (e *RevokedError) Error() string {
	return fmt.Sprintf("%s: peer %v revoked it, so it admits no host: %s", e.Token.title(), e.Token.By, another)
}

// CreatorBannedError says that the member that wrote the token is banned.
type CreatorBannedError struct {
	Token TokenState
	Ban   Ban
}

func (e *CreatorBannedError) Error() string {
	return fmt.Sprintf("%s: peer %v, which created it, is banned, so it admits no host: %s at another member", e.Token.title(), e.Ban.Peer, another)
}

// BannedError says that the host that joins is banned.
type BannedError struct{ Ban Ban }

func (e *BannedError) Error() string {
	why := ""
	if e.Ban.Reason != "" {
		why = " (" + e.Ban.Reason + ")"
	}
	return fmt.Sprintf("peer %v: peer %v banned it%s: no token admits it until that ban is ended", e.Ban.Peer, e.Ban.By, why)
}

// ClockError says that this member's clock is far behind that of the token's creator, so that it cannot
// say when the token expires.
type ClockError struct {
	Token TokenState
	Now   int64
}

func (e *ClockError) Error() string {
	return fmt.Sprintf("%s: it was created at %s, but this member's clock says %s: the clocks disagree by at least %s: set this member's clock, or join at another member",
		e.Token.title(), utc(e.Token.Created), utc(e.Now), span(e.Token.Created-e.Now))
}

// ExpiredError says that the token's time is over by this member's clock.
type ExpiredError struct {
	Token TokenState
	Now   int64
}

func (e *ExpiredError) Error() string {
	return fmt.Sprintf("%s: it expired at %s, and this member's clock says %s: %s; if that clock is wrong, set it, or join at another member",
		e.Token.title(), utc(e.Token.Expires), utc(e.Now), another)
}

// UsedUpError says that the token admitted as many hosts as it may.
type UsedUpError struct {
	Token TokenState
	Joins []Join
}

func (e *UsedUpError) Error() string {
	const shown = 3
	var names []string
	for _, j := range e.Joins[:min(shown, len(e.Joins))] {
		names = append(names, fmt.Sprintf("%v(%s)", j.Peer, j.Nickname))
	}
	if more := len(e.Joins) - shown; more > 0 {
		names = append(names, fmt.Sprintf("and %d more", more))
	}
	uses := "its one use"
	if e.Token.Uses != 1 {
		uses = fmt.Sprintf("all %d uses", e.Token.Uses)
	}
	return fmt.Sprintf("%s: %s went to %s: %s", e.Token.title(), uses, strings.Join(names, ", "), another)
}

func (t TokenState) title() string {
	if t.Name == "" {
		return fmt.Sprintf("token %v", t.ID)
	}
	return fmt.Sprintf("token %v (%s)", t.ID, t.Name)
}

// Redeem returns what a token gives to a host that proved to hold it, or one of the errors of this
// file. now is this member's clock, in Unix seconds.
//
// A host that the token already admitted may redeem it again, even if all its uses are gone, because
// the answer may have been lost. After the token was revoked or has expired, it may not.
func (l Ledger) Redeem(id TokenID, host peer.ID, now int64) (TokenBody, error) {
	t, ok := l.tokens[id]
	if !ok {
		return TokenBody{}, &UnknownTokenError{id}
	}
	state, joins := l.state(id), l.joins[id]
	if t.body.Revoked {
		return TokenBody{}, &RevokedError{state}
	}
	if ban, ok := l.Banned(t.by); ok {
		return TokenBody{}, &CreatorBannedError{state, ban}
	}
	if ban, ok := l.Banned(host); ok {
		return TokenBody{}, &BannedError{ban}
	}
	if now < t.body.Created-maxSkew {
		return TokenBody{}, &ClockError{state, now}
	}
	if now >= t.body.Expires() {
		return TokenBody{}, &ExpiredError{state, now}
	}
	again := slices.ContainsFunc(joins, func(j Join) bool { return j.Peer == host })
	if !again && len(joins) >= int(t.body.Uses) {
		return TokenBody{}, &UsedUpError{state, slices.Clone(joins)}
	}
	return t.body, nil
}
