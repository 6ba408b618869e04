package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"weft/prog/agent"
	"weft/prog/agent/config"
	"weft/prog/agent/privilege"
	"weft/prog/agent/statedir"
	"weft/prog/api"
	"weft/prog/cni/install"
	"weft/prog/words"
	"weft/router/datapath"
)

// changedFlags returns the flags of this command line, as arguments for another process.
func changedFlags(cmd *cobra.Command) []string {
	var out []string
	cmd.Flags().Visit(func(f *pflag.Flag) {
		if values, ok := f.Value.(pflag.SliceValue); ok {
			for _, v := range values.GetSlice() {
				out = append(out, "--"+f.Name+"="+v)
			}
			if len(values.GetSlice()) == 0 { // the flag was given with an empty list
				out = append(out, "--"+f.Name+"=")
			}
			return
		}
		out = append(out, "--"+f.Name+"="+f.Value.String())
	})
	return out
}

func (a *app) stop() *cobra.Command {
	return &cobra.Command{
		Use: "stop", Short: "stop the agent; data path, endpoints and guard stay", Args: cobra.NoArgs,
		Long: "Stops the agent. Tunnels, containers and the guard stay as they are, and traffic continues;\n`weft launch` takes them over again, `weft reset` removes everything." + exitHelp,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := stopAgent(cmd.Context(), a.client(), api.StopRequest{})
			return a.did(err)
		},
	}
}

// stopAgent stops the agent and waits until its process has ended: until then, the process locks the
// state folder.
func stopAgent(ctx context.Context, client *api.Client, req api.StopRequest) (api.StopReply, error) {
	r, err := client.Report(ctx)
	if err != nil {
		return api.StopReply{}, err
	}
	done, err := client.Stop(ctx, req)
	if err != nil {
		return done, err
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for unix.Kill(r.Router.PID, 0) == nil {
		select {
		case <-ctx.Done():
			return done, fmt.Errorf("the agent (pid %d) did not stop within 20 s: see its log, or end it with kill -9 (traffic continues)", r.Router.PID)
		case <-time.After(20 * time.Millisecond):
		}
	}
	return done, nil
}

func (a *app) reset() *cobra.Command {
	var force, stay, cniOnly bool
	var settings string
	var opts config.Options
	cmd := &cobra.Command{
		Use: "reset", Short: "remove Weft from this host: data path, endpoints, guard, state and secret", Args: cobra.NoArgs,
		Long: `Leaves the network for good and removes everything that Weft made on this host. Another
peer takes over its addresses first. Without --force it refuses while containers are
attached, and if no other peer can take over; then run weft rmpeer on another host.

With --kubernetes it then withdraws the condition of this host's Node, as the pods of
uninstall.yaml do: while a Node has it, no other node founds a new network.

With --cni it only removes the CNI configuration and the plugin, so that no more containers
are attached, and leaves everything else as it is.` + exitHelp,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := privilege.CheckNetAdmin(); err != nil {
				return err
			}
			if err := applyDirs(settings, cmd.Flags()); err != nil {
				return err
			}
			if !cmd.Flags().Changed("socket") {
				a.socket = filepath.Join(opts.RunDir, filepath.Base(api.DefaultSocket))
			}
			if cniOnly {
				return a.did(install.Remove(opts.CNIConfDir, opts.CNIBinDir))
			}
			heir, err := a.leave(cmd.Context(), opts.StateDir, force)
			if err != nil {
				return err
			}
			kept, err := agent.Reset(cmd.Context(), opts)
			for _, text := range kept {
				fmt.Fprintln(a.err, "weft: not restored:", text)
			}
			if err == nil {
				err = removeSettings(settings)
			}
			if err != nil {
				return err
			}
			if err := a.show(wiped{Done: true, Heir: heir}, func() {}); err != nil || !stay {
				return err
			}
			<-cmd.Context().Done()
			return nil
		},
	}
	cmd.Flags().BoolVar(&stay, "stay", false, "afterwards wait for a signal, since a DaemonSet's containers must not exit")
	cmd.Flags().BoolVar(&force, "force", false, "reset the host even if containers are attached: they lose their network")
	kubernetesFlags(cmd.Flags(), &opts.Kubernetes, "this host is a Node of a Kubernetes cluster: also update that Node")
	cmd.Flags().StringVar(&settings, "settings", settingsFile, "the file with this host's settings, which is removed if launch made it")
	cmd.Flags().BoolVar(&cniOnly, "cni", false, "remove only the CNI configuration and the plugin")
	cmd.Flags().StringVar(&opts.StateDir, "state-dir", config.DefaultStateDir, "folder of the state")
	cmd.Flags().StringVar(&opts.RunDir, "run-dir", config.DefaultRunDir, "folder of the control socket")
	cmd.Flags().StringVar(&opts.CNIConfDir, "cni-conf-dir", config.DefaultCNIConfDir, "folder of the CNI configuration")
	cmd.Flags().StringVar(&opts.CNIBinDir, "cni-bin-dir", config.DefaultCNIBinDir, "folder of the CNI plugin")
	return cmd
}

// leave stops this host's agent, which first hands its addresses to another peer, the heir.
func (a *app) leave(ctx context.Context, stateDir string, force bool) (heir string, err error) {
	client := a.client()
	r, err := client.Report(ctx)
	_, down := errors.AsType[*api.NotRunningError](err)
	switch {
	case down && statedir.Owns(stateDir) && !force:
		return "", errors.New("no agent runs on this host, so no peer can take over its addresses: start the agent first; or use --force, then run `weft rmpeer` on another host")
	case down:
		return "", nil
	case err != nil:
		return "", err
	case len(r.Endpoints) > 0 && !force:
		return "", fmt.Errorf("%s %s attached to this host (`weft ps`): use `weft detach` first, or --force to cut off all", words.Count(len(r.Endpoints), "container"), words.Are(len(r.Endpoints)))
	}
	done, err := stopAgent(ctx, client, api.StopRequest{Leave: true, Force: force})
	if err == nil && done.Heir != "" && !a.json {
		fmt.Fprintf(a.err, "%s took over this host's addresses\n", done.Heir)
	}
	return done.Heir, err
}

// kubernetesFlags adds the flags that name the cluster and this host's Node.
func kubernetesFlags(flags *pflag.FlagSet, o *config.Kubernetes, use string) {
	flags.BoolVar(&o.On, "kubernetes", false, use)
	flags.StringVar(&o.Config, "kubeconfig", "", "kubeconfig file, when not running in a pod")
	flags.StringVar(&o.Node, "node-name", "", "the name of this host's Node (default: NODE_NAME in the environment, else the host's name)")
}

func (a *app) rmpeer() *cobra.Command {
	var req api.RemovePeerRequest
	cmd := &cobra.Command{
		Use: "rmpeer PEER...", Short: "take over the addresses of hosts that are gone for good", Args: cobra.MinimumNArgs(1),
		Long: `Takes over the addresses of a dead peer, given by its id or nickname. First, all reachable
peers confirm that it is dead. If it comes back, it is told at once, cuts off containers
with a lost address, and starts anew. Without a majority it refuses, since unreachable
peers may still reach that peer; use --force only if you know that it is dead.

With --ban, the peer may be alive: within 5 s no other host accepts its sessions, records,
requests or packets, and this host takes over its addresses. This host needs the network's
secret or the admitting right. A banned host that holds the network's secret could certify
a new identity for itself: then found a new network with another secret.` + exitHelp,
		RunE: func(cmd *cobra.Command, peers []string) error {
			removed := []api.RemovePeerReply{}
			for _, name := range peers {
				req.Peer = name
				r, err := a.client().RemovePeer(cmd.Context(), req)
				if err != nil {
					return errors.Join(err, a.showRemoved(removed)) // peers removed before the error are shown too
				}
				removed = append(removed, r)
			}
			return a.showRemoved(removed)
		},
	}
	cmd.Flags().BoolVar(&req.Force, "force", false, "do not require a majority of the peers")
	cmd.Flags().BoolVar(&req.Ban, "ban", false, "ban the peer, alive or dead: within 5 s all other hosts refuse it")
	cmd.Flags().StringVar(&req.Reason, "reason", "", "with --ban: why, for other operators")
	return cmd
}

func (a *app) showRemoved(list []api.RemovePeerReply) error {
	return a.show(list, func() {
		for _, r := range list {
			belong := "belong"
			if r.Addresses == 1 {
				belong = "belongs"
			}
			fmt.Fprintf(a.out, "%s of %s now %s to this host\n", words.Count(r.Addresses, "address"), r.Peer, belong)
		}
	})
}

func (a *app) prime() *cobra.Command {
	var wait time.Duration
	cmd := &cobra.Command{
		Use: "prime", Short: "wait until this host can allocate addresses", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if wait <= 0 {
				return words.Misused(fmt.Errorf("--wait %v: want more than 0s", wait))
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), wait)
			defer cancel()
			client := a.client()
			err := client.Ready(ctx)
			if errors.Is(err, context.DeadlineExceeded) {
				return &api.Error{Code: api.CodeNotReady, Message: fmt.Sprintf("the agent did not answer within %v: the agent hangs, or the host is overloaded; see the agent's log", wait)}
			}
			for e, ok := errors.AsType[*api.Error](err); ok && e.Code == api.CodeNotReady; e, ok = errors.AsType[*api.Error](err) {
				select {
				case <-ctx.Done():
					return err
				case <-time.After(100 * time.Millisecond):
				}
				if next := client.Ready(ctx); ctx.Err() == nil {
					err = next
				}
			}
			if err != nil {
				return err
			}
			return a.show(primed{true}, func() {})
		},
	}
	cmd.Flags().DurationVar(&wait, "wait", time.Minute, "how long to wait")
	return cmd
}

func (a *app) connect() *cobra.Command {
	var replace bool
	cmd := &cobra.Command{
		Use: "connect [--replace] PEER...", Short: "add hosts to join", Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, hosts []string) error {
			return a.changeTargets(cmd.Context(), api.TargetsRequest{Connect: hosts, Replace: replace})
		},
	}
	cmd.Flags().BoolVar(&replace, "replace", false, "remove all other targets")
	return cmd
}

func (a *app) forget() *cobra.Command {
	return &cobra.Command{
		Use: "forget PEER...", Short: "remove hosts to join; connected peers stay connected", Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, hosts []string) error {
			return a.changeTargets(cmd.Context(), api.TargetsRequest{Forget: hosts})
		},
	}
}

// changeTargets changes the targets. With --json it prints the new list.
func (a *app) changeTargets(ctx context.Context, req api.TargetsRequest) error {
	client := a.client()
	if err := client.Targets(ctx, req); err != nil || !a.json {
		return err
	}
	r, err := client.Report(ctx)
	if err != nil {
		return err
	}
	return a.show(r.Router.Targets, nil)
}

func (a *app) expose() *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use: "expose [-h NAME]", Short: "let the underlay reach containers through this host", Args: cobra.NoArgs,
		Long: "Lets hosts on the underlay reach containers, on any host of the mesh, through this host. On those\nhosts, add a route to the overlay's addresses with this host as next hop. Traffic between them and\nthis host is not encrypted. With -h, containers find this host by that name in the DNS domain.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.changeExposure(cmd.Context(), api.ExposeRequest{On: true, Name: name})
		},
	}
	nameFlag(cmd, &name)
	return cmd
}

func (a *app) hide() *cobra.Command {
	return &cobra.Command{
		Use: "hide", Short: "undo expose", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.changeExposure(cmd.Context(), api.ExposeRequest{})
		},
	}
}

// changeExposure exposes this host and prints its node addresses, or hides it.
func (a *app) changeExposure(ctx context.Context, req api.ExposeRequest) error {
	client := a.client()
	if err := client.Expose(ctx, req); err != nil {
		return err
	}
	r, err := client.Report(ctx)
	if err != nil {
		return err
	}
	return a.show(exposure{req.On, append([]netip.Addr{}, r.Router.Node...)}, func() {
		if req.On {
			for _, n := range r.Router.Node {
				fmt.Fprintln(a.out, n)
			}
		}
	})
}

// id prints the peer id of a host before its launch, for --ipalloc-init seed.
func (a *app) id() *cobra.Command {
	var stateDir string
	cmd := &cobra.Command{
		Use: "id", Short: "print this host's peer id; creates its identity if there is none", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := applyDirs(settingsFile, cmd.Flags()); err != nil {
				return err
			}
			id := ""
			if r, err := a.client().Report(cmd.Context()); err == nil {
				id = r.Router.ID
			} else if id, err = statedir.Identity(stateDir); err != nil {
				return err
			}
			return a.show(identity{id}, func() { fmt.Fprintln(a.out, id) })
		},
	}
	cmd.Flags().StringVar(&stateDir, "state-dir", config.DefaultStateDir, "folder of the state")
	return cmd
}

// datapath runs the userspace WireGuard process, which the agent or a supervisor starts.
func (a *app) datapath() *cobra.Command {
	standby := false
	cmd := &cobra.Command{
		Use: "datapath", Short: "run WireGuard in userspace, for kernels without it", Args: cobra.NoArgs,
		Long: "Runs the userspace WireGuard process in the foreground. The agent starts it if the kernel\nhas no WireGuard. Run it as its own unit if the supervisor would stop it together with the agent.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			go boundLog(cmd.Context())
			run := datapath.Run
			if standby {
				run = datapath.Standby
			}
			return run(cmd.Context(), datapath.Config{Log: slog.New(slog.NewTextHandler(a.err, nil))})
		},
	}
	cmd.Flags().BoolVar(&standby, "standby", false, "do nothing if the kernel has WireGuard")
	return cmd
}
