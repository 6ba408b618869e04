package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/ipam"
	"weft/prog/agent/config"
	"weft/prog/agent/statedir"
	"weft/prog/api"
	"weft/router"
	"weft/router/datapath"
	"weft/router/endpoint"
	"weft/router/routertest"
)

// alone is set in the run of the test binary with its own namespaces.
const alone = "WEFT_AGENT_ALONE"

// The agent runs the userspace WireGuard as a command of its own program, which is this test binary.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "datapath" {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		err := datapath.Run(ctx, datapath.Config{Log: slog.New(slog.NewTextHandler(os.Stderr, nil))})
		if stop(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	routertest.Main(m)
}

// An agent starts and stops repeatedly while containers are attached and detached, policies and names
// change, and users query it. No start fails and, with the race detector, no components share memory
// without locks. STARTS=n starts it n times; 200 take about two minutes.
func TestStartsAndStopsUnderLoad(t *testing.T) {
	if os.Getenv(alone) == "" {
		runAlone(t)
		return
	}
	starts := 5
	if given, err := strconv.Atoi(os.Getenv("STARTS")); err == nil {
		starts = given
	}
	makeUnderlay(t)
	opts := options(t)
	if err := statedir.EstablishSecret(opts.StateDir, statedir.Given{}, true); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := router.Remove(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	ctx, stop := context.WithCancel(t.Context())
	var load sync.WaitGroup
	for n, does := range loads(api.NewClient(opts.Socket())) {
		load.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				if err := does(ctx, i); err != nil && ctx.Err() == nil && !down(err) {
					t.Errorf("load %d: %v, want no error while an agent serves", n, err)
				}
			}
		})
	}
	for i := range starts {
		startOnce(t, opts, i)
	}
	stop()
	load.Wait()
}

// startOnce starts the agent, waits until it is ready, and stops it. The number i decides how: at
// once, after a moment, or through the control API.
func startOnce(t *testing.T, opts config.Options, i int) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	done := make(chan error, 1)
	go func() { done <- Run(ctx, opts) }()
	client := api.NewClient(opts.Socket())
	for client.Ready(ctx) != nil {
		select {
		case err := <-done:
			t.Fatalf("start %d: the agent ended with %v, want it ready first", i, err)
		case <-time.After(5 * time.Millisecond):
		}
	}
	if i%2 == 0 {
		stop()
	} else if _, err := client.Stop(ctx, api.StopRequest{}); err != nil {
		t.Errorf("start %d: stop returned %v, want nil", i, err)
	}
	if err := <-done; err != nil {
		t.Errorf("start %d: the agent returned %v, want nil", i, err)
	}
}

// runAlone runs this test again in its own network and mount namespaces.
func runAlone(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a whole agent needs root: run this test with sudo")
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.timeout=15m")
	cmd.Env = append(os.Environ(), alone+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("the test in its own namespaces ended with %v, want success:\n%s", err, out)
	}
}

// makeUnderlay makes the host's underlay, and a place for WireGuard's sockets that no other test sees.
func makeUnderlay(t *testing.T) {
	t.Helper()
	const wireguard = "/var/run/wireguard"
	lo, loErr := netlink.LinkByName("lo")
	underlay := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "under"}, PeerName: "other"}
	err := errors.Join(
		unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""), os.MkdirAll(wireguard, 0o700), unix.Mount("tmpfs", wireguard, "tmpfs", 0, ""),
		loErr, netlink.LinkSetUp(lo), netlink.LinkAdd(underlay), netlink.LinkSetUp(underlay),
		netlink.AddrAdd(underlay, &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(192, 0, 2, 1), Mask: net.CIDRMask(24, 32)}}),
	)
	if other, e := netlink.LinkByName("other"); e == nil {
		err = errors.Join(err, netlink.LinkSetUp(other))
	}
	if err != nil {
		t.Fatal(err)
	}
}

func options(t *testing.T) config.Options {
	dir := t.TempDir()
	var out io.Writer = io.Discard
	if testing.Verbose() {
		out = os.Stderr
	}
	return config.Options{
		Nickname: "h1", GossipPort: 6783, Port: 6784, StateDir: filepath.Join(dir, "state"), RunDir: filepath.Join(dir, "run"), StatusAddr: statusAddr,
		Rest: time.Millisecond, DNS: config.DNS{Domain: "weft.internal", TTL: time.Second, ResolvConf: "/etc/resolv.conf"},
		Log: slog.New(slog.NewTextHandler(out, nil)),
	}
}

// down reports whether an error means that no agent serves, since it starts or stops.
func down(err error) bool {
	if _, ok := errors.AsType[*api.NotRunningError](err); ok {
		return true
	}
	if _, ok := errors.AsType[*api.SilentError](err); ok {
		return true
	}
	e, ok := errors.AsType[*api.Error](err)
	return ok && (e.Code == api.CodeNotReady || e.Code == api.CodeNoSpace || e.Code == api.CodeNotFound || e.Message == ipam.ErrStopped.Error()) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

const statusAddr = "127.0.0.1:6784"

const denyAll = `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny, namespace: default}
spec: {podSelector: {}, policyTypes: [Ingress]}
`

// loads are the requests of a host's users.
func loads(c *api.Client) []func(ctx context.Context, i int) error {
	ref := func(kind string, i int) api.EndpointRef {
		return api.EndpointRef{ContainerID: fmt.Sprintf("%s%d", kind, i), Interface: "eth0"}
	}
	come := func(kind string) func(ctx context.Context, i int) error {
		return func(ctx context.Context, i int) error {
			r := ref(kind, i)
			_, err := c.StartAttach(ctx, api.AttachRequest{
				ContainerID: r.ContainerID, Interface: r.Interface, HostLink: endpoint.HostLink(r.ContainerID, r.Interface), Source: api.SourceCNI,
				MAC: "02:00:00:00:00:01", Name: r.ContainerID, Labels: map[string]string{"app": kind},
			})()
			return errors.Join(err, c.Detach(ctx, ref(kind, i-1)))
		}
	}
	get := func(path string) func(context.Context, int) error {
		return func(ctx context.Context, _ int) error {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+statusAddr+path, nil)
			if err != nil {
				return err
			}
			if resp, err := http.DefaultClient.Do(req); err == nil { // an error means that the agent just starts or stops
				_, _ = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
			return nil
		}
	}
	return []func(ctx context.Context, i int) error{
		come("web"), come("db"), get("/live"), get("/metrics"),
		func(ctx context.Context, i int) error {
			_, err := c.Report(ctx)
			return err
		},
		func(ctx context.Context, i int) error {
			return c.Expose(ctx, api.ExposeRequest{On: i%2 == 0, Name: "gate"})
		},
		func(ctx context.Context, i int) error {
			_, err := c.Names(ctx)
			return errors.Join(err, c.AddName(ctx, api.NameRequest{Name: "printer", Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.77")}}))
		},
		func(ctx context.Context, i int) error {
			if i%2 == 0 {
				_, err := c.ApplyPolicy(ctx, api.ApplyRequest{Manifest: denyAll})
				return err
			}
			_, err := c.DeletePolicy(ctx, api.DeleteRequest{Manifest: denyAll})
			return err
		},
	}
}
