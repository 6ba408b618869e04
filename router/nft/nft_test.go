package nft

import (
	"context"
	"errors"
	"flag"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"weft/ipam/slot"
	"weft/router/routertest"
)

var update = flag.Bool("update", false, "write the golden files")

func TestMain(m *testing.M) { routertest.Main(m) }

var universe = slot.Universe{V4: slot.DefaultV4, V6: netip.MustParsePrefix("fd01:2:3:4::/96")}

func config(mod func(*Config)) Config {
	c := Config{Guard: Guard{
		Universe: universe, Node4: universe.Addr4(1), Node6: universe.Addr6(1), Port: 6784,
		Own: []slot.Range{{Start: 0x20000, End: 0x30000}, {Start: 0, End: 0x10000}, {Start: 0x10000, End: 0x10001}},
	}}
	if mod != nil {
		mod(&c)
	}
	return c
}

var golden = map[string]Config{
	"guard":    config(nil),
	"resolver": config(func(c *Config) { c.Guard.Resolver = true }),
	"exposed":  config(func(c *Config) { c.Guard.Exposed = true }),
	"starting": config(func(c *Config) {
		c.Guard.Node4, c.Guard.Node6, c.Guard.Own = netip.Addr{}, netip.Addr{}, nil
	}),
	"hosts": config(func(c *Config) { c.Guard.Hosts = hosts }),
	"ipv4":  config(func(c *Config) { c.Guard.Node6 = netip.Addr{} }),
	"relay": config(func(c *Config) { c.Relays.Pairs = []Pair{relayed4, relayed6, row} }),
	"detours": config(func(c *Config) {
		c.Relays.Detours = []Detour{
			{Peer: ending("192.0.2.2:6784"), Relay: ending("192.0.2.3:6784"), Own: ending("192.0.2.1:40001"), Used: true},
			{Relay: ending("192.0.2.4:6784"), Own: ending("192.0.2.1:20001")},
			{Peer: ending("[2001:db8::2]:7001"), Relay: ending("[2001:db8::3]:7002"), Own: ending("[2001:db8::1]:40002")},
		}
	}),
	"late": config(func(c *Config) {
		c.Relays.Late = []Late{
			{From: ending("192.0.2.2:6784"), Peer: ending("198.51.100.2:7001"), Own: netip.MustParseAddr("198.51.100.1")},
			{From: ending("[2001:db8::2]:7001"), Peer: ending("[2001:db8:1::2]:7001"), Own: netip.MustParseAddr("2001:db8:1::1")},
		}
	}),
	"policy": config(func(c *Config) {
		c.Policy.Program, c.Policy.Exempt = shop(false), Exempt{OwnHost: true, ICMPErrors: true}
	}),
	"policies": config(func(c *Config) {
		c.Policy.Program, c.Guard.Resolver, c.Policy.Exempt = shop(true), true, Exempt{Resolver: true}
	}),
}

var (
	ending   = netip.MustParseAddrPort
	relayed4 = Pair{{Host: ending("192.0.2.1:40001"), Own: ending("192.0.2.3:6784")}, {Host: ending("198.51.100.2:40002"), Own: ending("198.51.100.3:6784")}}
	row      = Pair{{Host: ending("192.0.2.1:40003"), Own: ending("192.0.2.3:6784")}, {Host: ending("192.0.2.4:6784"), Own: ending("192.0.2.3:20001")}}
	relayed6 = Pair{{Host: ending("[2001:db8::1]:40001"), Own: ending("[2001:db8::3]:6784")}, {Host: ending("[2001:db8::2]:40002"), Own: ending("[2001:db8::3]:6784")}}
)

func build(c Config) Program {
	var b Builder
	return b.Build(c)
}

func TestBuildMatchesGoldenFiles(t *testing.T) {
	for name, c := range golden {
		t.Run(name, func(t *testing.T) {
			got := build(c).String()
			path := filepath.Join("testdata", name+".nft")
			if *update {
				if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatalf("reading the golden file: %v: run the test with -update to create it", err)
			}
			if d := cmp.Diff(string(want), got); d != "" {
				t.Errorf("the program differs from the golden file %s (-want +got; run with -update to accept it):\n%s", path, d)
			}
		})
	}
}

// counts returns the number of rules and elements of our table in the kernel.
func counts(t *testing.T) (rules, elements int) {
	t.Helper()
	conn, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	chains, err := conn.ListChains()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range chains {
		if c.Table.Name == TableName {
			r, err := conn.GetRules(c.Table, c)
			if err != nil {
				t.Fatal(err)
			}
			rules += len(r)
		}
	}
	sets, err := conn.GetSets(table)
	if err != nil && !strings.Contains(err.Error(), unix.ENOENT.Error()) { // the library does not wrap the error
		t.Fatal(err)
	}
	for _, s := range sets {
		e, err := conn.GetSetElements(s)
		if err != nil {
			t.Fatal(err)
		}
		elements += len(e)
	}
	return rules, elements
}

func size(p Program) (n int) {
	for _, c := range p.Chains {
		n += len(c.Rules)
	}
	return n
}

func expect(t *testing.T, p Program, what string) {
	t.Helper()
	if rules, _ := counts(t); rules != size(p) {
		t.Errorf("%s: the kernel has %d rules; want %d", what, rules, size(p))
	}
}

// The kernel accepts every program, and replaces one program by another.
func TestKernelLoadsAndReplacesPrograms(t *testing.T) {
	routertest.New(t).Do(func() {
		var k Kernel
		defer k.Close()
		for name, c := range golden {
			for range 2 {
				if err := k.Apply(build(c)); err != nil {
					t.Fatalf("applying the program %s: %v", name, err)
				}
			}
			expect(t, build(c), name)
			compareWithNft(t, name, build(c))
		}
	})
}

// The printed program is nft's own syntax: nft can load it.
func TestNftAcceptsPrintedPrograms(t *testing.T) {
	nft, err := exec.LookPath("nft")
	if err != nil {
		t.Skip("nft is not installed: run apt-get install nftables")
	}
	routertest.New(t).Do(func() {
		for name, c := range golden {
			check := exec.Command(nft, "-c", "-f", "-")
			check.Stdin = strings.NewReader(build(c).String())
			if out, err := check.CombinedOutput(); err != nil {
				t.Errorf("nft does not accept the text of program %s: error %v, want none\n%s", name, err, out)
			}
		}
	})
}

// After a change from any program to any other, the kernel has the table of the new program.
func TestKernelChangesProgramsIncrementally(t *testing.T) {
	routertest.New(t).Do(func() {
		var k Kernel
		defer k.Close()
		names := slices.Sorted(maps.Keys(golden))
		for _, from := range names {
			for _, to := range names {
				if err := k.Apply(build(golden[from])); err != nil {
					t.Fatalf("applying the program %s: %v", from, err)
				}
				if err := k.load(build(golden[to])); err != nil { // Apply would start with an empty table on errors
					t.Errorf("changing the program %s into %s: %v", from, to, err)
				}
				compareWithNft(t, from+" to "+to, build(golden[to]))
			}
		}
	})
}

// compareWithNft compares the program with nft's listing of the table, if nft is installed. Old
// versions of nft abort on unknown expressions.
func compareWithNft(t *testing.T, name string, p Program) {
	t.Helper()
	nft, err := exec.LookPath("nft")
	if err != nil {
		t.Log("nft's listing is not compared: run apt-get install nftables")
		return
	}
	out, err := exec.Command(nft, "-s", "-y", "list", "table", "inet", TableName).CombinedOutput()
	if err != nil {
		t.Errorf("nft cannot list %s: %v\n%s", name, err, out)
	}
	if d := cmp.Diff(normal(p.String()), normal(string(out))); d != "" {
		t.Errorf("the text of program %s differs from nft's text, want the same (-Weft +nft):\n%s", name, d)
	}
}

var owner = regexp.MustCompile(`# progname \S+ (flags owner )?`)

var counted = regexp.MustCompile(`( counter)?( packets \d+ bytes \d+)?,`)

// normal returns a ruleset without differences in nft's notation: order of sets, chains and
// elements, white space, and units of zero.
func normal(ruleset string) (blocks []string) {
	for block := range strings.SplitSeq(ruleset, "\n\t}\n") {
		head, elements, found := strings.Cut(strings.Join(strings.Fields(block), " "), "elements = {")
		if found {
			words := strings.Split(counted.ReplaceAllString(strings.Trim(elements, "} ")+",", ","), ",")
			for i := range words {
				words[i] = strings.TrimSpace(words[i])
			}
			slices.Sort(words)
			head += "elements = {" + strings.Join(words, " ") + "}"
		}
		head = owner.ReplaceAllString(strings.TrimPrefix(head, "table inet weft { "), "")
		head = strings.ReplaceAll(head, "oif missing", "oif 0")
		blocks = append(blocks, head)
	}
	slices.Sort(blocks)
	return blocks
}

func TestTableBelongsToOneAgentUntilThatAgentEnds(t *testing.T) {
	routertest.New(t).Do(func() {
		var first, second, other Kernel
		p := build(golden["guard"])
		if err := first.Apply(p); err != nil {
			t.Fatal(err)
		}
		owned := flush(t) != nil
		t.Logf("the kernel protects the table from other programs: %v", owned)
		if owned {
			expect(t, p, "flushed by another")
			if err := second.Apply(p); !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "weft stop") {
				t.Errorf("Apply by a second owner: got %v, want EPERM with the command that helps", err)
			}
		}
		first.Close() // the agent ends, and the table stays
		expect(t, p, "orphaned")
		if err := flush(t); err != nil {
			t.Fatalf("flushing a table without owner: %v", err)
		}
		if err := other.Apply(p); err != nil { // the Kernel of the next agent adopts the table
			t.Fatal(err)
		}
		expect(t, p, "adopted")
		if err := other.Delete(); err != nil {
			t.Fatal(err)
		}
		if rules, elements := counts(t); rules != 0 || elements != 0 {
			t.Errorf("after Delete %d rules and %d elements are left; want none", rules, elements)
		}
		if err := other.Delete(); err != nil {
			t.Errorf("the second Delete returned %v; want no error", err)
		}
	})
}

// Without table owners, another program's changes are reported and repaired.
func TestApplyRepairsATableWithoutOwner(t *testing.T) {
	ownerless = "yes"
	defer func() { ownerless = "" }()
	ns := routertest.New(t)
	removed, ended := make(chan struct{}, 100), make(chan error, 1)
	ctx, stop := context.WithCancel(t.Context())
	go ns.Do(func() { ended <- Removed(ctx, func() { removed <- struct{}{} }) })
	ns.Do(func() {
		var k Kernel
		defer k.Close()
		p := build(golden["policies"])
		if err := k.Apply(p); err != nil {
			t.Fatal(err)
		}
		for what, remove := range map[string]func(*nftables.Conn){
			"rules":       func(c *nftables.Conn) { c.FlushTable(table) },
			"table":       func(c *nftables.Conn) { c.DelTable(table) },
			"one chain":   func(c *nftables.Conn) { c.FlushChain(&nftables.Chain{Name: "policies", Table: table}) },
			"one set":     func(c *nftables.Conn) { c.FlushSet(&nftables.Set{Name: "ingress4", Table: table}) },
			"other table": func(c *nftables.Conn) { c.AddTable(&nftables.Table{Name: "other", Family: nftables.TableFamilyINet}) },
		} {
			for heard := false; !heard; { // repeat until Removed has subscribed
				conn, err := nftables.New()
				if err != nil {
					t.Fatal(err)
				}
				remove(conn)
				if err := conn.Flush(); err != nil {
					t.Fatal(err)
				}
				select {
				case <-removed:
					heard = true
				case <-time.After(100 * time.Millisecond):
					heard = what == "other table"
				}
				if err := k.Apply(p); err != nil {
					t.Fatalf("Apply after a change of %s: %v", what, err)
				}
				expect(t, p, what)
				compareWithNft(t, what, p)
			}
		}
	})
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// flush removes the rules of our table as another program would.
func flush(t *testing.T) error {
	t.Helper()
	conn, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	conn.FlushTable(table)
	return conn.Flush()
}

// A long list of slots is loaded completely, although the library truncates long messages.
func TestKernelLoadsManyRanges(t *testing.T) {
	routertest.New(t).Do(func() {
		c := config(func(c *Config) {
			c.Guard.Own = nil
			for i := range slot.Slot(3000) {
				c.Guard.Own = append(c.Guard.Own, slot.Range{Start: i * 4, End: uint64(i)*4 + 2})
			}
		})
		var k Kernel
		defer k.Close()
		if err := k.Apply(build(c)); err != nil {
			t.Fatal(err)
		}
		if _, elements := counts(t); elements < 2*2*3000 {
			t.Errorf("the kernel has %d elements, want two for each of 3000 ranges in two sets", elements)
		}
	})
}

// BenchmarkApplyUnchanged measures the check that the agent makes every two seconds, for an
// unchanged guard.
func BenchmarkApplyUnchanged(b *testing.B) {
	routertest.New(b).Do(func() {
		var k Kernel
		defer k.Close()
		p := build(golden["guard"])
		for b.Loop() {
			if err := k.Apply(p); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// Every chain of the guard that drops packets is counted.
func TestGuardChainsAreCounted(t *testing.T) {
	for _, c := range Build(config(nil).Guard).Chains {
		drops := slices.ContainsFunc(c.Rules, func(r Rule) bool { return strings.HasSuffix(r.String(), "counter drop") })
		if drops != slices.Contains(guardChains, c.Name) {
			t.Errorf("the chain %s drops packets: %v, and is counted: %v; want both or neither", c.Name, drops, !drops)
		}
	}
}
