package statedir

import (
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"weft/mesh/member"
	"weft/mesh/secret"
	"weft/prog/state"
)

// These files of a host without the cluster's secret are below the state folder, mode 0600. The token
// with which it shall join is kept until a member has admitted the host.
const (
	InvitationFile = "invitation"
	MembershipFile = "membership"
)

// Given is what the operator gave this host to join a network; at most one of the two.
type Given struct {
	Secret     *secret.Token
	Invitation *member.Token
}

// None reports whether the operator gave nothing.
func (g Given) None() bool { return g.Secret == nil && g.Invitation == nil }

// Membership is what a host keeps that a member has admitted.
type Membership struct {
	Root        ed25519.PublicKey `json:"root"`
	Certificate []byte            `json:"certificate"`
	Cluster     secret.ClusterID  `json:"-"`
	ClusterID   []byte            `json:"cluster"`
}

// ReadMembership reads this host's membership.
func ReadMembership(dir string) (m Membership, err error) {
	path := filepath.Join(dir, MembershipFile)
	data, err := os.ReadFile(path)
	if err != nil {
		return m, err
	}
	if err := json.Unmarshal(data, &m); err != nil || len(m.Root) != ed25519.PublicKeySize || len(m.ClusterID) != len(m.Cluster) {
		return m, fmt.Errorf("%s is unreadable: this host cannot prove that it is a member: run `weft reset`, and join again with a token", path)
	}
	m.Cluster = secret.ClusterID(m.ClusterID)
	return m, nil
}

// WriteMembership writes this host's membership, and removes the token that it came by.
func WriteMembership(dir string, m Membership) error {
	m.ClusterID = m.Cluster[:]
	data, err := json.Marshal(m)
	if err == nil {
		err = state.WriteFile(filepath.Join(dir, MembershipFile), append(data, '\n'), 0o600)
	}
	if err != nil {
		return fmt.Errorf("membership: %w", err)
	}
	return ForgetInvitation(dir)
}

// ForgetInvitation removes the token with which this host should join, if there is one.
func ForgetInvitation(dir string) error { return removeIfThere(filepath.Join(dir, InvitationFile)) }

// Invitation returns the token with which this host shall join; nil if there is none.
func Invitation(dir string) (*member.Token, error) {
	path := filepath.Join(dir, InvitationFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	t, err := member.ParseToken(string(data))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &t, nil
}

// establishMembership keeps what a host without the secret has, or the token that is given.
func establishMembership(dir string, given Given, founds bool) error {
	m, err := ReadMembership(dir)
	switch {
	case err == nil && given.Invitation != nil && !given.Invitation.Proves(m.Root):
		return fmt.Errorf("this host is a member of another network than the one that the token is for: run `weft reset` first if this host shall leave its network")
	case err == nil:
		return nil
	case !errors.Is(err, fs.ErrNotExist):
		return err
	case given.Invitation == nil:
		kept, err := Invitation(dir)
		if err == nil && kept == nil {
			err = errNoToken
		}
		return err
	case founds:
		return errors.New("the token admits this host to a network that exists: name a host of that network: weft launch --token - HOST")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("token: %w", err)
	}
	if err := state.WriteFile(filepath.Join(dir, InvitationFile), []byte(given.Invitation.Reveal()+"\n"), 0o600); err != nil {
		return fmt.Errorf("token: %w", err)
	}
	return nil
}
