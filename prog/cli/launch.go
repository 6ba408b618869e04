package cli

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"weft/ipam"
	"weft/mesh"
	"weft/mesh/secret"
	"weft/prog/agent"
	"weft/prog/api"
)

// agentLog is the log of an agent that `weft launch` started, below the state folder.
const agentLog = "agent.log"

// launchFlags are the flags of launch and agent.
type launchFlags struct {
	agent.Options
	dns       dnsFlags
	ranges    string
	tokenSrc  string
	init      string
	exclude   []string
	advertise []string
	exempt    []string
	verbose   bool
	datapath  bool
	wait      time.Duration // of launch only
}

func (f *launchFlags) add(cmd *cobra.Command) {
	host, _ := os.Hostname() // empty is fine: then only the id is shown
	flags := cmd.Flags()
	flags.StringVar(&f.ranges, "ipalloc-range", "", "the overlay's addresses: CIDR[,CIDR6] (default 10.32.0.0/12 and a ULA derived from the cluster)")
	flags.StringVar(&f.init, "ipalloc-init", "", "who founds the address ring: consensus=N, seed=ID,ID… or observer (default: a host without PEER founds; hosts with PEER vote, unless one has a ring)")
	flags.StringSliceVar(&f.exclude, "ipalloc-exclude", nil, "CIDRs whose addresses this host hands out only to who asks for them; give it on every host, where it is kept (\"\" ends it)")
	flags.DurationVar(&f.Rest, "ipalloc-rest", ipam.DefaultRest, "how long an address that was freed rests before it is used again")
	flags.StringVar(&f.tokenSrc, "token", "", "a file with the cluster's token, or - for standard input")
	flags.StringVar(&f.Nickname, "nickname", host, "the name that people see")
	flags.StringSliceVar(&f.advertise, "advertise", nil, "addresses at which other hosts reach this one (default: its own)")
	flags.IntVar(&f.GossipPort, "port", mesh.Port, "gossip port, TCP and UDP; the same on all hosts")
	flags.IntVar(&f.Port, "wireguard-port", agent.DefaultPort, "WireGuard port, UDP")
	flags.IntVar(&f.MTU, "mtu", 0, "MTU of the overlay (default: the underlay's less 80)")
	flags.StringVar(&f.StateDir, "state-dir", agent.DefaultStateDir, "where the state is kept")
	flags.StringVar(&f.RunDir, "run-dir", agent.DefaultRunDir, "where the control socket is")
	flags.StringVar(&f.CNIConfDir, "cni-conf-dir", agent.DefaultCNIConfDir, "where the CNI configuration is written; empty for none")
	flags.StringVar(&f.CNIBinDir, "cni-bin-dir", agent.DefaultCNIBinDir, "where the CNI plugin is installed")
	flags.StringSliceVar(&f.CNIChain, "cni-chain", nil, "CNI plugins that come behind Weft's where they are installed: portmap, bandwidth or both (default: portmap with --kubernetes, else none)")
	flags.BoolVar(&f.datapath, "start-datapath", true, "start `weft datapath` where the kernel has no WireGuard; false: something else does, and it is waited for")
	flags.StringVar(&f.SysctlDir, "sysctl-dir", "", "where this host's /proc/sys/net is, for a container in which that is read-only")
	flags.StringVar(&f.StatusAddr, "status-addr", agent.DefaultStatusAddr, "address of the read-only status over HTTP; empty for none")
	f.dns.add(flags, &f.DNS)
	flags.StringSliceVar(&f.exempt, "policy-exempt", []string{agent.ExemptOwnHost, agent.ExemptICMPErrors},
		"what policies do not apply to on this host: own-host (what containers send to their own host), or of that only dns (questions to its name server); icmp-errors (about connections that are known); or none")
	kubernetesFlags(flags, &f.Kubernetes, "this host is a Node of a Kubernetes cluster: peers, token, policies and pods' labels come from its API server")
	flags.StringVar(&f.Kubernetes.Namespace, "namespace", "", "the namespace there of the Secret weft (default: the pod's own, else weft)")
	flags.BoolVarP(&f.verbose, "verbose", "v", false, "log more")
}

// complete checks the flags and fills Options from them.
func (f *launchFlags) complete(targets []string, logTo io.Writer) error {
	f.Version = Version
	f.Targets = targets
	for _, t := range targets {
		if err := mesh.CheckTarget(t); err != nil {
			return usageError{err}
		}
	}
	for _, s := range f.advertise {
		addr, err := netip.ParseAddr(s)
		if err != nil {
			return usageError{fmt.Errorf("--advertise %s: %w", s, err)}
		}
		f.Advertise = append(f.Advertise, addr.Unmap())
	}
	var err error
	if f.Universe, err = parseRanges(f.ranges); err != nil {
		return usageError{err}
	}
	if f.Init, err = agent.ParseInit(f.init); err != nil {
		return usageError{err}
	}
	if f.exclude != nil {
		f.Exclude = []netip.Prefix{}
	}
	for _, s := range f.exclude {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return usageError{fmt.Errorf("--ipalloc-exclude %s: %w", s, err)}
		}
		f.Exclude = append(f.Exclude, p.Masked())
	}
	if err := f.dns.complete(&f.DNS); err != nil {
		return usageError{err}
	}
	if f.Exempt, err = agent.ParseExempt(f.exempt); err != nil {
		return usageError{fmt.Errorf("--policy-exempt: %w", err)}
	}
	if err := agent.ParseChain(f.CNIChain); err != nil {
		return usageError{fmt.Errorf("--cni-chain: %w", err)}
	}
	if f.CNIChain == nil && f.Kubernetes.On {
		f.CNIChain = []string{"portmap"}
	}
	f.DatapathElsewhere = !f.datapath
	if f.Rest <= 0 {
		return usageError{fmt.Errorf("--ipalloc-rest %v: want more than 0", f.Rest)}
	}
	if err := f.Validate(); err != nil {
		return usageError{err}
	}
	level := slog.LevelInfo
	if f.verbose {
		level = slog.LevelDebug
	}
	f.Log = slog.New(slog.NewTextHandler(logTo, &slog.HandlerOptions{Level: level}))
	return nil
}

// parseRanges reads CIDR[,CIDR6].
func parseRanges(s string) (r agent.Ranges, err error) {
	if s == "" {
		return r, nil
	}
	four, six, two := strings.Cut(s, ",")
	if r.V4, err = netip.ParsePrefix(four); err == nil && two {
		r.V6, err = netip.ParsePrefix(six)
	}
	if err == nil {
		err = r.Validate()
	}
	if err != nil {
		return r, fmt.Errorf("--ipalloc-range %s: %w", s, err)
	}
	return r, nil
}

// secretGiven is the token that the operator gave: by --token, or WEFT_PASSWORD.
// There is no flag with the secret itself: arguments show in the process list.
func (a *app) secretGiven(source string) (*secret.Token, error) {
	var text string
	password := os.Getenv("WEFT_PASSWORD")
	os.Unsetenv("WEFT_PASSWORD") // not for the processes that this one starts
	switch {
	case source == "" && password == "":
		return nil, nil
	case source == "":
		t, err := secret.FromPassword(password)
		if err != nil {
			return nil, usageError{fmt.Errorf("WEFT_PASSWORD: %w", err)}
		}
		return &t, nil
	case source == "-":
		data, err := io.ReadAll(io.LimitReader(a.in, 4096))
		if err != nil {
			return nil, fmt.Errorf("--token -: %w", err)
		}
		text = string(data)
	default:
		data, err := os.ReadFile(source)
		if errors.Is(err, os.ErrNotExist) {
			return nil, usageError{fmt.Errorf("--token %s: no such file; a token itself is not given as an argument, where others could read it: pipe it into --token -", hideToken(source))}
		}
		if err != nil {
			return nil, fmt.Errorf("--token: %w", err)
		}
		text = string(data)
	}
	t, err := secret.Parse(text)
	if err != nil {
		return nil, usageError{fmt.Errorf("--token: %w", err)}
	}
	return &t, nil
}

// establishSecret keeps this host's secret, and reports whether it is one that the
// operator has not seen: a new cluster's.
func (a *app) establishSecret(f *launchFlags) (secret.Token, bool, error) {
	given, err := a.secretGiven(f.tokenSrc)
	if err != nil {
		return secret.Token{}, false, err
	}
	founds, err := agent.Founds(f.StateDir, f.Targets)
	if err != nil {
		return secret.Token{}, false, err
	}
	t, err := agent.EstablishSecret(f.StateDir, given, founds)
	return t, founds && given == nil, err
}

// hideToken keeps a token that was given as a file's name out of the message.
func hideToken(s string) string {
	if _, err := secret.Parse(s); err == nil || len(s) > 64 {
		return "…"
	}
	return s
}

func (a *app) agent() *cobra.Command {
	f := &launchFlags{}
	cmd := &cobra.Command{
		Use: "agent [PEER...]", Short: "run the agent in the foreground",
		Long: "Runs the agent in the foreground, for a supervisor such as systemd. The flags are those of launch." + environmentHelp + exitHelp,
		RunE: func(cmd *cobra.Command, targets []string) error {
			if err := a.configure(cmd, f, targets); err != nil {
				a.warnInvalid(cmd.Context(), f, err)
				return err
			}
			if !f.Kubernetes.On {
				if _, _, err := a.establishSecret(f); err != nil {
					return err
				}
			}
			for {
				if err := agent.New(f.Options).Run(cmd.Context()); !errors.Is(err, agent.ErrMoved) {
					return err
				}
			}
		},
	}
	f.add(cmd)
	return cmd
}

// warnInvalid says on this host's Node that the agent does not start with its settings.
func (a *app) warnInvalid(ctx context.Context, f *launchFlags, why error) {
	if !f.Kubernetes.On {
		return
	}
	f.Log = slog.New(slog.NewTextHandler(a.err, nil))
	if err := agent.WarnInvalid(ctx, f.Options, why); err != nil {
		f.Log.Warn("cannot say on this host's Node what is wrong", "err", err)
	}
}

func (a *app) launch() *cobra.Command {
	f := &launchFlags{}
	cmd := &cobra.Command{
		Use: "launch [PEER...]", Short: "start Weft on this host",
		Long: `Starts the agent in the background and waits until it is ready.

Without PEER, the first time, this host founds a new network and prints the token
and the line to run on the next host. With PEER (a host name or address, optionally
with a port) it joins that host's network. Targets, keys and addresses are kept:
later, a plain launch is enough.` + environmentHelp + exitHelp,
		Example: "  weft launch                        # on the first host\n  weft launch --token - h1 <token    # on every other one",
		RunE: func(cmd *cobra.Command, targets []string) error {
			return a.runLaunch(cmd, f, targets)
		},
	}
	f.add(cmd)
	cmd.Flags().DurationVar(&f.wait, "wait", time.Minute, "how long to wait until the agent is ready; 0 does not wait")
	return cmd
}

func (a *app) runLaunch(cmd *cobra.Command, f *launchFlags, targets []string) error {
	if err := a.configure(cmd, f, targets); err != nil {
		return err
	}
	client := api.NewClient(filepath.Join(f.RunDir, "weft.sock"))
	if r, err := client.Report(cmd.Context()); err == nil {
		return fmt.Errorf("an agent runs on this host already (pid %d): `weft connect PEER` adds a target, `weft stop` ends it", r.Router.PID)
	}
	var token secret.Token
	fresh := false
	if !f.Kubernetes.On {
		var err error
		if token, fresh, err = a.establishSecret(f); err != nil {
			return err
		}
	} else if err := os.MkdirAll(f.StateDir, 0o700); err != nil { // where the agent's log goes
		return err
	}
	child, err := startAgent(cmd, f, targets)
	if err != nil {
		return err
	}
	if err := a.waitReady(cmd.Context(), client, f, child); err != nil {
		return err
	}
	if r, err := client.Report(cmd.Context()); err == nil && fresh && isTerminal(a.out) {
		printInvitation(a.out, token, r)
	}
	return nil
}

// isTerminal reports whether a person reads along: only then the token is printed.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// printInvitation says how the next host joins.
func printInvitation(w io.Writer, t secret.Token, r api.Report) {
	addr := "HOST"
	if len(r.Router.Underlay) > 0 {
		addr = r.Router.Underlay[0].String()
	}
	fmt.Fprintf(w, `
This host founded a new network. Its token, a secret:

  %s

On the next host run this, and give it the token on standard input:

  weft launch --token - %s
`, t.Reveal(), addr)
}

// startAgent starts the agent in a session of its own, its log in the state folder.
func startAgent(cmd *cobra.Command, f *launchFlags, targets []string) (*exec.Cmd, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	path := filepath.Join(f.StateDir, agentLog)
	log, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("agent's log: %w", err)
	}
	defer log.Close()
	args := []string{"agent"}
	for _, flag := range changedFlags(cmd) {
		if !strings.HasPrefix(flag, "--token=") && !strings.HasPrefix(flag, "--wait=") {
			args = append(args, flag)
		}
	}
	child := exec.Command(exe, append(append(args, "--"), targets...)...)
	child.Stdout, child.Stderr = log, log
	child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return child, child.Start()
}

// waitReady shows what the agent waits for until it is ready, and why it ended if it did.
func (a *app) waitReady(ctx context.Context, client *api.Client, f *launchFlags, child *exec.Cmd) error {
	ended := make(chan error, 1)
	go func() { ended <- child.Wait() }()
	if f.wait == 0 {
		return nil
	}
	progress := newProgress(a.err)
	defer progress.done()
	start := time.Now()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	why := errors.New("the agent is starting")
	for time.Since(start) < f.wait {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ended:
			err := fmt.Errorf("the agent ended: %s", lastError(filepath.Join(f.StateDir, agentLog)))
			if child.ProcessState.ExitCode() == ExitCopy {
				return endedError{err, agent.ErrTwin}
			}
			return err
		case <-tick.C:
		}
		err := client.Ready(ctx)
		if err == nil {
			progress.line("ready after %.1f s", time.Since(start).Seconds())
			return nil
		}
		if _, down := errors.AsType[*api.NotRunningError](err); !down {
			why = err
		}
		progress.line("%4.1f s  %v", time.Since(start).Seconds(), a.waitingFor(ctx, client, why))
	}
	return &api.Error{Code: api.CodeNotReady, Message: fmt.Sprintf("the agent runs, but is not ready after %v: %v", f.wait, a.waitingFor(ctx, client, why))}
}

// endedError is what the agent said last, and of which kind that was.
type endedError struct {
	error
	kind error
}

func (e endedError) Unwrap() error { return e.kind }

// waitingFor says why the agent is not ready, with what its targets answered.
func (a *app) waitingFor(ctx context.Context, client *api.Client, why error) string {
	text := why.Error()
	r, err := client.Report(ctx)
	if err != nil {
		return text
	}
	for _, t := range r.Router.Targets {
		if t.Error != "" {
			text += "; target " + t.Host + ": " + t.Error
		}
	}
	return text
}

// lastError is the agent's last word.
func lastError(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	last := "without a word, see " + path
	for scan := bufio.NewScanner(bytes.NewReader(data)); scan.Scan(); {
		if line, ok := strings.CutPrefix(scan.Text(), "weft: "); ok {
			last = line
		}
	}
	return last
}

// progress is one line that is written over on a terminal, and written once per
// new text elsewhere.
type progress struct {
	w        io.Writer
	terminal bool
	last     string
}

func newProgress(w io.Writer) *progress { return &progress{w: w, terminal: isTerminal(w)} }

func (p *progress) line(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if p.terminal {
		fmt.Fprintf(p.w, "\r\x1b[K%s", text)
		p.last = text
		return
	}
	// Without the time in front, so that waiting does not fill a log.
	_, what, _ := strings.Cut(text, "  ")
	if what == "" {
		what = text
	}
	if what != p.last {
		fmt.Fprintln(p.w, what)
		p.last = what
	}
}

func (p *progress) done() {
	if p.terminal && p.last != "" {
		fmt.Fprintln(p.w)
	}
}
