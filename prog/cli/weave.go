package cli

import (
	"fmt"
	"strings"
)

// This file lists the commands and flags of Weave Net that Weft does not have, with their replacements,
// since Weave's users type them from habit. It covers all releases of Weave.

const (
	noProxy  = "Docker works without a proxy or plugin: start containers with `docker run`, then `weft attach CONTAINER`"
	noRouter = "one agent does everything: `weft launch` starts it, `weft stop` stops it"
)

var weaveCommands = map[string]string{
	"setup":           "Weft downloads nothing: install weft and weft-cni, then run `weft launch`",
	"setup-cni":       "`weft launch` writes the CNI configuration and installs the plugin",
	"run":             "use `docker run -d IMAGE`, then `weft attach CONTAINER`",
	"start":           "use `docker start CONTAINER`, then `weft attach CONTAINER`; the agent itself starts with `weft launch`",
	"restart":         "use `docker restart CONTAINER`, then `weft attach CONTAINER`; for the agent use `weft stop`, then `weft launch`",
	"env":             noProxy,
	"proxy":           noProxy,
	"proxy-env":       noProxy,
	"proxy-config":    noProxy,
	"launch-proxy":    noProxy,
	"stop-proxy":      noProxy,
	"launch-plugin":   noProxy,
	"stop-plugin":     noProxy,
	"plugin":          noProxy,
	"docker-tls-args": noProxy,
	"launch-router":   noRouter,
	"stop-router":     noRouter,
	"router":          noRouter,
	"launch-dns":      noRouter,
	"stop-dns":        noRouter,
	"dns-args":        "use `docker run --dns 169.254.1.1 --dns-search weft.internal`; see site/docs/dns.md",
	"peers":           "use `weft status peers`",
	"connections":     "use `weft status connections`",
	"targets":         "use `weft status targets`",
	"ipam":            "use `weft status ipam`",
	"dns":             "use `weft status dns`",
}

const (
	noSubnets  = "there is one range, --ipalloc-range; to isolate containers, use policies (`weft policy`)"
	neverPlain = "all traffic between hosts is encrypted; this cannot be turned off"
	nameByFlag = "a container has its Docker name, or that of `weft attach --name`"
	nameByH    = "use -h NAME"

	noMulticast    = "there is no multicast between hosts, and no route for it"
	hostIsArgument = "give the host as an argument, without a flag"
)

// weaveFlags holds Weave's flags, by command.
var weaveFlags = map[string]map[string]string{
	"launch": weaveLaunch,
	"agent":  weaveLaunch,
	"attach": {
		"iface":              "use --interface",
		"without-dns":        "use --no-dns with `weft launch`",
		"rewrite-hosts":      nameByFlag,
		"no-rewrite-hosts":   nameByFlag,
		"no-multicast-route": noMulticast,
	},
	"detach":     {"iface": "use --interface"},
	"dns-add":    {"name": nameByH},
	"dns-remove": {"name": nameByH},
	"expose":     {"name": nameByH},
	"probe icmp": {"host": hostIsArgument},
	"probe tcp":  {"host": hostIsArgument},
	"probe udp":  {"host": hostIsArgument},
}

var weaveLaunch = map[string]string{
	"password":                "the process list shows arguments: use --token FILE, or WEFT_PASSWORD in the environment",
	"log-level":               "use --verbose to log more",
	"trusted-subnets":         neverPlain,
	"ipalloc-default-subnet":  noSubnets,
	"host":                    "use --advertise for the addresses at which other hosts reach this host",
	"advertise-address":       "use --advertise",
	"name":                    "a host's id is derived from its key; for a readable name use --nickname",
	"resume":                  "`weft launch` without arguments uses the stored targets",
	"no-restart":              "`weft launch` does not restart an agent that ended; site/docs/install.md has a systemd unit",
	"init-peer-count":         "use --ipalloc-init consensus=N",
	"peer-count":              "use --ipalloc-init consensus=N",
	"conn-limit":              "every pair of hosts has its own tunnel",
	"plugin":                  noProxy,
	"proxy":                   noProxy,
	"docker-api":              noProxy,
	"H":                       noProxy,
	"tls":                     noProxy,
	"tlscacert":               noProxy,
	"tlscert":                 noProxy,
	"tlskey":                  noProxy,
	"tlsverify":               noProxy,
	"awsvpc":                  "every pair of hosts has its own tunnel, in a VPC too: allow TCP and UDP 6783, and UDP 6784, in its security groups",
	"without-dns":             "use --no-dns with `weft launch`",
	"no-default-ipalloc":      noProxy,
	"hostname-from-label":     nameByFlag,
	"hostname-match":          nameByFlag,
	"hostname-replacement":    nameByFlag,
	"rewrite-inspect":         noProxy,
	"rewrite-hosts":           nameByFlag,
	"no-rewrite-hosts":        nameByFlag,
	"no-multicast-route":      noMulticast,
	"no-masq-local":           "traffic between containers always keeps its source address",
	"dns-listen-address":      "the name server listens on the node address, and on 169.254.1.1 for containers",
	"dns-effective-address":   "the name server listens on the node address, and on 169.254.1.1 for containers",
	"dns-fallback-config-url": "use --resolv-conf",
	"http-addr":               "use --status-addr",
	"iface":                   "there is no bridge: every container has a veth pair and a route",
	"docker-bridge":           "there is no bridge: every container has a veth pair and a route",
}

// weaveArguments explains, by command, why addresses that the command took in Weave are not needed.
var weaveArguments = map[string]string{
	"expose": "this host already has a node address (`weft status`: Node)",
	"hide":   "`weft hide` undoes `weft expose` for all addresses",
	"detach": "`weft detach` removes all addresses of the interface",
}

// weaveAddress returns the replacement of an address in Weave's notation, which has a prefix such as
// ip: or net:. For a plain address it returns "".
func weaveAddress(s string) string {
	kind, rest, _ := strings.Cut(s, ":")
	switch kind {
	case "ip":
		address, _, _ := strings.Cut(rest, "/")
		return fmt.Sprintf("give the address alone: %s", address)
	case "net":
		return "leave the address out: " + noSubnets
	}
	return ""
}
