package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"weft/prog/lab/node"
	"weft/prog/words"
)

// ExitError means that the command of weft lab exec failed. The command has printed the reason, so
// only its exit code is left.
type ExitError struct{ Code int }

func (e *ExitError) Error() string { return fmt.Sprintf("exit code %d", e.Code) }

// Command returns weft lab. Its commands end with their context, which the caller cancels on SIGINT
// and SIGTERM, but exec passes signals on to its command. Errors are for users, except *ExitError.
func Command() *cobra.Command {
	root := &cobra.Command{
		Use:   "lab",
		Short: "build hosts and containers on this machine, to try Weft and to test it",
		Long: "Build hosts and containers on this machine, to try Weft and to test it.\n\n" +
			"Hosts h1, h2 … are network namespaces with their own mounts, processes and hostname, on a common\n" +
			"underlay (192.0.2.0/24 and 2001:db8::/64); each runs the real weft. Containers h1/c1, h1/c2 … are\n" +
			"attached by the real weft-cni. weft lab works as root and as an ordinary user. weft lab down removes\n" +
			"everything that it made.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	var name string
	root.PersistentFlags().StringVar(&name, "name", "default", "name of the lab; several labs may run at once")
	root.AddCommand(upCommand(&name), downCommand(&name), execCommand(&name), statusCommand(&name),
		linkCommand(&name), networkCommand(&name), natCommand(&name), killCommand(&name), uiCommand(&name), demoCommand(&name), cniCommand(), nodeCommand(),
		hostCommand(&name, "stop", "Run weft stop on a host; its containers stay connected", (*Lab).Stop),
		hostCommand(&name, "start", "Launch weft again on a host that was stopped or killed", (*Lab).Start),
		hostCommand(&name, "reboot", "Kill everything on a host at once and start it again", (*Lab).Reboot))
	return root
}

func upCommand(name *string) *cobra.Command {
	var o Options
	var keep bool
	cmd := &cobra.Command{
		Use:   "up [-- LAUNCH-FLAGS]",
		Short: "make hosts, launch weft on them, attach containers",
		Long: "Make hosts, launch weft on them, attach containers. If weft does not start, the lab is removed,\n" +
			"unless --keep is given.",
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.ArgsLenAtDash() < 0 && len(args) > 0 {
				return fmt.Errorf("lab: unexpected %q: flags for weft launch go after --", args[0])
			}
			if o.Hosts == 0 { // Up would take 0 for the default
				return words.Misused(fmt.Errorf("lab: 0 hosts: between 1 and %d are possible", MaxHosts))
			}
			o.Name, o.Launch = *name, args
			o.Progress = func(line string) { fmt.Fprintln(cmd.ErrOrStderr(), line) }
			ctx := cmd.Context()
			l, err := Up(ctx, o)
			if l == nil {
				return err
			}
			if err != nil && keep && ctx.Err() == nil {
				return fmt.Errorf("%w\nThe lab is still up for inspection: weft lab status --name %s; remove it with weft lab down --name %s",
					err, l.opts.Name, l.opts.Name)
			}
			if err != nil {
				return errors.Join(err, l.Down(context.WithoutCancel(ctx)))
			}
			s, err := l.Status(ctx)
			if err != nil {
				return err
			}
			return s.Print(cmd.OutOrStdout())
		},
	}
	f := cmd.Flags()
	f.IntVar(&o.Hosts, "hosts", 3, "number of hosts")
	f.IntVar(&o.Containers, "containers", 2, "number of containers on each host")
	f.StringVar(&o.Underlay, "underlay", "46", "families of the hosts' own network: 4, 6 or 46")
	f.BoolVar(&o.Together, "together", false, "launch all hosts at once, each with the other hosts as targets")
	f.BoolVar(&o.Bare, "bare", false, "make hosts and containers only, without weft")
	f.BoolVar(&keep, "keep", false, "keep the lab for inspection if weft does not start")
	return cmd
}

func downCommand(name *string) *cobra.Command {
	return &cobra.Command{
		Use: "down", Short: "remove the lab and everything that it made", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			stale, err := Down(cmd.Context(), *name)
			if stale {
				fmt.Fprintf(cmd.ErrOrStderr(), "lab %q had crashed; its remains are removed\n", *name)
			}
			return err
		},
	}
}

func execCommand(name *string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "exec HOST[/CONTAINER] -- CMD…",
		Short: "run a command on a host, in a container, in the bridge's namespace (underlay), or on a NAT (nat-HOST)",
		Example: "  weft lab exec h1 -- weft status\n  weft lab exec h1/c1 -- weft probe icmp 10.32.0.5\n" +
			"  weft lab exec h2 -- sh\n  weft lab exec underlay -- weft probe capture h1 h2",
		Args: cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := Open(*name)
			if err != nil {
				return err
			}
			if err := l.checkTarget(args[0]); err != nil {
				return err
			}
			argv := args[1:]
			if argv[0] == "--" { // the flag parser keeps it, since a word precedes it
				argv = argv[1:]
			}
			if len(argv) == 0 {
				return errors.New("lab: no command after --")
			}
			if onTerminal() {
				return exitCode(cmd, l.AttachTerminal(cmd.Context(), args[0], argv...))
			}
			signals := make(chan os.Signal, 8)
			signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2)
			defer signal.Stop(signals)
			// The context would end at ctrl-C, and kill a command that handles ctrl-C itself.
			err = l.Attach(context.WithoutCancel(cmd.Context()), args[0],
				[3]*os.File{os.Stdin, os.Stdout, os.Stderr}, signals, argv...)
			return exitCode(cmd, err)
		},
	}
	// Do not parse the command's own flags, with or without the dashes before it.
	cmd.Flags().SetInterspersed(false)
	return cmd
}

// exitCode converts a command's failure to its exit code.
func exitCode(cmd *cobra.Command, err error) error {
	failed, ok := errors.AsType[*CommandError](err)
	if !ok {
		return err
	}
	if failed.Stderr != "" { // why the command could not be started; a command that ran has printed its own errors
		fmt.Fprintln(cmd.ErrOrStderr(), "weft:", failed.Stderr)
	}
	return &ExitError{failed.Code}
}

func (l *Lab) checkTarget(target string) error {
	host, container, inContainer := strings.Cut(target, "/")
	if host == UnderlayName && !inContainer {
		return nil
	}
	if owner, router := node.RouterHost(host); router && !inContainer {
		return l.checkHost(owner)
	}
	if inContainer && !validName.MatchString(container) {
		return fmt.Errorf("lab: bad container %q: use HOST/NAME, such as h1/c1", target)
	}
	return l.checkHost(host)
}

func statusCommand(name *string) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "status", Short: "show hosts, containers, processes and cut links", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := Open(*name)
			if err != nil {
				return err
			}
			s, err := l.Status(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), s)
			}
			return s.Print(cmd.OutOrStdout())
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func writeJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

func linkCommand(name *string) *cobra.Command {
	return &cobra.Command{
		Use: "link HOST HOST up|down", Short: "cut or restore the underlay between two hosts",
		Args: cobra.ExactArgs(3),
		RunE: func(cmd *cobra.Command, args []string) error {
			if args[2] != "up" && args[2] != "down" {
				return fmt.Errorf("lab: %q: want up or down", args[2])
			}
			l, err := Open(*name)
			if err != nil {
				return err
			}
			return l.Link(cmd.Context(), args[0], args[1], args[2] == "up")
		},
	}
}

func killCommand(name *string) *cobra.Command {
	var datapath bool
	cmd := &cobra.Command{
		Use: "kill HOST", Short: "kill a host's agent or datapath with SIGKILL",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := Open(*name)
			if err != nil {
				return err
			}
			kind := "agent"
			if datapath {
				kind = "datapath"
			}
			return l.Kill(cmd.Context(), args[0], kind)
		},
	}
	cmd.Flags().BoolVar(&datapath, "datapath", false, "kill the userspace WireGuard instead of the agent")
	return cmd
}

func hostCommand(name *string, verb, short string, do func(*Lab, context.Context, string) error) *cobra.Command {
	return &cobra.Command{
		Use: verb + " HOST", Short: short, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := Open(*name)
			if err != nil {
				return err
			}
			return do(l, cmd.Context(), args[0])
		},
	}
}

func nodeCommand() *cobra.Command {
	return &cobra.Command{
		Use: "node NAME", Hidden: true, Args: cobra.ExactArgs(1),
		Short: "run as the first process of a host's or container's namespaces",
		RunE:  func(cmd *cobra.Command, _ []string) error { return node.Main(cmd.Context()) },
	}
}

func cniCommand() *cobra.Command {
	return &cobra.Command{
		Use: "cni add|del CONTAINER-ID NETNS IDENTITY", Hidden: true, Args: cobra.ExactArgs(4),
		Short: "call CNI on this host as a container runtime does",
		RunE: func(cmd *cobra.Command, args []string) error {
			var as Identity
			if err := json.Unmarshal([]byte(args[3]), &as); err != nil {
				return fmt.Errorf("lab: reading IDENTITY, the container's namespace, name, labels and ports as JSON: %w", err)
			}
			out, err := runCNI(cmd.Context(), args[0], args[1], args[2], as)
			if err != nil {
				return err
			}
			return writeJSON(cmd.OutOrStdout(), out)
		},
	}
}

func demoCommand(name *string) *cobra.Command {
	return &cobra.Command{
		Use: "demo", Args: cobra.NoArgs,
		Short: "demonstrate three hosts, their tunnels and a packet capture (KEEP=1 leaves them running)",
		RunE: func(cmd *cobra.Command, _ []string) error {
			lab := "demo"
			if cmd.Flags().Changed("name") {
				lab = *name
			}
			return Demo(cmd.Context(), cmd.OutOrStdout(), lab, os.Getenv("KEEP") != "")
		},
	}
}
