package probe

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"weft/prog/words"
)

// ErrLoss is returned after the results were printed, if any message was lost, late, repeated,
// reordered or changed.
var ErrLoss = errors.New("probe: not every message came back once, unchanged and in order")

// maxSize is chosen so that a message fits one receive buffer and one UDP datagram.
const maxSize = 60_000

// Lookup returns the addresses of a name, or none.
type Lookup func(ctx context.Context, name string) []netip.Addr

// Command returns weft probe. It asks mesh, if given, for names before the system's resolver. Its
// commands end with their context, which the caller cancels on SIGINT and SIGTERM; listen and capture
// then succeed.
func Command(mesh Lookup) *cobra.Command {
	root := &cobra.Command{
		Use: "probe", Short: "send, answer and capture test traffic", Args: cobra.NoArgs,
		Long: "Send, answer and capture test traffic.\n\n" +
			"icmp, tcp and udp send numbered messages and exit with 1 if any message is lost, late, repeated, reordered or\n" +
			"changed. tcp and udp need weft probe listen at the other end.",
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.AddCommand(
		sendCommand("icmp", "Send echo requests to addresses or names", ICMP, mesh),
		sendCommand("udp", "Send datagrams to weft probe listen", UDP, mesh),
		sendCommand("tcp", "Send messages, or a stream with --bulk, on one connection to weft probe listen", TCP, mesh),
		listenCommand(), captureCommand())
	return root
}

type prober func(context.Context, netip.Addr, Config) (Result, error)

func sendCommand(proto, short string, probe prober, mesh Lookup) *cobra.Command {
	var cfg Config
	var asJSON, bulk, untilEOF, anyOrder bool
	var duration time.Duration
	cmd := &cobra.Command{
		Use: proto + " HOST…", Short: short, Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			addrs, err := parse(cmd.Context(), args, cfg, mesh)
			if err == nil && bulk && asJSON && len(addrs) > 1 {
				err = errors.New("probe: --bulk with --json measures one address")
			}
			if err != nil {
				return words.Misused(err)
			}
			if untilEOF {
				cfg.Until = atEOF(cmd.InOrStdin())
			}
			if bulk {
				return runBulk(cmd.Context(), cmd.OutOrStdout(), addrs, cfg, duration, asJSON)
			}
			return run(cmd.Context(), cmd.OutOrStdout(), probe, addrs, cfg, asJSON, anyOrder)
		},
	}
	f := cmd.Flags()
	f.IntVarP(&cfg.Count, "count", "c", 5, "messages to each address")
	f.DurationVarP(&cfg.Interval, "interval", "i", 200*time.Millisecond, "time between two messages")
	f.DurationVar(&cfg.Timeout, "timeout", time.Second, "time after which an answer is too late")
	f.IntVar(&cfg.Size, "size", 56, "bytes of payload in a message")
	f.StringVar(&cfg.Marker, "marker", "", "text to fill the payload with")
	f.BoolVar(&untilEOF, "until-eof", false, "end when standard input ends")
	f.BoolVar(&anyOrder, "any-order", false, "messages may come back in another order: they do when a path becomes shorter")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	if proto != "icmp" {
		f.Uint16VarP(&cfg.Port, "port", "p", DefaultPort, "port of weft probe listen")
	}
	if proto == "tcp" {
		f.BoolVar(&bulk, "bulk", false, "measure throughput instead of loss and latency")
		f.DurationVar(&duration, "duration", 5*time.Second, "how long to send with --bulk")
	}
	return cmd
}

// atEOF returns a channel that is closed when r ends.
func atEOF(r io.Reader) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(io.Discard, r)
	}()
	return done
}

// DefaultPort is the default port of weft probe listen.
const DefaultPort = 7007

func parse(ctx context.Context, args []string, cfg Config, mesh Lookup) ([]netip.Addr, error) {
	switch {
	case cfg.Count < 1:
		return nil, fmt.Errorf("probe: --count %d: want at least 1", cfg.Count)
	case cfg.Interval <= 0 || cfg.Timeout <= 0:
		return nil, errors.New("probe: --interval and --timeout must be longer than 0")
	case cfg.Size < headerSize || cfg.Size > maxSize:
		return nil, fmt.Errorf("probe: --size %d: want %d to %d", cfg.Size, headerSize, maxSize)
	}
	addrs := make([]netip.Addr, len(args))
	for i, arg := range args {
		addr, err := find(ctx, arg, mesh)
		if err != nil {
			return nil, fmt.Errorf("probe: %w", err)
		}
		addrs[i] = addr
	}
	return addrs, nil
}

// find returns the address for an argument; of a name, the first address.
func find(ctx context.Context, arg string, mesh Lookup) (netip.Addr, error) {
	if addr, err := netip.ParseAddr(arg); err == nil {
		return addr.Unmap(), nil
	}
	if _, err := words.Addr(arg); strings.Contains(arg, ":") || strings.Trim(arg, "0123456789.") == "" {
		return netip.Addr{}, err // the argument looks like an address, and no host name does
	}
	if mesh != nil {
		if known := mesh(ctx, arg); len(known) > 0 {
			return known[0], nil
		}
	}
	known, err := net.DefaultResolver.LookupNetIP(ctx, "ip", arg)
	if err != nil || len(known) == 0 {
		return netip.Addr{}, fmt.Errorf("no address is known of %s, neither in the network nor at this host's resolver (`weft status dns` lists the network's names)", arg)
	}
	return known[0].Unmap(), nil
}

// run probes all addresses at the same time.
func run(ctx context.Context, w io.Writer, probe prober, addrs []netip.Addr, cfg Config, asJSON, anyOrder bool) error {
	results := make([]Result, len(addrs))
	var group errgroup.Group
	for i, addr := range addrs {
		group.Go(func() (err error) {
			results[i], err = probe(ctx, addr, cfg)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	write := Print
	if asJSON {
		write = func(w io.Writer, r []Result) error { return writeJSON(w, r) }
	}
	if err := write(w, results); err != nil {
		return err
	}
	for _, r := range results {
		if anyOrder {
			r.OutOfOrder = 0
		}
		if !r.OK() {
			return ErrLoss
		}
	}
	return nil
}

func runBulk(ctx context.Context, w io.Writer, addrs []netip.Addr, cfg Config, d time.Duration, asJSON bool) error {
	for _, addr := range addrs {
		r, err := Bulk(ctx, addr, cfg, d)
		if err != nil {
			return err
		}
		if asJSON {
			err = writeJSON(w, r)
		} else {
			_, err = fmt.Fprintf(w, "%s: %.3f Gbit/s (%s in %.2f s)\n", r.Addr, r.Gbits, words.Count(uint64(r.Bytes), "byte"), r.Seconds)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func writeJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// bounded ends ctx after d, unless d is 0.
func bounded(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	if d == 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, d)
}

func listenCommand() *cobra.Command {
	var tcp, udp uint16
	var duration time.Duration
	cmd := &cobra.Command{
		Use: "listen", Short: "answer weft probe tcp and weft probe udp", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := bounded(cmd.Context(), duration)
			defer stop()
			return Listen(ctx, tcp, udp, func() {
				fmt.Fprintf(cmd.ErrOrStderr(), "%s on tcp %d, udp %d\n", ListenReady, tcp, udp)
			})
		},
	}
	f := cmd.Flags()
	f.Uint16Var(&tcp, "tcp", DefaultPort, "TCP port, 0 for none")
	f.Uint16Var(&udp, "udp", DefaultPort, "UDP port, 0 for none")
	f.DurationVar(&duration, "duration", 10*time.Minute, "how long, 0 until interrupted")
	return cmd
}

func captureCommand() *cobra.Command {
	var cfg CaptureConfig
	var asJSON bool
	var duration time.Duration
	cmd := &cobra.Command{
		Use: "capture IFACE…", Short: "count packets on interfaces, by protocol", Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg.Interfaces = args
			ctx, stop := bounded(cmd.Context(), duration)
			defer stop()
			sum, err := Capture(ctx, cfg, func() { fmt.Fprintln(cmd.ErrOrStderr(), CaptureReady) })
			if err != nil {
				return err
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), sum)
			}
			return sum.Print(cmd.OutOrStdout())
		},
	}
	f := cmd.Flags()
	f.StringVar(&cfg.Marker, "marker", "", "count packets that contain this text")
	f.BoolVar(&cfg.Incoming, "incoming", false, "only count received packets")
	f.DurationVar(&duration, "duration", 10*time.Second, "how long, 0 until interrupted")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}
