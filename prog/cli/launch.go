package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"weft/prog/agent"
	"weft/prog/agent/discover"
	"weft/prog/agent/privilege"
	"weft/prog/agent/statedir"
	"weft/prog/api"
	"weft/prog/words"
)

// agentLog is the name of the log file, in the state folder, of an agent that `weft launch` started.
const agentLog = "agent.log"

func (a *app) agent() *cobra.Command {
	f := &launchFlags{}
	cmd := &cobra.Command{
		Use: "agent [PEER...]", Short: "run the agent in the foreground",
		Long: `Runs the agent in the foreground, for a supervisor such as systemd. The flags are those of launch.

If this host belongs to no network, has no PEER to join, and weft launch was never run, the agent
waits for weft launch: it founds a network by itself only with --found.` + environmentHelp + exitHelp,
		RunE: func(cmd *cobra.Command, targets []string) error {
			if err := a.configure(cmd, f, targets); err != nil {
				a.warnInvalid(cmd.Context(), f, err)
				return err
			}
			go boundLog(cmd.Context())
			if !f.Kubernetes.On {
				if ended, err := f.awaitLaunch(cmd.Context()); ended || err != nil {
					return err
				}
				if err := a.establishSecret(f); err != nil {
					return err
				}
			}
			for {
				if err := agent.Run(cmd.Context(), f.Options); !errors.Is(err, agent.ErrMoved) {
					return err
				}
			}
		},
	}
	f.add(cmd)
	cmd.Flags().BoolVar(&f.found, "found", false, "found a network if this host belongs to none and no PEER is given")
	return cmd
}

// establishSecret stores this host's secret: the operator's, else the stored secret. If there is neither
// and this host founds a network, it makes a new secret.
func (a *app) establishSecret(f *launchFlags) error {
	// Launch stored the secret, and left WEFT_CLUSTER in the agent's environment, but not the password.
	if _, err := statedir.Secret(f.StateDir); errors.Is(err, fs.ErrNotExist) {
		if err := f.checkCluster(); err != nil {
			return err
		}
	}
	given, err := a.secretGiven(f.tokenSrc, f.cluster)
	if err != nil {
		return err
	}
	founds, err := f.founds()
	if err == nil {
		err = statedir.EstablishSecret(f.StateDir, given, founds)
	}
	return err
}

// checkDiscover refuses to announce a network whose secret is derived from a password.
func (f *launchFlags) checkDiscover(given statedir.Given) error {
	if f.Discover && given.Secret != nil && given.Secret.Cluster.IsZero() {
		return words.Misused(discover.ErrPassword)
	}
	return nil
}

// founds reports whether this host founds a network without looking for another one. With --discover
// it finds that out later, so it needs a secret or a token as a host with PEER does.
func (f *launchFlags) founds() (bool, error) {
	founds, err := statedir.Founds(f.StateDir, f.Targets)
	return founds && !f.Discover, err
}

// awaitLaunch waits for weft launch if this host belongs to no network and was not told to found or
// join one. After launch it executes the program again, which reads the settings that launch saved.
// ended reports whether the agent was stopped before launch was run.
func (f *launchFlags) awaitLaunch(ctx context.Context) (ended bool, err error) {
	word := statedir.Launched(f.StateDir)
	founds, err := statedir.Founds(f.StateDir, f.Targets)
	// The settings file may be older than the last reset, so its ipalloc-init and discover do not tell
	// this host to found.
	told := f.found || f.Discover && (f.from["discover"] != api.FromFile || word != nil) || f.init != "" && f.from["ipalloc-init"] != api.FromFile || statedir.ToldToFound(f.StateDir)
	if err != nil || !founds || told {
		return false, err
	}
	launched, err := agent.AwaitLaunch(ctx, f.Options, word)
	if err != nil || !launched {
		return true, err
	}
	exe, err := os.Executable()
	if err != nil {
		return true, fmt.Errorf("start anew: %w", err)
	}
	return true, fmt.Errorf("start anew: %w", syscall.Exec(exe, os.Args, os.Environ()))
}

// warnInvalid reports on this host's Node that the agent does not start with its settings.
func (a *app) warnInvalid(ctx context.Context, f *launchFlags, why error) {
	if !f.Kubernetes.On {
		return
	}
	f.Log = slog.New(slog.NewTextHandler(a.err, nil))
	if err := agent.WarnInvalid(ctx, f.Options, why); err != nil {
		f.Log.Warn("cannot report the problem on this host's Node", "err", err)
	}
}

func (a *app) launch() *cobra.Command {
	f := &launchFlags{}
	cmd := &cobra.Command{
		Use: "launch [PEER...]", Short: "start Weft on this host",
		Long: `Starts the agent in the background and waits until it is ready.

The first time, without PEER, this host founds a new network and prints a token and the
command by which the next host joins. With PEER (a host name or address, optionally with a port) it
joins that host's network. With --discover and no PEER, it looks for hosts of its network on its LANs,
and founds the network only if there are none. Targets, keys and addresses are stored: later, weft launch needs
no arguments.

With targets, given or stored, launch also waits for a first tunnel, for 10 s at most. If no tunnel
works, launch says why and exits with 4. The agent keeps running.` + environmentHelp + exitHelp,
		Example: "  weft launch                        # on the first host\n  weft launch --token - h1 <token    # on every other host",
		RunE: func(cmd *cobra.Command, targets []string) error {
			return a.runLaunch(cmd, f, targets)
		},
	}
	f.add(cmd)
	cmd.Flags().DurationVar(&f.wait, "wait", time.Minute, "how long to wait until the agent is ready; 0: do not wait")
	return cmd
}

func (a *app) runLaunch(cmd *cobra.Command, f *launchFlags, targets []string) error {
	if err := a.configure(cmd, f, targets); err != nil {
		return err
	}
	if err := f.checkCluster(); err != nil {
		return err
	}
	client := api.NewClient(filepath.Join(f.RunDir, "weft.sock"))
	if _, err := runsAlready(cmd.Context(), client); err != nil {
		return err
	}
	if err := privilege.CheckAgent(); err != nil {
		return err
	}
	given, err := a.secretGiven(f.tokenSrc, f.cluster)
	if err := cmp.Or(err, f.checkDiscover(given)); err != nil {
		return err
	}
	if err := statedir.Make(f.StateDir); err != nil { // the agent writes its log into this folder
		return err
	}
	unlock, err := lockLaunch(f.RunDir)
	if err != nil {
		return err
	}
	defer unlock()
	waits, err := runsAlready(cmd.Context(), client) // check again: another launch may have finished before we had the lock
	if err != nil {
		return err
	}
	l := launching{given: given, waits: waits, unit: f.unitInstalled()}
	start := a.launchChild
	if waits != 0 || l.unit {
		start, err = a.launchUnit, f.reachesUnit()
	}
	if err != nil {
		return err
	}
	if l.unit && waits == 0 {
		calmUnit()
	}
	if l.founds, err = f.founds(); err == nil {
		l.undo, err = statedir.BeforeLaunch(f.StateDir)
	}
	if err != nil {
		return err
	}
	if err := start(cmd, f, client, l); err != nil {
		return err
	}
	if err := a.awaitTunnel(cmd.Context(), client, f); err != nil {
		return err
	}
	founded := l.founds && given.None() && !f.Kubernetes.On // launch made the token, so the operator has not seen it yet
	r, err := client.Report(cmd.Context())
	return a.show(launched{r.Ready, founded, r.Router.ID, r.Router.Nickname, r.Router.Node, r.Router.PID}, func() {
		if err != nil || !founded || !isTerminal(a.out) {
			return
		}
		if t, err := client.CreateToken(cmd.Context(), api.TokenRequest{TTL: int64(firstToken / time.Second), Uses: 1, Name: "printed by launch"}); err == nil {
			printInvitation(a.out, t.Token, r)
		}
	})
}

// launching is what launch determines before it starts an agent, or lets a waiting agent continue.
type launching struct {
	given  statedir.Given // what the operator gave
	founds bool           // whether this host has no peer to join
	unit   bool           // whether systemd has a unit for the agent
	waits  int            // process id of an agent that waits for launch; 0: no such agent
	undo   func() error   // reverts what launch writes into the state folder
}

// runsAlready refuses to launch if an agent runs already. If that agent waits for launch, runsAlready
// returns the agent's process id instead.
func runsAlready(ctx context.Context, client *api.Client) (waits int, err error) {
	r, err := client.Report(ctx)
	if err == nil && !r.Waiting {
		return 0, fmt.Errorf("an agent already runs on this host (pid %d): `weft connect PEER` adds a target, `weft stop` stops it", r.Router.PID)
	}
	return r.Router.PID, nil
}

// lockLaunch allows one launch at a time on this host.
func lockLaunch(runDir string) (unlock func(), err error) {
	if err := os.MkdirAll(runDir, 0o700); err != nil {
		return nil, fmt.Errorf("launch: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(runDir, "launch.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("launch: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, errors.New("another `weft launch` is under way on this host: wait until it ends, then see `weft status`")
	}
	return func() { f.Close() }, nil
}

// isTerminal reports whether w is a terminal. The token is only printed on terminals.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// firstToken is how long the token that launch prints admits a host.
const firstToken = 24 * time.Hour

// printInvitation prints the command with which the next host joins.
func printInvitation(w io.Writer, token string, r api.Report) {
	addr := "HOST"
	if len(r.Router.Underlay) > 0 {
		addr = r.Router.Underlay[0].String()
	}
	fmt.Fprintf(w, `
This host founded a new network. This token admits one host within %v:

  %s

On that host, run this command and enter the token:

  weft launch --token - %s

For each further host, run weft token create here.
`, firstToken, token, addr)
}
