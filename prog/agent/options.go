// Package agent composes the daemon: it gives every part its configuration, turns
// what they know into the desired state of the data path, and serves the control
// socket. It is the only package that may import all others.
//
// The agent is not in the data path. It may be stopped, killed or replaced at any
// moment: tunnels, endpoints and the guard stay as they are, and the next agent
// takes them over.
package agent

import (
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"weft/ipam/ring"
	"weft/ipam/slot"
	"weft/mesh/peer"
	"weft/mesh/secret"
	"weft/mesh/topology"
	"weft/prog/api"
	"weft/prog/state"
	"weft/router/nft"
)

// Options are what the operator decides. The zero value of a field stands for its default.
type Options struct {
	Version    string
	Nickname   string         // default: the host's name
	Targets    []string       // hosts to join
	Universe   Ranges         // default: 10.32.0.0/12 and the cluster's ULA
	Exclude    []netip.Prefix // never handed out unless a container asks for it
	Init       Init
	Rest       time.Duration // before a freed address is used again; default ipam.DefaultRest
	Advertise  []netip.Addr  // default: this host's own addresses
	GossipPort int
	Port       int // WireGuard's
	MTU        int // default: the underlay's less WireGuard's overhead
	StateDir   string
	RunDir     string
	CNIConfDir string // empty: no CNI configuration is written
	CNIBinDir  string
	CNIChain   []string // plugins that come behind ours, where they are in CNIBinDir
	SysctlDir  string   // default: /proc/sys/net
	// DatapathElsewhere says that somebody else starts the userspace WireGuard, where the
	// kernel has none: a pod that outlives the agent's.
	DatapathElsewhere bool
	StatusAddr        string // empty: no status over TCP
	DNS               DNSOptions
	Exempt            nft.Exempt // what policies do not apply to
	Kubernetes        KubernetesOptions
	Log               *slog.Logger
	Settings          []api.Setting // as the report shows them
}

// Ranges are the universe as the operator gives it: the second one may be missing.
type Ranges struct {
	V4, V6 netip.Prefix
}

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
	if o.GossipPort == o.Port {
		return fmt.Errorf("--port and --wireguard-port are both %d: gossip and WireGuard each need a port of their own", o.Port)
	}
	if _, port, _ := net.SplitHostPort(o.StatusAddr); port == strconv.Itoa(o.GossipPort) {
		return fmt.Errorf("--status-addr %s: gossip has TCP port %s (--port): choose another one", o.StatusAddr, port)
	}
	if len(o.Nickname) > peer.MaxNickname || !peer.Printable(o.Nickname) {
		return fmt.Errorf("--nickname %.100q: want at most %d bytes, without control characters", o.Nickname, peer.MaxNickname)
	}
	for _, a := range o.Advertise {
		if a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() {
			return fmt.Errorf("--advertise %v: no other host reaches this one there: want an address of this host, or of what forwards to it", a)
		}
	}
	if o.MTU != 0 && (o.MTU < topology.MinMTU || o.MTU > 65535) {
		return fmt.Errorf("--mtu %d: want %d, the least that IPv6 asks of a link, to 65535", o.MTU, topology.MinMTU)
	}
	return nil
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

// socket is the control socket.
func (o Options) socket() string { return filepath.Join(o.RunDir, "weft.sock") }

// SecretFile holds the cluster's token, below StateDir, mode 0600.
const SecretFile = "secret"

// ReleaseDir holds one file per release that weft-cni queued while the agent was down.
const ReleaseDir = "releases"

// EstablishSecret keeps the secret of this host: the one that is given, or the one
// kept from before, or a new one if this host founds. A host that belongs to a
// cluster keeps its secret: another is refused.
func EstablishSecret(stateDir string, given *secret.Token, founds bool) (t secret.Token, err error) {
	path := filepath.Join(stateDir, SecretFile)
	kept, err := readSecret(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return t, err
	case given != nil && given.Secret != kept.Secret:
		return t, fmt.Errorf("this host has the secret of another cluster already (%s): run `weft reset` first if it shall leave that one", path)
	default:
		return kept, nil
	}
	switch {
	case given != nil:
		t = *given
	case founds:
		if t, err = secret.New(rand.Reader); err != nil {
			return t, err
		}
	default:
		return t, errors.New("to join a mesh this host needs its token: on the first host `cat /var/lib/weft/secret`, here `weft launch --token - HOST` with the token on standard input (or set WEFT_PASSWORD on all hosts)")
	}
	return t, writeSecret(path, t)
}

// Secret is the token that this host keeps.
func Secret(stateDir string) (secret.Token, error) {
	return readSecret(filepath.Join(stateDir, SecretFile))
}

func readSecret(path string) (secret.Token, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return secret.Token{}, err
	}
	t, err := secret.Parse(string(data))
	if err != nil {
		return t, fmt.Errorf("%s: %w", path, err)
	}
	return t, nil
}

func writeSecret(path string, t secret.Token) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("secret: %w", err)
	}
	if err := writeFile(path, []byte(t.Reveal()+"\n"), 0o600); err != nil {
		return fmt.Errorf("secret: %w", err)
	}
	return nil
}

// writeFile replaces a file whole or not at all.
func writeFile(path string, data []byte, mode fs.FileMode) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), ".weft-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) // fails once it is renamed
	_, err = tmp.Write(data)
	if err := errors.Join(err, tmp.Chmod(mode), tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}

// Founds reports whether an agent with these targets founds a ring: it has none
// to join, and none from before.
func Founds(stateDir string, targets []string) (bool, error) {
	if len(targets) > 0 {
		return false, nil
	}
	if _, err := os.Lstat(filepath.Join(stateDir, state.File)); errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	s, err := state.Open(stateDir)
	if err != nil {
		return false, err
	}
	defer s.Close()
	kept, _, err := s.Targets()
	if err != nil {
		return false, err
	}
	st, err := s.Load()
	return len(kept) == 0 && len(st.Ring) == 0, err
}

// Identity is this host's peer id; it is made if there is none yet.
func Identity(stateDir string) (string, error) {
	s, err := state.Open(stateDir)
	if err != nil {
		return "", err
	}
	defer s.Close()
	keys, err := s.Keys(rand.Reader)
	if err != nil {
		return "", err
	}
	return peer.IDOf(keys.Identity.Public().(ed25519.PublicKey)).String(), nil
}

// Owns reports whether the state of an agent that does not run owns addresses that other
// peers would lose with it.
func Owns(stateDir string) bool {
	if _, err := os.Lstat(filepath.Join(stateDir, state.File)); err != nil {
		return false
	}
	s, err := state.Open(stateDir)
	if err != nil {
		return false // it is set aside, and says nothing
	}
	defer s.Close()
	keys, err := s.Keys(rand.Reader)
	st, loadErr := s.Load()
	peers, peersErr := s.Peers()
	r, ringErr := ring.Restore(st.Ring)
	if errors.Join(err, loadErr, peersErr, ringErr) != nil {
		return false
	}
	self := peer.IDOf(keys.Identity.Public().(ed25519.PublicKey))
	others := slices.ContainsFunc(peers, func(data []byte) bool {
		p, err := peer.Decode(data)
		return err == nil && p.Record.ID() != self && p.Record.State != peer.Left
	})
	return others && len(r.Owned()[self]) > 0
}

// asked is what the operator asked for; zero if he asked for nothing.
func (r Ranges) asked() slot.Universe { return slot.Universe{V4: r.V4, V6: r.V6} }

// complete fills what the operator left open.
func (r Ranges) complete(cluster secret.ClusterID) slot.Universe {
	u := r.asked()
	if !u.V4.IsValid() {
		u.V4 = slot.DefaultV4
	}
	if !u.V6.IsValid() {
		u.V6 = cluster.V6()
	}
	return u
}

// Validate reports why the ranges cannot serve as a universe.
func (r Ranges) Validate() error { return r.complete(secret.ClusterID{}).Validate() }
