package member

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"strings"

	"weft/mesh/document"
	"weft/mesh/peer"
)

// Judge returns an error if d is a document of this package that does not count: its body, its name or
// its writer's certificate is invalid, or the writer may not write it. A document of another kind is
// not for this package to judge, and counts.
//
// Judge needs no other document, so all peers agree on which ones to keep. What a ban of the writer
// means is for Ledger to say.
func Judge(d *document.Document, root ed25519.PublicKey) error {
	_, err := JudgeWriter(d, root)
	return err
}

// JudgeWriter is Judge. It also returns the writer of a document of this package, with its rights.
func JudgeWriter(d *document.Document, root ed25519.PublicKey) (writer Member, err error) {
	j, err := judge(d, func(writer ed25519.PublicKey, certificate []byte) (Member, error) {
		return Verify(root, writer, certificate)
	})
	return j.writer, err
}

// judged is a document that counts. At most one of the bodies is set.
type judged struct {
	writer Member
	token  *TokenBody
	join   *JoinBody
	ban    *BanBody
	id     TokenID // of a token
	// asHolder is set for a ban that only a holder may write.
	asHolder bool
	peer     peer.ID // of a join or ban
}

type verify func(writer ed25519.PublicKey, certificate []byte) (Member, error)

func judge(d *document.Document, verify verify) (j judged, err error) {
	if d.Kind != KindToken && d.Kind != KindJoin && d.Kind != KindBan {
		return j, nil
	}
	if d.Deleted {
		return j, fmt.Errorf("%s: refused: documents of this kind are never deleted", d)
	}
	var certificate []byte
	switch d.Kind {
	case KindToken:
		certificate, err = j.readToken(d)
	case KindJoin:
		certificate, err = j.readJoin(d)
	case KindBan:
		certificate, err = j.readBan(d)
	}
	if err != nil {
		return judged{}, fmt.Errorf("%s: refused: %w", d, err)
	}
	if j.writer, err = verify(d.Writer, certificate); err != nil {
		return judged{}, fmt.Errorf("%s: refused: its writer's %w", d, err)
	}
	if err := j.allowed(); err != nil {
		return judged{}, fmt.Errorf("%s: refused: %w", d, err)
	}
	return j, nil
}

func (j *judged) readToken(d *document.Document) ([]byte, error) {
	b, err := DecodeTokenBody(d.Body)
	if err != nil {
		return nil, err
	}
	j.id, err = ParseTokenID(d.Name)
	j.token = &b
	return b.Certificate, err
}

func (j *judged) readJoin(d *document.Document) ([]byte, error) {
	b, err := DecodeJoinBody(d.Body)
	if err != nil {
		return nil, err
	}
	j.join, j.peer = &b, peer.IDOf(b.Peer)
	if want := JoinName(b.Token, j.peer); d.Name != want {
		return nil, fmt.Errorf("its name differs from its body, which is of %s", want)
	}
	return b.Certificate, nil
}

func (j *judged) readBan(d *document.Document) ([]byte, error) {
	b, err := DecodeBanBody(d.Body)
	if err != nil {
		return nil, err
	}
	j.ban = &b
	name, holds := strings.CutSuffix(d.Name, byHolder)
	j.asHolder = holds
	if j.peer, err = peer.ParseID(name); err == nil && j.peer.String() != name {
		err = errors.New("its name must be a peer's id without capitals")
	}
	return b.Certificate, err
}

// allowed returns an error if the rights of the writer do not suffice for the document.
func (j *judged) allowed() error {
	switch {
	case !j.writer.Rights.Has(Admits):
		return fmt.Errorf("its writer %v may not admit or ban", j.writer.ID())
	// A member that admits may revoke any token, but not create one that gives more than the member can give.
	case j.token != nil && j.token.Rights != 0 && !j.token.Revoked && !j.writer.Rights.Has(Holder):
		return fmt.Errorf("only a holder of the cluster's secret creates a token that gives rights, and its writer %v is none", j.writer.ID())
	case j.asHolder && !j.writer.Rights.Has(Holder):
		return fmt.Errorf("only a holder of the cluster's secret may write it, and its writer %v is none", j.writer.ID())
	// Otherwise a banned member would end its own ban.
	case j.ban != nil && j.peer == j.writer.ID() && !j.writer.Rights.Has(Holder):
		return fmt.Errorf("its writer %v cannot ban itself or end its own ban", j.writer.ID())
	}
	return nil
}
