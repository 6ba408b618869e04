// Package cli is Weft's command line. Its commands resemble Weave Net's, which its users know. A
// command parses its arguments, asks the agent over the control socket, and prints an aligned
// table, or JSON with --json. A command runs in one goroutine and shares no state with others.
// It never changes the kernel or the mesh itself, except for weft reset, lab and datapath.
//
// Errors go to standard error. They say what happened, to what, and what to do next. The exit code
// says which kind of error it was (see the Exit constants).
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"weft/prog/agent"
	"weft/prog/api"
	"weft/prog/lab"
	"weft/prog/lab/probe"
	"weft/prog/words"
)

// These are the exit codes of all commands. Only weft lab exec returns its command's exit code.
const (
	ExitOK         = 0
	ExitFailed     = 1 // the command failed; the message says why
	ExitUsage      = 2 // unknown command or flag, or an unusable argument
	ExitNotRunning = 3 // no agent runs on this host
	ExitNotReady   = 4 // the agent runs, but cannot do what the command asks yet: try again later; from status: this host is not ready; from launch: the agent is not ready, or no tunnel works
	ExitCopy       = 5 // this host is a copy of another one: starting the agent again does not help
)

const exitHelp = `
Exit codes: 0 done, 1 failed, 2 wrong usage, 3 no agent runs here, 4 not ready, try again later
(of weft status too, and of weft launch if no tunnel works), 5 this host is a copy of another one.`

// Version is the release. The build sets it.
var Version = "dev"

// app holds the flags, input and output that all commands share.
type app struct {
	in       io.Reader
	out, err io.Writer
	socket   string
	json     bool
	oneLine  bool // JSON without line breaks

	watchPeriod time.Duration // the pause between two pictures of --watch
}

// errNotReady sets the exit code of a command that has already printed why this host is not ready.
var errNotReady = errors.New("not ready")

// Main runs the command line and returns its exit code.
func Main(args []string, in io.Reader, out, errOut io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	a := &app{in: in, out: out, err: errOut, watchPeriod: watchPeriod}
	root := a.root()
	root.SetArgs(args)
	err := checkWords(root, args)
	if err == nil {
		err = root.ExecuteContext(ctx)
	}
	if err == nil {
		return ExitOK
	}
	code := exitCode(err)
	if exit, ok := errors.AsType[*lab.ExitError](err); (!ok || exit.Code == 0) && !errors.Is(err, errNotReady) && !errors.Is(err, errFailed) {
		fmt.Fprintln(errOut, "weft:", err)
	}
	return code
}

// exitCode maps errors to exit codes. It is the only place that chooses an exit code.
func exitCode(err error) int {
	if exit, ok := errors.AsType[*lab.ExitError](err); ok {
		return exit.Code
	}
	if _, ok := errors.AsType[words.Misuse](err); ok {
		return ExitUsage
	}
	if errors.Is(err, errNotReady) {
		return ExitNotReady
	}
	if errors.Is(err, agent.ErrTwin) {
		return ExitCopy
	}
	if _, ok := errors.AsType[*api.NotRunningError](err); ok && !errors.Is(err, fs.ErrPermission) {
		return ExitNotRunning
	}
	if e, ok := errors.AsType[*api.Error](err); ok {
		switch e.Code {
		case api.CodeNotReady, api.CodeNoSpace:
			return ExitNotReady
		case api.CodeBadRequest:
			return ExitUsage
		}
	}
	return ExitFailed
}

func (a *app) root() *cobra.Command {
	version := false
	root := &cobra.Command{
		Use:           "weft",
		Short:         "an encrypted mesh network for containers",
		Long:          "Weft gives every container an address and an encrypted path to every other container.\n" + exitHelp,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if version {
				return a.printVersion()
			}
			return cmd.Help()
		},
	}
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.err)
	root.SetFlagErrorFunc(flagError)
	root.SetHelpCommand(help(root))
	root.Flags().BoolVar(&version, "version", false, "print the version")
	root.PersistentFlags().StringVar(&a.socket, "socket", api.DefaultSocket, "the agent's control socket")
	root.PersistentFlags().BoolVar(&a.json, "json", false, "print JSON")
	root.AddCommand(
		a.launch(), a.agent(), a.stop(), a.reset(), a.prime(), a.connect(), a.forget(), a.rmpeer(), a.unban(), a.id(),
		a.attach(), a.detach(), a.ps(), a.expose(), a.hide(),
		a.dnsAdd(), a.dnsRemove(), a.dnsLookup(),
		a.policy(), a.flows(), a.trace(),
		a.status(), a.check(), a.logs(), a.bundle(), a.report(), a.ui(), a.version(), a.config(), a.token(), a.datapath(),
		lab.Command(), probe.Command(a.addressesOf),
	)
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd("completion")
	a.completions(root)
	a.checkArgs(root)
	return root
}

func (a *app) client() *api.Client { return api.NewClient(a.socket) }

func (a *app) version() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "print the version", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return a.printVersion() },
	}
}

func (a *app) printVersion() error {
	info, _ := debug.ReadBuildInfo()
	v := versioned{Version, info.GoVersion}
	return a.show(v, func() { fmt.Fprintf(a.out, "weft %s (%s)\n", Version, info.GoVersion) })
}
