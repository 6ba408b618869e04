package cli

import (
	"fmt"
	"strings"
)

// What Weave Net's command line had and Weft's has not, and what serves instead: its users
// type these from habit. Commands are those of all its releases.

const (
	noProxy  = "Docker goes on as it is, without a proxy or plugin: start containers with `docker run`, then `weft attach CONTAINER`"
	noRouter = "one agent does all of it: `weft launch` starts it, `weft stop` stops it"
)

var weaveCommands = map[string]string{
	"setup":           "nothing has to be fetched: install weft and weft-cni, then `weft launch`",
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
	"dns-args":        "use `docker run --dns 169.254.1.1 --dns-search weft.internal`; site/docs/dns.md says more",
	"peers":           "use `weft status peers`",
	"connections":     "use `weft status connections`",
	"targets":         "use `weft status targets`",
	"ipam":            "use `weft status ipam`",
	"dns":             "use `weft status dns`",
	"logs":            "an agent of `weft launch` logs to /var/lib/weft/agent.log, one of systemd to `journalctl -u weft`",
}

const (
	noSubnets  = "there is one range, --ipalloc-range; policies say who may reach whom (`weft policy`)"
	neverPlain = "everything is encrypted, and that cannot be turned off"
	nameByFlag = "a container is called what Docker calls it, or what `weft attach --name` says"
	nameByH    = "use -h NAME"

	noMulticast    = "there is no multicast between hosts, and no route for it"
	hostIsArgument = "give the host without a flag"
)

// weaveFlags are flags by command.
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
	"password":                "an argument shows in the process list: use --token FILE, or WEFT_PASSWORD in the environment",
	"no-discovery":            "hosts of one network always find each other; `weft forget` drops a target",
	"log-level":               "use --verbose for more than the usual",
	"trusted-subnets":         neverPlain,
	"ipalloc-default-subnet":  noSubnets,
	"host":                    "use --advertise for the addresses at which other hosts reach this one",
	"advertise-address":       "use --advertise",
	"name":                    "a host's id comes from its key; people see --nickname",
	"resume":                  "a plain `weft launch` goes on with the targets of before",
	"no-restart":              "an agent of `weft launch` is not started again by itself; site/docs/install.md has a unit for systemd",
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
	"awsvpc":                  "every pair of hosts has its own tunnel, in a VPC too: let its security groups pass TCP and UDP 6783, and UDP 6784",
	"without-dns":             "use --no-dns with `weft launch`",
	"no-default-ipalloc":      noProxy,
	"hostname-from-label":     nameByFlag,
	"hostname-match":          nameByFlag,
	"hostname-replacement":    nameByFlag,
	"rewrite-inspect":         noProxy,
	"rewrite-hosts":           nameByFlag,
	"no-rewrite-hosts":        nameByFlag,
	"no-multicast-route":      noMulticast,
	"no-masq-local":           "what containers send to each other always keeps its source",
	"dns-listen-address":      "the name server listens on the node address, and for containers on 169.254.1.1",
	"dns-effective-address":   "the name server listens on the node address, and for containers on 169.254.1.1",
	"dns-fallback-config-url": "use --resolv-conf",
	"http-addr":               "use --status-addr",
	"metrics-addr":            "use --status-addr: it serves /metrics too",
	"iface":                   "there is no bridge: every container has a veth pair and a route",
	"docker-bridge":           "there is no bridge: every container has a veth pair and a route",
}

// weaveArguments are commands that took addresses there.
var weaveArguments = map[string]string{
	"expose": "this host has its node address already (`weft status`: Node)",
	"hide":   "it ends all that `weft expose` allowed",
	"detach": "it takes back all addresses of the interface",
}

// weaveAddress says what serves instead of an address as attach had it there, which had a word before it:
// nothing for one that has none.
func weaveAddress(s string) string {
	kind, rest, _ := strings.Cut(s, ":")
	switch kind {
	case "ip":
		address, _, _ := strings.Cut(rest, "/")
		return fmt.Sprintf("give the address alone: %s", address)
	case "net":
		return "leave it out: " + noSubnets
	}
	return ""
}
