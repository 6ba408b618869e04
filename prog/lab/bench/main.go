// Command bench measures times, rates and memory of Weft in labs on this machine, and compares them
// with budgets. It prints Markdown: the tables of site/docs/benchmarks.md.
//
// Every figure is compared with another figure of the same run; the two are measured alternately (A B
// A B …). So other load on the machine affects both. A missed budget is marked in the table; it is not
// an error.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"weft/prog/lab"
)

// limit is the time limit of a whole run.
const limit = 20 * time.Minute

// benchmarks lists all benchmarks. They run one after the other, each in its own labs, and print tables.
var benchmarks = []struct {
	name string
	run  func(context.Context, *bench) error
}{
	{"stream", stream},
	{"relay", relay},
	{"cni", cni},
	{"join", join},
	{"idle", idle},
	{"ipam", ipamBench},
	{"directory", directoryBench},
	{"dns", dnsBench},
	{"policy", policyBench},
	{"flows", flowsBench},
	{"kubernetes", kubernetes},
}

// helpers has the functions of this program that run on a lab's host, by the program's first argument.
var helpers = map[string]func(context.Context, []string) error{
	"cni-runtime":     cniRuntime,
	"plain-wireguard": plainWireGuard,
	"dns-upstream":    dnsUpstream,
	"kube-api":        kubeAPI,
	"kube-peer":       kubePeer,
	"fetch":           fetch,
	"echo":            echo,
	"volley":          volley,
	"connections":     connections,
	"round-trips":     roundTripHelper,
}

// bench is one run of the program.
type bench struct {
	bin  string // directory of weft and weft-cni
	self string // path of this program
	tmp  string // temporary folder on disk, like /var/lib/weft of the lab's hosts
	kube kubeSize
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) (err error) {
	if len(args) > 0 {
		if helper, ok := helpers[args[0]]; ok {
			return helper(ctx, args[1:])
		}
	}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	all := make([]string, len(benchmarks))
	for i, benchmark := range benchmarks {
		all[i] = benchmark.name
	}
	only := flags.String("only", strings.Join(all, ","), "comma-separated `names` of benchmarks")
	bin := flags.String("bin", "bin", "`directory` of the programs weft and weft-cni")
	before := flags.String("before", "", "`directory` of other builds to compare with: each benchmark runs three times with each build, alternately")
	b := &bench{kube: kubeSize{10, 100, 200}}
	flags.Func("kubernetes", "`NODES,PODS,POLICIES` of the benchmark kubernetes, PODS on each node (default 10,100,200)", b.kube.parse)
	if err := flags.Parse(args); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	bins, err := turns(*bin, *before)
	if err != nil {
		return err
	}
	if b.self, err = os.Executable(); err != nil {
		return err
	}
	if b.tmp, err = os.MkdirTemp("/tmp", "weft-bench-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.tmp)) }()
	printMachine(os.Stdout)
	for _, benchmark := range benchmarks {
		if !slices.Contains(strings.Split(*only, ","), benchmark.name) {
			continue
		}
		for _, b.bin = range bins {
			if len(bins) > 1 {
				fmt.Printf("\n### With %s\n", b.bin)
			}
			if err := benchmark.run(ctx, b); err != nil {
				return fmt.Errorf("%s: %w", benchmark.name, err)
			}
		}
	}
	return nil
}

// turns returns the directories of programs in the order in which a benchmark uses them.
func turns(bin, before string) (dirs []string, err error) {
	if bin, err = filepath.Abs(bin); err != nil || before == "" {
		return []string{bin}, err
	}
	if before, err = filepath.Abs(before); err != nil {
		return nil, err
	}
	return []string{before, bin, before, bin, before, bin}, nil
}

// up makes a lab. The returned function removes it and adds errors to *err.
func (b *bench) up(ctx context.Context, o lab.Options) (*lab.Lab, func(err *error), error) {
	o.Name = fmt.Sprintf("bench-%s-%d", o.Name, os.Getpid())
	o.Bin = b.bin
	l, err := lab.Up(ctx, o)
	down := func(err *error) {
		*err = errors.Join(*err, l.Down(context.WithoutCancel(ctx)))
	}
	if err != nil && l != nil {
		down(&err)
	}
	return l, down, err
}
