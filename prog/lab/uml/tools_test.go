package uml

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl"

	"weft/prog/lab"
	"weft/prog/lab/labtest"
)

func TestMain(m *testing.M) {
	labtest.Main(m, map[string]func([]string) error{"allowed": printAllowed, "leftovers": printLeftovers})
}

// tool returns the output of a tool on a host.
func tool(t *testing.T, l *lab.Lab, host, name string) string {
	t.Helper()
	return run(t, l, host, labtest.Tool(t, name)...)
}

// allowed returns the allowed IPs in a host's WireGuard, by the peer's public key.
func allowed(t *testing.T, l *lab.Lab, host string) map[string][]string {
	t.Helper()
	var all map[string][]string
	if err := json.Unmarshal([]byte(tool(t, l, host, "allowed")), &all); err != nil {
		t.Fatal(err)
	}
	return all
}

func printAllowed([]string) error {
	client, err := wgctrl.New()
	if err != nil {
		return err
	}
	defer client.Close()
	dev, err := client.Device("weft")
	if err != nil {
		return err
	}
	all := make(map[string][]string)
	for _, p := range dev.Peers {
		var ips []string
		for _, n := range p.AllowedIPs {
			ips = append(ips, n.String())
		}
		slices.Sort(ips)
		all[p.PublicKey.String()] = ips
	}
	return json.NewEncoder(os.Stdout).Encode(all)
}

// printLeftovers prints the tables, links and routes that Weft could have left.
func printLeftovers([]string) error {
	tables, err := (&nftables.Conn{}).ListTables()
	if err != nil {
		return err
	}
	for _, table := range tables {
		fmt.Println("table", table.Name) // the lab's hosts have no tables of their own
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	links, err := h.LinkList()
	if err != nil {
		return err
	}
	for _, link := range links {
		if strings.HasPrefix(link.Attrs().Name, "weft") {
			fmt.Println("link", link.Attrs().Name)
		}
	}
	routes, err := h.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return err
	}
	for _, route := range routes {
		if dst := fmt.Sprint(route.Dst); strings.HasPrefix(dst, "10.") || strings.HasPrefix(dst, "169.254.1.") || dst[0] == 'f' && dst[1] == 'd' {
			fmt.Println("route", route)
		}
	}
	return nil
}
