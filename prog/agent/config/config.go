// Package config holds the operator's decisions about an agent: its Options, their defaults and their
// limits. It only has values: it reads no files and does not query the kernel.
package config

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"time"

	"weft/ipam/slot"
	"weft/mesh/peer"
	"weft/mesh/secret"
	"weft/mesh/topology"
	"weft/prog/agent/logs"
	"weft/prog/api"
	"weft/router/nft"
)

// Options are the operator's decisions. The zero value of a field means its default.
type Options struct {
	Version    string
	Nickname   string         // default: the host's name
	Targets    []string       // hosts to join
	Universe   Ranges         // default: 10.32.0.0/12 and the cluster's ULA
	Exclude    []netip.Prefix // never handed out unless a container asks for it
	Init       Init
	Rest       time.Duration // quarantine of a freed address; default ipam.DefaultRest
	Advertise  []netip.Addr  // default: this host's own addresses
	GossipPort int
	Port       int // WireGuard's UDP port
	MTU        int // the MTU of the tunnel device; default: the underlay's MTU minus WireGuard's overhead
	StateDir   string
	RunDir     string
	CNIConfDir string // empty: no CNI configuration is written
	CNIBinDir  string
	CNIChain   []string // plugins that the runtime calls after weft-cni if they are in CNIBinDir
	SysctlDir  string   // default: /proc/sys/net
	// DatapathElsewhere means that a supervisor starts the userspace WireGuard, if the kernel has no
	// WireGuard: for example as a pod that outlives the agent's pod.
	DatapathElsewhere bool
	Discover          bool   // find hosts of the network on this host's LANs
	NoRelay           bool   // this host forwards no tunnels of other hosts
	NoDiscovery       bool   // this host connects only to its targets
	NoFlows           bool   // this host remembers no connections
	StatusAddr        string // empty: no status over TCP
	MetricsAddr       string // additional address of the metrics alone; empty: none
	DNS               DNS
	Exempt            nft.Exempt // traffic that policies do not apply to
	Kubernetes        Kubernetes
	Log               *slog.Logger
	Recent            *logs.Recent  // the last lines of Log; nil: none are remembered
	Settings          []api.Setting // the options of this agent, for the report
}

// DNS is the operator's part of the name server.
type DNS struct {
	Off         bool
	Domain      string                      // the DNS domain, without the final dot
	TTL         time.Duration               // the TTL of answers about names of the network
	PreferLocal bool                        // answers list the endpoints of this host first
	Forward     map[string][]netip.AddrPort // the DNS servers for names below each domain
	Fallback    bool                        // containers get this host's own DNS server as a second one
	ResolvConf  string                      // the file that lists this host's own DNS servers
}

// Kubernetes configures the API server, if this host is a Node of a cluster. Then policies,
// namespaces, pods and the addresses of peers come from the API server, and a Secret there names the
// founder of the ring.
type Kubernetes struct {
	On        bool
	Config    string // a kubeconfig file; empty: the service account of the agent's pod
	Node      string // the name of this host's Node object
	Namespace string // the namespace of the Secret; empty: the pod's own, else kube.DefaultNamespace
}

// Ranges are the universe as the operator gives it: the second one may be missing.
type Ranges struct {
	V4, V6 netip.Prefix
}

// Defaults of Options.
const (
	DefaultStateDir   = "/var/lib/weft"
	DefaultRunDir     = "/run/weft"
	DefaultCNIConfDir = "/etc/cni/net.d"
	DefaultCNIBinDir  = "/opt/cni/bin"
	DefaultStatusAddr = "127.0.0.1:6784"
	DefaultPort       = 6784
)

// Socket returns the path of the control socket.
func (o Options) Socket() string { return filepath.Join(o.RunDir, "weft.sock") }

// Validate reports which option is out of its bounds.
func (o Options) Validate() error {
	for _, p := range []struct {
		flag string
		port int
	}{{"--port", o.GossipPort}, {"--wireguard-port", o.Port}} {
		if p.port < 1 || p.port > 65535 {
			return fmt.Errorf("%s %d: want 1 to 65535", p.flag, p.port)
		}
	}
	for _, d := range []struct{ flag, dir string }{{"--state-dir", o.StateDir}, {"--run-dir", o.RunDir}} {
		if d.dir == "" {
			return fmt.Errorf("%s: want the path of a folder: it is empty", d.flag)
		}
	}
	if o.Discover && o.Kubernetes.On {
		return errors.New("--discover and --kubernetes exclude each other: the API server names the hosts")
	}
	if o.Discover && o.NoDiscovery {
		return errors.New("--discover and --no-discovery exclude each other: the first connects to hosts that it finds, the second only to hosts given")
	}
	if o.GossipPort == o.Port {
		return fmt.Errorf("--port and --wireguard-port are both %d: gossip and WireGuard each need a port of their own", o.Port)
	}
	for _, a := range []struct{ flag, addr string }{{"--status-addr", o.StatusAddr}, {"--metrics-addr", o.MetricsAddr}} {
		if _, port, _ := net.SplitHostPort(a.addr); port == strconv.Itoa(o.GossipPort) {
			return fmt.Errorf("%s %s: gossip has TCP port %s (--port): choose another one", a.flag, a.addr, port)
		}
	}
	if o.MetricsAddr != "" && o.MetricsAddr == o.StatusAddr {
		return fmt.Errorf("--metrics-addr and --status-addr are both %s: --status-addr serves the metrics too, so leave --metrics-addr empty, or choose another port", o.MetricsAddr)
	}
	if err := peer.CheckNickname(o.Nickname); err != nil {
		return fmt.Errorf("--nickname: %w", err)
	}
	for _, a := range o.Advertise {
		if a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() {
			return fmt.Errorf("--advertise %v: other hosts cannot reach this host at that address: want an address of this host, or of a gateway that forwards to it", a)
		}
	}
	if o.MTU != 0 && (o.MTU < topology.MinMTU || o.MTU > 65535) {
		return fmt.Errorf("--mtu %d: want %d, the least that IPv6 asks of a link, to 65535", o.MTU, topology.MinMTU)
	}
	return nil
}

// PublicStatusPort returns the port at which other machines can read the status; 0 if they cannot.
func (o Options) PublicStatusPort() uint16 {
	host, port, err := net.SplitHostPort(o.StatusAddr)
	if err != nil || host == "localhost" {
		return 0
	}
	if addr, err := netip.ParseAddr(host); err == nil && addr.Unmap().IsLoopback() {
		return 0
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return 0
	}
	return uint16(number)
}

// Asked returns the requested ranges; zero if there are none.
func (r Ranges) Asked() slot.Universe { return slot.Universe{V4: r.V4, V6: r.V6} }

// Complete returns the universe, with defaults for ranges that the operator did not give.
func (r Ranges) Complete(cluster secret.ClusterID) slot.Universe {
	u := r.Asked()
	if !u.V4.IsValid() {
		u.V4 = slot.DefaultV4
	}
	if !u.V6.IsValid() {
		u.V6 = cluster.V6()
	}
	return u
}

// Validate reports why the ranges cannot be the overlay's address ranges (its universe).
func (r Ranges) Validate() error { return r.Complete(secret.ClusterID{}).Validate() }
