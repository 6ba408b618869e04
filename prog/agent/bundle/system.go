package bundle

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/router/link"
)

// mostRules bounds the list of the rules of all programs.
const mostRules = 8 << 20

// System collects what describes this host without its agent.
func System() map[string]string {
	return map[string]string{
		"system.txt": system(), "links.txt": links(), "routes.txt": routes(), "sysctls.txt": sysctls(), "ruleset.nft": ruleset(),
	}
}

func system() string {
	var out strings.Builder
	var name unix.Utsname
	if err := unix.Uname(&name); err == nil {
		fmt.Fprintf(&out, "kernel %s %s\n", unix.ByteSliceToString(name.Release[:]), unix.ByteSliceToString(name.Machine[:]))
	}
	fmt.Fprintln(&out, "time", time.Now().UTC().Format(time.RFC3339))
	for _, path := range []string{"/etc/os-release", "/proc/loadavg", "/proc/meminfo", "/proc/self/status", "/proc/self/limits", "/proc/net/snmp", "/proc/net/netstat", "/proc/net/softnet_stat"} {
		data, err := os.ReadFile(path)
		if err != nil {
			data = []byte(err.Error() + "\n")
		}
		fmt.Fprintf(&out, "\n%s\n%s", path, data)
	}
	return out.String()
}

func links() string {
	h, err := link.Handle()
	if err != nil {
		return err.Error() + "\n"
	}
	defer h.Close()
	list, err := link.Dump(h.LinkList)
	if err != nil {
		return err.Error() + "\n"
	}
	var out strings.Builder
	for _, l := range list {
		a := l.Attrs()
		fmt.Fprintf(&out, "%d: %s %s mtu %d %s master %d %v\n", a.Index, a.Name, l.Type(), a.MTU, a.Flags, a.MasterIndex, a.OperState)
		if s := a.Statistics; s != nil {
			fmt.Fprintln(&out, "    received: packets", s.RxPackets, "bytes", s.RxBytes, "errors", s.RxErrors, "dropped", s.RxDropped)
			fmt.Fprintln(&out, "    sent: packets", s.TxPackets, "bytes", s.TxBytes, "errors", s.TxErrors, "dropped", s.TxDropped)
		}
		addrs, err := link.Dump(func() ([]netlink.Addr, error) { return h.AddrList(l, netlink.FAMILY_ALL) })
		if err != nil {
			fmt.Fprintf(&out, "    %v\n", err)
		}
		for _, one := range addrs {
			fmt.Fprintf(&out, "    %s\n", one.IPNet)
		}
	}
	return out.String()
}

func routes() string {
	h, err := link.Handle()
	if err != nil {
		return err.Error() + "\n"
	}
	defer h.Close()
	var out strings.Builder
	rules, err := link.Dump(func() ([]netlink.Rule, error) { return h.RuleList(netlink.FAMILY_ALL) })
	if err != nil {
		fmt.Fprintln(&out, err)
	}
	for _, r := range rules {
		fmt.Fprintln(&out, r)
	}
	list, err := link.Dump(func() ([]netlink.Route, error) {
		return h.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		fmt.Fprintln(&out, err)
	}
	for _, r := range list {
		fmt.Fprintln(&out, r)
	}
	return out.String()
}

// sysctls lists the sysctls that decide about forwarding.
func sysctls() string {
	var out strings.Builder
	for _, name := range []string{
		"ipv4/ip_forward", "ipv6/conf/all/forwarding", "ipv6/conf/all/disable_ipv6", "ipv4/conf/all/rp_filter", "ipv4/conf/default/rp_filter",
		"ipv4/neigh/default/gc_thresh3", "ipv6/neigh/default/gc_thresh3", "netfilter/nf_conntrack_max", "netfilter/nf_conntrack_count", "netfilter/nf_conntrack_acct",
		"core/rmem_max", "core/wmem_max", "core/netdev_max_backlog",
	} {
		data, err := os.ReadFile("/proc/sys/net/" + name)
		if err != nil {
			data = []byte(err.Error() + "\n")
		}
		fmt.Fprintf(&out, "net.%s = %s", strings.ReplaceAll(name, "/", "."), data)
	}
	return out.String()
}

// ruleset lists the rules of all programs, if the program nft is here.
func ruleset() string {
	path, err := exec.LookPath("nft")
	if err != nil {
		return "the program nft is not installed here: rules.nft has Weft's own rules\n"
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, "-nn", "list", "ruleset").CombinedOutput()
	out = out[:min(len(out), mostRules)]
	if err != nil {
		return fmt.Sprintf("nft list ruleset: %v\n%s\n", err, out)
	}
	return string(out)
}
