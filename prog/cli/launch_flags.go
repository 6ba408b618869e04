package cli

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"weft/ipam"
	"weft/mesh"
	"weft/mesh/secret"
	"weft/prog/agent/config"
	"weft/prog/agent/logs"
	"weft/prog/cni/install"
	"weft/prog/words"
)

// launchFlags holds the flags of launch and agent.
type launchFlags struct {
	config.Options
	dns       dnsFlags
	ranges    string
	tokenSrc  string
	cluster   string // part of the salt of a secret that is derived from WEFT_PASSWORD
	init      string
	exclude   []string
	advertise []string
	exempt    []string
	verbose   bool
	datapath  bool
	wait      time.Duration // flag of launch only: how long to wait until the agent is ready
	found     bool          // flag of agent only: found a network if this host belongs to none
	settings  string        // path of the settings file
	from      origins
}

func (f *launchFlags) add(cmd *cobra.Command) {
	host, _ := os.Hostname() // without a host name, output shows only the peer's id
	flags := cmd.Flags()
	flags.StringVar(&f.ranges, "ipalloc-range", "", "the overlay's addresses: CIDR[,CIDR6] (default 10.32.0.0/12 and a ULA derived from the cluster)")
	flags.StringVar(&f.init, "ipalloc-init", "", "which hosts found the address ring: consensus=N, seed=ID,ID… or observer (default: a host without PEER founds; hosts with PEER vote, unless one of these hosts has a ring)")
	flags.StringSliceVar(&f.exclude, "ipalloc-exclude", nil, "CIDRs whose addresses this host allocates only on request; give every host the same list. The list is stored; \"\" removes it")
	flags.DurationVar(&f.Rest, "ipalloc-rest", ipam.DefaultRest, "quarantine of a released address before it is allocated again")
	flags.StringVar(&f.tokenSrc, "token", "", "a file with the cluster's token, or - for standard input")
	flags.StringVar(&f.cluster, "cluster", "", "name of the cluster, with WEFT_PASSWORD only; the same on all hosts: clusters of different names have different secrets, even if their passwords are the same")
	flags.StringVar(&f.Nickname, "nickname", host, "this host's name in output and messages")
	flags.StringSliceVar(&f.advertise, "advertise", nil, "addresses at which other hosts reach this host (default: all its own addresses)")
	flags.IntVar(&f.GossipPort, "port", mesh.Port, "gossip port, TCP and UDP; the same on all hosts")
	flags.IntVar(&f.Port, "wireguard-port", config.DefaultPort, "WireGuard port, UDP")
	flags.BoolVar(&f.Discover, "discover", false, "find hosts of the network on this host's LANs by multicast; without PEER, found a network only if there is none")
	flags.BoolVar(&f.NoRelay, "no-relay", false, "forward no tunnels of other hosts that do not reach each other")
	flags.BoolVar(&f.NoFlows, "no-flows", false, "remember no connections of containers on this host (see weft flows)")
	flags.BoolVar(&f.NoDiscovery, "no-discovery", false, "connect only to the hosts given; others are reached over them")
	flags.IntVar(&f.MTU, "mtu", 0, "MTU of the overlay (default: path MTU to each peer, less 80)")
	flags.StringVar(&f.StateDir, "state-dir", config.DefaultStateDir, "folder of the state")
	flags.StringVar(&f.RunDir, "run-dir", config.DefaultRunDir, "folder of the control socket")
	flags.StringVar(&f.CNIConfDir, "cni-conf-dir", config.DefaultCNIConfDir, "folder of the CNI configuration; empty: write none")
	flags.StringVar(&f.CNIBinDir, "cni-bin-dir", config.DefaultCNIBinDir, "folder of the CNI plugin")
	flags.StringSliceVar(&f.CNIChain, "cni-chain", nil, "CNI plugins to chain after Weft's if they are installed: portmap, bandwidth or both (default: portmap with --kubernetes, else none)")
	flags.BoolVar(&f.datapath, "start-datapath", true, "start `weft datapath` if the kernel has no WireGuard; false: a supervisor starts it, and the agent waits for it")
	flags.StringVar(&f.SysctlDir, "sysctl-dir", "", "path of this host's /proc/sys/net, for containers in which /proc/sys is read-only")
	flags.StringVar(&f.MetricsAddr, "metrics-addr", "", "additional address of /metrics alone; empty: none")
	flags.StringVar(&f.StatusAddr, "status-addr", config.DefaultStatusAddr, "address of the read-only HTTP status; empty: none")
	f.dns.add(flags, &f.DNS)
	flags.StringSliceVar(&f.exempt, "policy-exempt", []string{config.ExemptOwnHost, config.ExemptICMPErrors},
		"traffic exempt from policies on this host: own-host (from containers to their own host), or dns (from containers to their own host's name server only); icmp-errors (for known connections); or none")
	kubernetesFlags(flags, &f.Kubernetes, "this host is a Node of a Kubernetes cluster: peers, token, policies and pods' labels come from its API server")
	flags.StringVar(&f.Kubernetes.Namespace, "namespace", "", "namespace of the Secret weft in the cluster (default: the pod's own, else weft)")
	flags.StringVar(&f.settings, "settings", settingsFile, "the file with this host's settings")
	flags.BoolVarP(&f.verbose, "verbose", "v", false, "log more")
}

// complete checks the flags and fills Options from them.
func (f *launchFlags) complete(targets []string, logTo io.Writer) error {
	f.Version = Version
	f.Targets = targets
	for _, t := range targets {
		if err := mesh.CheckTarget(t); err != nil {
			return words.Misused(err)
		}
	}
	if f.cluster != "" {
		if err := secret.CheckCluster(f.cluster); err != nil {
			return words.Misused(fmt.Errorf("--cluster: %w", err))
		}
	}
	for _, s := range f.advertise {
		addr, err := words.Addr(s)
		if err != nil {
			return words.Misused(fmt.Errorf("--advertise %s: %w", s, err))
		}
		f.Advertise = append(f.Advertise, addr.Unmap())
	}
	var err error
	if f.Universe, err = parseRanges(f.ranges); err != nil {
		return words.Misused(err)
	}
	if f.Init, err = config.ParseInit(f.init); err != nil {
		return words.Misused(err)
	}
	if err := f.parseExclude(); err != nil {
		return words.Misused(err)
	}
	if err := errors.Join(checkListenAddr("--status-addr", f.StatusAddr), checkListenAddr("--metrics-addr", f.MetricsAddr)); err != nil {
		return words.Misused(err)
	}
	if err := f.dns.complete(&f.DNS); err != nil {
		return words.Misused(err)
	}
	if f.Exempt, err = config.ParseExempt(f.exempt); err != nil {
		return words.Misused(fmt.Errorf("--policy-exempt: %w", err))
	}
	if err := install.ParseChain(f.CNIChain); err != nil {
		return words.Misused(fmt.Errorf("--cni-chain: %w", err))
	}
	if f.CNIChain == nil && f.Kubernetes.On {
		f.CNIChain = []string{"portmap"}
	}
	f.DatapathElsewhere = !f.datapath
	if f.Rest <= 0 {
		return words.Misused(fmt.Errorf("--ipalloc-rest %v: want more than 0", f.Rest))
	}
	if err := f.Validate(); err != nil {
		return words.Misused(err)
	}
	level := slog.LevelInfo
	if f.verbose {
		level = slog.LevelDebug
	}
	f.Recent = &logs.Recent{}
	f.Log = slog.New(slog.NewTextHandler(io.MultiWriter(logTo, f.Recent), &slog.HandlerOptions{Level: level}))
	return nil
}

// parseExclude reads the excluded CIDRs. No flag and an empty flag differ: only the latter removes the
// stored list.
func (f *launchFlags) parseExclude() error {
	if f.exclude != nil {
		f.Exclude = []netip.Prefix{}
	}
	for _, s := range f.exclude {
		p, err := words.Prefix(s)
		if err != nil {
			return fmt.Errorf("--ipalloc-exclude %s: %w", s, err)
		}
		f.Exclude = append(f.Exclude, p.Masked())
	}
	return nil
}

// parseRanges reads CIDR[,CIDR6].
func parseRanges(s string) (r config.Ranges, err error) {
	if s == "" {
		return r, nil
	}
	four, six, two := strings.Cut(s, ",")
	if r.V4, err = words.Prefix(four); err == nil && two {
		r.V6, err = words.Prefix(six)
	}
	if err == nil {
		err = r.Validate()
	}
	if err != nil {
		return r, fmt.Errorf("--ipalloc-range %s: %w", s, err)
	}
	return r, nil
}
