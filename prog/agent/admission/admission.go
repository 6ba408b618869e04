// Package admission makes this host a member of a network by a token. Join runs once, before any
// component, on a host that has a token but no certificate yet. It writes what it got to the state
// folder, and keeps nothing.
package admission

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"weft/mesh"
	"weft/mesh/secret"
	"weft/prog/agent/live"
	"weft/prog/agent/statedir"
)

// Config configures Join.
type Config struct {
	Dir      string // the state folder
	Identity ed25519.PrivateKey
	Nickname string
	// Targets returns the hosts to ask, and whether these are all: no more will be found.
	Targets func() (hosts []string, all bool)
	Port    int
	Log     *slog.Logger
	// Waiting is called with what this host waits for.
	Waiting func(why string)
}

// retries is how often a refusal is not final: the news of a new token may not have arrived at the host
// that was asked.
const (
	retries = 3
	pause   = time.Second
)

// Join asks the targets until one admits this host, all refuse it, or ctx ends. It does nothing if this
// host has no token, or is a member already.
func Join(ctx context.Context, cfg Config) error {
	if _, err := statedir.ReadMembership(cfg.Dir); err == nil { // perhaps an earlier start ended before it removed the token
		return statedir.ForgetInvitation(cfg.Dir)
	}
	token, err := statedir.Invitation(cfg.Dir)
	if err != nil || token == nil {
		return err
	}
	joiner := mesh.Joiner{Identity: cfg.Identity, Token: *token, Nickname: cfg.Nickname, Port: cfg.Port}
	for refused := 0; ; {
		var problems error
		targets, final := cfg.Targets()
		final = final && len(targets) > 0
		for _, host := range targets {
			a, skew, err := joiner.Ask(ctx, host)
			if err == nil {
				return accept(cfg, host, a, skew)
			}
			if _, no := errors.AsType[*mesh.NotAdmittedError](err); !no {
				final = false
			}
			problems = errors.Join(problems, err)
		}
		if final {
			refused++
		}
		if refused >= retries {
			return fmt.Errorf("this host was not admitted to the network: %w", problems)
		}
		if len(targets) == 0 {
			problems = errors.New("no host of the network was found on the LAN (--discover): launch Weft there with --discover, or name a host: weft launch --token - HOST")
		}
		cfg.Waiting(fmt.Sprintf("no host has admitted this one yet: %v", problems))
		if live.Pause(ctx, pause); ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// accept stores the membership.
func accept(cfg Config, host string, a mesh.Admission, skew time.Duration) error {
	if err := statedir.WriteMembership(cfg.Dir, statedir.Membership{Root: a.Root, Certificate: a.Certificate, Cluster: secret.ClusterID(a.Cluster)}); err != nil {
		return err
	}
	if skew != 0 {
		direction := "ahead of"
		if skew < 0 {
			direction = "behind"
		}
		cfg.Log.Warn("the clocks disagree: the time of a token runs on the clock of the member that admits: set the clocks (NTP)",
			"member", host, "this host's clock", fmt.Sprintf("%v %s the member's", skew.Abs().Round(time.Second), direction))
	}
	cfg.Log.Info("this host was admitted to the network", "by", host)
	return nil
}
