package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/dns"

	"weft/prog/lab"
)

// What the name server is compared to, from its Go module.
const (
	coreDNS        = "github.com/coredns/coredns"
	coreDNSVersion = "v1.15.0"
)

// The load. dnsperf and the server share the machine's processors; the number of clients is
// that of a busy host's containers.
const (
	dnsRounds   = 3
	dnsTime     = 5 // seconds a run
	dnsClients  = 20
	dnsNames    = 100    // of the network
	dnsCached   = 1000   // of outside, asked over and over
	dnsDistinct = 50_000 // of outside, once each
	dnsRate     = 20_000 // a second, for the latency
	dnsP99      = 5      // ms
)

// dnsBench loads the name server from a container, in turns with CoreDNS's hosts, cache and
// forward on the same host, which have the same names and the same upstream.
func dnsBench(ctx context.Context, b *bench) (err error) {
	if err := lab.Install("dnsperf", "dnsperf"); err != nil {
		return err
	}
	core, err := installCoreDNS(ctx)
	if err != nil {
		return err
	}
	l, down, err := b.up(ctx, lab.Options{Name: "dns", Hosts: 1, Containers: 1})
	if err != nil {
		return err
	}
	defer down(&err)
	s := &dnsSetup{bench: b, lab: l, core: core}
	if err := s.start(ctx); err != nil {
		return err
	}
	before, err := s.resident(ctx)
	if err != nil {
		return err
	}
	names := comparison{what: fmt.Sprintf("%d names of the network", dnsNames), atLeast: 1}
	cached := comparison{what: fmt.Sprintf("%d cached names", dnsCached), atLeast: 1}
	for range dnsRounds {
		for file, row := range map[string]*comparison{"names": &names, "cached": &cached} {
			if err := s.compare(ctx, file, row, "-l", strconv.Itoa(dnsTime)); err != nil {
				return err
			}
		}
	}
	distinct := comparison{what: fmt.Sprintf("%d names of outside, once each", dnsDistinct)}
	if err := s.compare(ctx, "distinct", &distinct, "-n", "1"); err != nil {
		return err
	}
	printComparisons(os.Stdout, "Names: queries a second", fmt.Sprintf("dnsperf, %d clients, UDP", dnsClients), "CoreDNS "+coreDNSVersion, names, cached, distinct)
	return s.latency(ctx, before)
}

// dnsSetup is a host with both servers, and a container that asks.
type dnsSetup struct {
	*bench
	lab  *lab.Lab
	core string // the program
	node string // address of the host
}

const corePort = "1053"

func (s *dnsSetup) start(ctx context.Context) error {
	out, err := s.lab.Exec(ctx, "h1", nil, "weft", "report", "-f", "{{index .Router.Node 0}}")
	if err != nil {
		return err
	}
	s.node = strings.TrimSpace(out)
	var names, cached, distinct, hosts strings.Builder
	var script strings.Builder
	for i := range dnsNames {
		fmt.Fprintf(&names, "n%d.weft.internal A\n", i)
		fmt.Fprintf(&hosts, "198.51.100.%d n%d.weft.internal\n", i+1, i)
		fmt.Fprintf(&script, "weft dns-add 198.51.100.%d -h n%d\n", i+1, i)
	}
	for i := range dnsCached {
		fmt.Fprintf(&cached, "w%d.example A\n", i)
	}
	for i := range dnsDistinct {
		fmt.Fprintf(&distinct, "d%d.example A\n", i)
	}
	corefile := fmt.Sprintf(".:%s {\n bind %s\n hosts %s weft.internal {\n ttl 1\n no_reverse\n }\n cache\n forward . 127.0.0.1\n}\n", corePort, s.node, s.path("hosts"))
	for name, text := range map[string]string{
		"names": names.String(), "cached": cached.String(), "distinct": distinct.String(), "hosts": hosts.String(), "Corefile": corefile,
	} {
		if err := os.WriteFile(s.path(name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	script.WriteString("echo nameserver 127.0.0.1 >/etc/resolv.conf\n")
	if _, err := s.lab.Exec(ctx, "h1", nil, "sh", "-ec", script.String()); err != nil {
		return err
	}
	if _, err := s.lab.Background(ctx, "h1", "serving", s.self, "dns-upstream"); err != nil {
		return err
	}
	if _, err := s.lab.Background(ctx, "h1", "", s.core, "-conf", s.path("Corefile")); err != nil {
		return err
	}
	return sleep(ctx, 3*time.Second) // resolv.conf is read again, CoreDNS starts
}

func (s *dnsSetup) path(name string) string { return filepath.Join(s.tmp, name) }

// compare loads both servers, one after the other.
func (s *dnsSetup) compare(ctx context.Context, file string, row *comparison, args ...string) error {
	for port, rates := range map[string]*samples{"53": &row.ours, corePort: &row.theirs} {
		out, err := s.perf(ctx, port, file, args...)
		if err != nil {
			return err
		}
		rate, err := value(out, "Queries per second:")
		if err != nil {
			return err
		}
		lost, err := value(out, "Queries lost:")
		if err != nil {
			return err
		}
		completed, err := value(out, "Response codes:       NOERROR")
		if err != nil || lost > 0 || completed == 0 {
			return fmt.Errorf("port %s: %v questions were lost, or answered with an error: %w\n%s", port, lost, err, out)
		}
		rates.add(rate)
	}
	return nil
}

func (s *dnsSetup) perf(ctx context.Context, port, file string, args ...string) (string, error) {
	return s.lab.Exec(ctx, "h1/c1", nil, append([]string{
		"dnsperf", "-s", s.node, "-p", port, "-d", s.path(file), "-c", strconv.Itoa(dnsClients), "-W",
	}, args...)...)
}

// value is the number behind a word in dnsperf's report.
func value(report, word string) (float64, error) {
	for line := range strings.Lines(report) {
		if rest, ok := strings.CutPrefix(strings.TrimSpace(line), word); ok {
			return strconv.ParseFloat(strings.Fields(rest)[0], 64)
		}
	}
	return 0, fmt.Errorf("dnsperf does not say %q:\n%s", word, report)
}

// latency asks at a fixed rate, by way of the gateway as containers do, and shows what the
// agent has grown by.
func (s *dnsSetup) latency(ctx context.Context, before float64) error {
	rows := []figure{
		{what: fmt.Sprintf("p99 at %d queries a second, names of the network, ms", dnsRate), atMost: dnsP99},
		{what: fmt.Sprintf("p99 at %d queries a second, cached names, ms", dnsRate), atMost: dnsP99},
		{what: "rate that was reached, queries a second"},
		{what: "agent, resident, grown by, MiB"},
	}
	for i, file := range []string{"names", "cached"} {
		for range dnsRounds {
			out, err := s.lab.Exec(ctx, "h1/c1", nil, "dnsperf", "-s", "169.254.1.1", "-d", s.path(file), "-c", strconv.Itoa(dnsClients),
				"-l", strconv.Itoa(dnsTime), "-Q", strconv.Itoa(dnsRate), "-v", "-W")
			if err != nil {
				return err
			}
			p99, err := percentile(out, 0.99)
			if err != nil {
				return err
			}
			rate, err := value(out, "Queries per second:")
			if err != nil {
				return err
			}
			rows[i].ours.add(1000 * p99)
			rows[2].ours.add(rate)
		}
	}
	after, err := s.resident(ctx)
	if err != nil {
		return err
	}
	rows[3].ours.add(after - before)
	printFigures(os.Stdout, "Names: latency", "one host", rows...)
	return nil
}

// percentile is that of the latencies that dnsperf -v prints, in seconds: lines such as
// "> NOERROR n1.weft.internal A 0.000181".
func percentile(out string, share float64) (float64, error) {
	var all samples
	for scan := bufio.NewScanner(strings.NewReader(out)); scan.Scan(); {
		if f := strings.Fields(scan.Text()); len(f) == 5 && f[0] == ">" {
			seconds, err := strconv.ParseFloat(f[4], 64)
			if err != nil {
				return 0, err
			}
			all.add(seconds)
		}
	}
	if len(all) == 0 {
		return 0, errors.New("dnsperf -v printed no latencies")
	}
	slices.Sort(all)
	return all[int(share*float64(len(all)-1))], nil
}

// resident is what the agent takes, in MiB.
func (s *dnsSetup) resident(ctx context.Context) (float64, error) {
	status, err := s.lab.Status(ctx)
	if err != nil {
		return 0, err
	}
	return residentMiB(ctx, s.lab, "h1", status.Hosts[0].Agent[0])
}

// dnsUpstream answers every question for an address.
func dnsUpstream(context.Context, []string) error {
	started := func() { fmt.Fprintln(os.Stderr, "serving") }
	server := &dns.Server{Addr: "127.0.0.1:53", Net: "udp", NotifyStartedFunc: started, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		r := new(dns.Msg)
		r.SetReply(q)
		r.Answer = []dns.RR{&dns.A{
			Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 3600}, A: net.IPv4(192, 0, 2, 1),
		}}
		_ = w.WriteMsg(r) // the asker may be gone
	})}
	return server.ListenAndServe()
}

// installCoreDNS builds CoreDNS once; later runs find it.
func installCoreDNS(ctx context.Context) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "weft", "coredns-"+coreDNSVersion)
	program := filepath.Join(dir, "coredns")
	if _, err := os.Stat(program); err == nil {
		return program, nil
	}
	fmt.Fprintln(os.Stderr, "bench: building CoreDNS "+coreDNSVersion+" (once, some minutes)")
	cmd := exec.CommandContext(ctx, "go", "install", coreDNS+"@"+coreDNSVersion)
	cmd.Env = append(os.Environ(), "GOBIN="+dir, "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build CoreDNS: %w\n%s", err, out)
	}
	return program, nil
}
