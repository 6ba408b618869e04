package member

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"weft/mesh/document"
)

// rightsOf are the rights of the hosts in these tests: host 1 and 8 hold the secret, 2 and 3 admit.
func rightsOf(n byte) Rights {
	switch n {
	case 1, 8:
		return Holder
	case 2, 3:
		return Admits
	}
	return 0
}

func ban(t testing.TB, by, host byte) *document.Document {
	return write(t, nil, by, KindBan, id(host).String(), banBody(by, rightsOf(by)))
}

func unban(t testing.TB, old *document.Document, by, host byte) *document.Document {
	return write(t, old, by, KindBan, id(host).String(), BanBody{Certificate: certificateOf(by, rightsOf(by))})
}

func join(t testing.TB, by byte, token TokenID, host byte) *document.Document {
	return write(t, nil, by, KindJoin, JoinName(token, id(host)), joinBody(by, rightsOf(by), token, host))
}

func create(t testing.TB, by byte, token TokenID) *document.Document {
	return write(t, nil, by, KindToken, token.Name(), tokenBody(by, rightsOf(by)))
}

func revoke(t testing.TB, old *document.Document, by byte, token TokenID) *document.Document {
	b := tokenBody(by, rightsOf(by))
	b.Revoked = true
	return write(t, old, by, KindToken, token.Name(), b)
}

func TestBansCountByTheRightsOfTheirWriters(t *testing.T) {
	byTwo := ban(t, 2, 5)
	for name, c := range map[string]struct {
		docs   []*document.Document
		banned []byte
	}{
		"by a member that admits":            {[]*document.Document{byTwo}, []byte{5}},
		"by a holder":                        {[]*document.Document{ban(t, 1, 5)}, []byte{5}},
		"by a member without rights":         {[]*document.Document{ban(t, 4, 5)}, nil},
		"ended":                              {[]*document.Document{byTwo, unban(t, byTwo, 3, 5)}, nil},
		"older version arrives later":        {[]*document.Document{unban(t, byTwo, 3, 5), byTwo}, nil},
		"writer banned by a holder":          {[]*document.Document{byTwo, ban(t, 1, 2)}, []byte{2}},
		"writer banned by another member":    {[]*document.Document{byTwo, ban(t, 3, 2)}, []byte{2, 5}},
		"two members ban each other":         {[]*document.Document{ban(t, 2, 3), ban(t, 3, 2)}, []byte{2, 3}},
		"holder banned by a member":          {[]*document.Document{ban(t, 2, 1), ban(t, 1, 5)}, []byte{5}},
		"holder banned by a holder":          {[]*document.Document{ban(t, 8, 1)}, []byte{1}},
		"a banned holder's ban still counts": {[]*document.Document{ban(t, 8, 1), ban(t, 1, 5)}, []byte{1, 5}},
	} {
		l := Read(root, c.docs)
		for n := byte(1); n <= 8; n++ {
			got, ok := l.Banned(id(n))
			want := slices.Contains(c.banned, n)
			if ok != want || ok && got.Peer != id(n) {
				t.Errorf("%s: host %d is banned: %v, want %v", name, n, ok, want)
			}
		}
		if len(l.Bans()) != len(c.banned) {
			t.Errorf("%s: Bans returned %v, want those of the hosts %v", name, l.Bans(), c.banned)
		}
	}
}

// A holder that wrote no document is known to be one by its certificate only.
func TestBanOfSilentHolder(t *testing.T) {
	l := Read(root, []*document.Document{ban(t, 2, 8)})
	if b, ok := l.BannedMember(Member{Identity: identity(8), Rights: Holder}); ok {
		t.Errorf("the ban %+v of a holder by another member counts, want it ignored", b)
	}
	if _, ok := l.BannedMember(Member{Identity: identity(8)}); !ok {
		t.Error("the ban of a member without rights does not count, want it to count")
	}
	l = Read(root, []*document.Document{ban(t, 1, 8)})
	if _, ok := l.BannedMember(Member{Identity: identity(8), Rights: Holder}); !ok {
		t.Error("the ban of a holder by another holder does not count, want it to count")
	}
}

func TestTokensAndJoinsAreListed(t *testing.T) {
	token, over := TokenID{1}, TokenID{2}
	created := create(t, 2, token)
	l := Read(root, []*document.Document{
		created, create(t, 1, over), revoke(t, created, 3, token),
		join(t, 2, token, 5), join(t, 2, over, 6), join(t, 3, over, 5), join(t, 1, over, 7), join(t, 4, over, 9),
	})
	want := []TokenState{
		{ID: token, Name: "rack 1", Created: 1e9, Expires: 1e9 + 3600, Uses: 2, Used: 1, Revoked: true, By: id(3)},
		{ID: over, Name: "rack 1", Created: 1e9, Expires: 1e9 + 3600, Uses: 2, Used: 3, By: id(1)},
	}
	if got := l.Tokens(); !reflect.DeepEqual(got, want) {
		t.Errorf("Tokens returned %+v, want %+v", got, want)
	}
	if got := l.Joins(); len(got) != 4 || got[0].Nickname != "h5" || got[0].Token != token || got[3].Peer != id(7) || got[2].By != id(2) || got[2].From != from {
		t.Errorf("Joins returned %+v, want four of them, the earliest first", got)
	}
	got := l.Overused()
	if len(got) != 1 || got[0].Token.ID != over || len(got[0].Joins) != 3 || got[0].Joins[0].Nickname != "h5" || got[0].Joins[2].Peer != id(7) {
		t.Errorf("Overused returned %+v, want the second token with its three hosts", got)
	}
}

func TestRedeemSaysWhyATokenAdmitsNoHost(t *testing.T) {
	token := TokenID{1}
	created := create(t, 2, token)
	full := []*document.Document{created, join(t, 2, token, 5), join(t, 2, token, 6)}
	for name, c := range map[string]struct {
		docs []*document.Document
		host byte
		now  int64
		want string // empty: the token admits the host
	}{
		"admits":                         {[]*document.Document{created}, 5, 1e9, ""},
		"last second":                    {[]*document.Document{created}, 5, 1e9 + 3599, ""},
		"clock 10 minutes behind":        {[]*document.Document{created}, 5, 1e9 - 600, ""},
		"unknown":                        {nil, 5, 1e9, "does not know it"},
		"revoked":                        {[]*document.Document{revoke(t, created, 3, token), created}, 5, 1e9, fmt.Sprintf("peer %v revoked it", id(3))},
		"expired":                        {[]*document.Document{created}, 5, 1e9 + 3660, "expired at 2001-09-09 02:46:40 UTC, and this member's clock says 2001-09-09 02:47:40 UTC"},
		"clock behind":                   {[]*document.Document{created}, 5, 1e9 - 3660, "disagree by at least 1h1m: set this member's clock"},
		"used up":                        {full, 7, 1e9, fmt.Sprintf("all 2 uses went to %v(h5), %v(h6)", id(5), id(6))},
		"repeated by a host that joined": {full, 6, 1e9, ""},
		"repeated after it expired":      {full, 6, 1e9 + 3600, "expired"},
		"repeated after it was revoked":  {append(full, revoke(t, created, 3, token)), 6, 1e9, "revoked"},
		"host banned":                    {[]*document.Document{created, ban(t, 3, 5)}, 5, 1e9, "banned it (stolen)"},
		"creator banned":                 {[]*document.Document{created, ban(t, 1, 2)}, 5, 1e9, "which created it, is banned"},
	} {
		got, err := Read(root, c.docs).Redeem(token, id(c.host), c.now)
		switch {
		case c.want == "" && (err != nil || got.Name != "rack 1"):
			t.Errorf("%s: Redeem returned %+v, error %v; want the token's body", name, got, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: Redeem returned error %v, want one with %q", name, err, c.want)
		}
	}
}

func TestUsedUpErrorIsShort(t *testing.T) {
	token := TokenID{1}
	b := tokenBody(1, Holder)
	b.Uses, b.Name = 1, ""
	docs := []*document.Document{write(t, nil, 1, KindToken, token.Name(), b)}
	for n := byte(3); n <= 7; n++ {
		docs = append(docs, join(t, 1, token, n))
	}
	_, err := Read(root, docs).Redeem(token, id(9), 1e9)
	want := fmt.Sprintf("token %v: its one use went to %v(h3), %v(h4), %v(h5), and 2 more: create another", token, id(3), id(4), id(5))
	if err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("Redeem returned error %v, want %q", err, want)
	}
}

// All hosts with the same documents agree, whatever the order in which the documents arrived.
func TestLedgerIsIndependentOfOrder(t *testing.T) {
	tokens := []TokenID{{1}, {2}}
	host := func(t *rapid.T, what string, from, to byte) byte { return rapid.ByteRange(from, to).Draw(t, what) }
	outer := t
	rapid.Check(t, func(t *rapid.T) {
		var docs []*document.Document
		for range rapid.IntRange(0, 12).Draw(t, "documents") {
			token := rapid.SampledFrom(tokens).Draw(t, "token")
			by, other := host(t, "writer", 1, 4), host(t, "host", 1, 8)
			var old *document.Document
			kind := rapid.IntRange(0, 4).Draw(t, "kind")
			name := [...]string{token.Name(), token.Name(), JoinName(token, id(other)), id(other).String(), id(other).String()}[kind]
			kinds := [...]string{KindToken, KindToken, KindJoin, KindBan, KindBan}
			for _, d := range docs {
				if d.Key() == document.Key(kinds[kind], name) && rapid.Bool().Draw(t, "follows") {
					old = d
				}
			}
			switch kind {
			case 0:
				docs = append(docs, write(outer, old, by, KindToken, name, tokenBody(by, rightsOf(by))))
			case 1:
				docs = append(docs, revoke(outer, old, by, token))
			case 2:
				docs = append(docs, write(outer, old, by, KindJoin, name, joinBody(by, rightsOf(by), token, other)))
			case 3:
				docs = append(docs, write(outer, old, by, KindBan, name, banBody(by, rightsOf(by))))
			case 4:
				docs = append(docs, unban(outer, old, by, other))
			}
		}
		one := Read(root, docs)
		shuffled := slices.Concat(docs, docs) // duplicates do not matter either
		random := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		random.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
		another := Read(root, shuffled)
		if !reflect.DeepEqual(one.Bans(), another.Bans()) || !reflect.DeepEqual(one.Tokens(), another.Tokens()) ||
			!reflect.DeepEqual(one.Joins(), another.Joins()) || !reflect.DeepEqual(one.Overused(), another.Overused()) {
			t.Fatalf("the same documents in another order give another ledger: %+v and %+v; want the same", one, another)
		}
	})
}

func TestTimesAreFormattedAsByPackageTime(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		at := rapid.Int64Range(-60e9, maxTime/8).Draw(t, "time")
		if got, want := utc(at), time.Unix(at, 0).UTC().Format("2006-01-02 15:04:05 MST"); got != want {
			t.Fatalf("%d s are %s, want %s", at, got, want)
		}
	})
	for seconds, want := range map[int64]string{59: "59s", 61: "1m1s", 3660: "1h1m", 90000: "1d1h"} {
		if got := span(seconds); got != want {
			t.Errorf("%d seconds are %s, want %s", seconds, got, want)
		}
	}
}
