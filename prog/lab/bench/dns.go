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

// These constants name the server with which Weft is compared, and its Go module.
const (
	coreDNS        = "github.com/coredns/coredns"
	coreDNSVersion = "v1.15.0"
)

// These constants define the load. dnsperf and the server share the machine's processors. There are as
// many clients as containers on a busy host.
const (
	dnsRounds   = 3
	dnsTime     = 5 // duration of a dnsperf run in seconds
	dnsClients  = 20
	dnsNames    = 100    // number of names of the network
	dnsCached   = 1000   // number of other names that are queried repeatedly
	dnsDistinct = 50_000 // number of other names that are queried once
	dnsRate     = 20_000 // queries per second while latency is measured
	dnsP99      = 5      // budget of the 99th percentile in ms
)

// dnsBench sends queries from a container to Weft's name server and, in turns, to CoreDNS on the
// same host. CoreDNS uses hosts, cache and forward, with the same names and the same upstream.
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
	for _, port := range []string{"53", corePort} {
		if err := s.warm(ctx, port); err != nil {
			return err
		}
	}
	loads := []struct {
		file, what string
		budget     float64
		args       []string
	}{
		{"names", fmt.Sprintf("%d names of the network", dnsNames), 1, []string{"-l", strconv.Itoa(dnsTime)}},
		{"cached", fmt.Sprintf("%d cached names", dnsCached), 1, []string{"-l", strconv.Itoa(dnsTime)}},
		{"", fmt.Sprintf("%d outside names, once each", dnsDistinct), 1, []string{"-n", "1"}},
	}
	rates, times := make([]comparison, len(loads)), make([]comparison, len(loads))
	for i, load := range loads {
		rates[i] = comparison{what: load.what, atLeast: load.budget}
		times[i] = comparison{what: load.what, atMost: load.budget}
		for round := range dnsRounds {
			file := load.file
			if file == "" {
				file = distinctNames(round)
			}
			if err := s.compare(ctx, file, &rates[i], &times[i], load.args...); err != nil {
				return err
			}
		}
	}
	what, theirs := fmt.Sprintf("dnsperf, %d clients, UDP", dnsClients), "CoreDNS "+coreDNSVersion
	printComparisons(os.Stdout, "Names: queries a second", what, theirs, rates...)
	printComparisons(os.Stdout, "Names: processor time of the server for a query, µs", what, theirs, times...)
	return s.latency(ctx, before)
}

// dnsSetup is a host with both servers, and a container that queries them.
type dnsSetup struct {
	*bench
	lab  *lab.Lab
	core string // path of CoreDNS
	node string // node address of the host
}

const corePort = "1053"

func (s *dnsSetup) start(ctx context.Context) error {
	out, err := s.lab.Exec(ctx, "h1", nil, "weft", "report", "-f", "{{index .router.node 0}}")
	if err != nil {
		return err
	}
	s.node = strings.TrimSpace(out)
	var names, cached, hosts strings.Builder
	var script strings.Builder
	for i := range dnsNames {
		fmt.Fprintf(&names, "n%d.weft.internal A\n", i)
		fmt.Fprintf(&hosts, "198.51.100.%d n%d.weft.internal\n", i+1, i)
		fmt.Fprintf(&script, "weft dns-add 198.51.100.%d -h n%d\n", i+1, i)
	}
	for i := range dnsCached {
		fmt.Fprintf(&cached, "w%d.example A\n", i)
	}
	corefile := fmt.Sprintf(".:%s {\n bind %s\n hosts %s weft.internal {\n ttl 1\n no_reverse\n }\n cache\n forward . 127.0.0.1\n}\n", corePort, s.node, s.path("hosts"))
	files := map[string]string{"names": names.String(), "cached": cached.String(), "hosts": hosts.String(), "Corefile": corefile}
	for round := range dnsRounds {
		var distinct strings.Builder
		for i := range dnsDistinct {
			fmt.Fprintf(&distinct, "d%d-%d.example A\n", round, i)
		}
		files[distinctNames(round)] = distinct.String()
	}
	for name, text := range files {
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
	return nil
}

// warm fills a server's cache. It waits until CoreDNS has started and Weft has read the new
// resolv.conf.
func (s *dnsSetup) warm(ctx context.Context, port string) error {
	for deadline := time.Now().Add(10 * time.Second); ; {
		_, _, err := s.load(ctx, port, "cached", "-n", "1", "-q", "20", "-t", "1")
		if err == nil || time.Now().After(deadline) {
			return err
		}
		if err := sleep(ctx, time.Second); err != nil {
			return err
		}
	}
}

// distinctNames returns the file of names that were not queried before a round.
func distinctNames(round int) string { return fmt.Sprintf("distinct%d", round) }

func (s *dnsSetup) path(name string) string { return filepath.Join(s.tmp, name) }

// compare sends load to both servers, one after the other.
func (s *dnsSetup) compare(ctx context.Context, file string, rate, cpu *comparison, args ...string) error {
	agent, core, err := s.pids(ctx)
	if err != nil {
		return err
	}
	for _, server := range []struct {
		port         string
		pid          int
		rates, times *samples
	}{{"53", agent, &rate.ours, &cpu.ours}, {corePort, core, &rate.theirs, &cpu.theirs}} {
		before, err := processorTime(ctx, s.lab, "h1", server.pid)
		if err != nil {
			return err
		}
		rate, queries, err := s.load(ctx, server.port, file, args...)
		if err != nil {
			return err
		}
		after, err := processorTime(ctx, s.lab, "h1", server.pid)
		if err != nil {
			return err
		}
		server.rates.add(rate)
		server.times.add(1e6 * (after - before) / queries)
	}
	return nil
}

// pids returns the process ids of the two servers.
func (s *dnsSetup) pids(ctx context.Context) (agent, core int, err error) {
	status, err := s.lab.Status(ctx)
	if err != nil {
		return 0, 0, err
	}
	out, err := s.lab.Exec(ctx, "h1", nil, "pidof", "coredns")
	if err != nil {
		return 0, 0, fmt.Errorf("CoreDNS does not run: %w", err)
	}
	core, err = strconv.Atoi(strings.TrimSpace(out))
	return status.Hosts[0].Agent[0], core, err
}

// load queries one server. It fails if any query was not answered.
func (s *dnsSetup) load(ctx context.Context, port, file string, args ...string) (rate, queries float64, err error) {
	out, err := s.lab.Exec(ctx, "h1/c1", nil, append([]string{
		"dnsperf", "-s", s.node, "-p", port, "-d", s.path(file), "-c", strconv.Itoa(dnsClients), "-W",
	}, args...)...)
	if err != nil {
		return 0, 0, err
	}
	var values [4]float64
	for i, word := range []string{"Queries per second:", "Queries completed:", "Queries lost:", "Response codes:       NOERROR"} {
		if values[i], err = value(out, word); err != nil {
			return 0, 0, err
		}
	}
	if values[2] > 0 || values[3] != values[1] {
		return 0, 0, fmt.Errorf("port %s: queries were lost, or answered with an error:\n%s", port, out)
	}
	return values[0], values[1], nil
}

// value returns the number after a word in dnsperf's report.
func value(report, word string) (float64, error) {
	for line := range strings.Lines(report) {
		if rest, ok := strings.CutPrefix(strings.TrimSpace(line), word); ok {
			return strconv.ParseFloat(strings.Fields(rest)[0], 64)
		}
	}
	return 0, fmt.Errorf("dnsperf's report has no %q:\n%s", word, report)
}

// latency queries at a fixed rate, through the gateway address like containers, and prints how much
// the agent's memory has grown.
func (s *dnsSetup) latency(ctx context.Context, before float64) error {
	rows := []figure{
		{what: fmt.Sprintf("p99 at %d queries a second, names of the network, ms", dnsRate), atMost: dnsP99},
		{what: fmt.Sprintf("p99 at %d queries a second, cached names, ms", dnsRate), atMost: dnsP99},
		{what: "rate reached, queries a second"},
		{what: "growth of the agent's resident memory, MiB"},
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

// percentile returns a percentile of the latencies that dnsperf -v prints, in seconds, in lines such
// as "> NOERROR n1.weft.internal A 0.000181".
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

// resident returns the agent's resident memory in MiB.
func (s *dnsSetup) resident(ctx context.Context) (float64, error) {
	status, err := s.lab.Status(ctx)
	if err != nil {
		return 0, err
	}
	return residentMiB(ctx, s.lab, "h1", status.Hosts[0].Agent[0], resident)
}

// dnsUpstream answers every query for an address.
func dnsUpstream(context.Context, []string) error {
	started := func() { fmt.Fprintln(os.Stderr, "serving") }
	server := &dns.Server{Addr: "127.0.0.1:53", Net: "udp", NotifyStartedFunc: started, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		r := new(dns.Msg)
		r.SetReply(q)
		r.Answer = []dns.RR{&dns.A{
			Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 3600}, A: net.IPv4(192, 0, 2, 1),
		}}
		_ = w.WriteMsg(r) // the error is ignored: the client may be gone
	})}
	return server.ListenAndServe()
}

// installCoreDNS builds CoreDNS once; later runs reuse it.
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
	fmt.Fprintln(os.Stderr, "bench: building CoreDNS "+coreDNSVersion+" (takes some minutes, only in the first run)")
	cmd := exec.CommandContext(ctx, "go", "install", coreDNS+"@"+coreDNSVersion)
	cmd.Env = append(os.Environ(), "GOBIN="+dir, "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build CoreDNS: %w\n%s", err, out)
	}
	return program, nil
}
