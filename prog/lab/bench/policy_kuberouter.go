package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"os/exec"
	"slices"
	"strings"

	"weft/router/policy"
)

// kubeRouter enforces policies like kube-router v2's iptables controller, according to its
// documentation and source (pkg/controllers/netpol, pkg/utils/ipset.go):
//
//   - every policy of the cluster is a chain KUBE-NWPLCY-…, on every host. It marks the packets
//     that it allows: one rule for each rule, port and kind of peer, with an ipset for each side.
//     Policies do not share sets. A named port has a set for each of its port numbers;
//   - every pod of the host has a chain KUBE-POD-FW-…: it accepts related and established packets,
//     then jumps to the pod's policies, and rejects packets without a mark;
//   - KUBE-ROUTER-FORWARD jumps there with four consecutive rules for each pod: by source and by
//     destination, routed and bridged. INPUT and OUTPUT have the same;
//   - any change of a pod, a namespace or a policy causes a full sync: iptables-save, ipset save,
//     ipset restore, which fills and swaps each set, then iptables-restore of the whole filter
//     table, with new names of chains each time.
//
// All differences from kube-router make this version faster: it only does IPv4, while Weft sets up
// both families; selectors are looked up in maps instead of the API's caches; the output of
// iptables-save is not parsed; rules are in their final order instead of inserted with -I; and the
// thirty calls of iptables that check the top-level chains, and the second ipset save, are omitted.
type kubeRouter struct {
	*cluster
	backend string // backend of iptables: "legacy" or "nft"
	synced  int
}

// sync does a full sync in a namespace.
func (k *kubeRouter) sync(ctx context.Context, s space) error {
	return s.do(func() error {
		k.synced++
		if err := command(ctx, "", "iptables-"+k.backend+"-save", "-t", "filter"); err != nil {
			return err
		}
		b := &kubeBuild{cluster: k.cluster, version: fmt.Sprint(k.synced), spaces: map[string][]policy.Endpoint{}}
		b.build()
		if err := command(ctx, "", "ipset", "save"); err != nil {
			return err
		}
		if err := command(ctx, b.sets.String(), "ipset", "restore", "-exist"); err != nil {
			return err
		}
		return command(ctx, b.table(), "iptables-"+k.backend+"-restore", "--wait", "-T", "filter")
	})
}

// command runs a program and discards its output.
func command(ctx context.Context, input, name string, args ...string) error {
	var out, problems bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &out, &problems
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, problems.String()[:min(1000, problems.Len())])
	}
	return nil
}

// kubeBuild builds the text of one sync.
type kubeBuild struct {
	*cluster
	version             string
	spaces              map[string][]policy.Endpoint
	sets, chains, rules strings.Builder
	temporary           []string // kinds of sets for which a temporary set exists
}

func (b *kubeBuild) table() string {
	return "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n" + b.chains.String() + b.rules.String() + "COMMIT\n"
}

func (b *kubeBuild) chain(name string) { fmt.Fprintf(&b.chains, ":%s - [0:0]\n", name) }

func (b *kubeBuild) rule(chain, format string, args ...any) {
	fmt.Fprintf(&b.rules, "-A %s "+format+"\n", append([]any{chain}, args...)...)
}

// kubeName returns a name derived from its parts.
func kubeName(prefix string, about ...any) string {
	sum := sha256.Sum256(fmt.Append(nil, about...))
	return prefix + base32.StdEncoding.EncodeToString(sum[:])[:16]
}

func (b *kubeBuild) build() {
	for _, e := range b.endpoints {
		b.spaces[e.Namespace] = append(b.spaces[e.Namespace], e)
	}
	for _, hook := range []string{"INPUT", "FORWARD", "OUTPUT"} {
		b.chain("KUBE-ROUTER-" + hook)
		b.rule(hook, `-m comment --comment "kube-router netpol" -j KUBE-ROUTER-%s`, hook)
	}
	b.chain("KUBE-NWPLCY-DEFAULT")
	b.rule("KUBE-NWPLCY-DEFAULT", `-m comment --comment "rule to mark traffic matching a network policy" -j MARK --set-xmark 0x10000/0x10000`)
	b.chain("KUBE-NWPLCY-COMMON")
	b.rule("KUBE-NWPLCY-COMMON", `-m comment --comment "rule to drop invalid state for pod" -m conntrack --ctstate INVALID -j DROP`)
	b.rule("KUBE-NWPLCY-COMMON", `-m comment --comment "rule for stateful firewall for pod" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT`)
	for _, kind := range []string{"echo-request", "destination-unreachable", "time-exceeded"} {
		b.rule("KUBE-NWPLCY-COMMON", `-m comment --comment "allow icmp %s messages" -p icmp --icmp-type %s -j ACCEPT`, kind, kind)
	}
	by := map[string][]string{} // chains of the policies that select a pod, by the pod's id
	for _, p := range b.policies {
		name := kubeName("KUBE-NWPLCY-", p.Ref(), b.version)
		b.policy(p, name)
		for _, e := range b.pods(p.Namespace, &p.Pods) {
			if b.isLocal(e) {
				by[e.ID] = append(by[e.ID], name)
			}
		}
	}
	// The last pod to be added is inserted at the front.
	for _, e := range slices.Backward(b.endpoints) {
		if b.isLocal(e) {
			b.pod(e, by[e.ID])
		}
	}
	for _, hook := range []string{"INPUT", "FORWARD", "OUTPUT"} {
		b.rule("KUBE-ROUTER-"+hook, `-m comment --comment "rule to explicitly ACCEPT traffic that comply to network policies" -m mark --mark 0x20000/0x20000 -j ACCEPT`)
	}
	for _, kind := range b.temporary {
		fmt.Fprintf(&b.sets, "destroy %s\n", kubeName("TMP-", kind))
	}
}

// pods returns the pods in a namespace that a selector selects. The cluster's selectors only have
// labels.
func (b *kubeBuild) pods(namespace string, s *policy.Selector) (out []policy.Endpoint) {
	for _, e := range b.spaces[namespace] {
		if has(e.Labels, s) {
			out = append(out, e)
		}
	}
	return out
}

func has(labels map[string]string, s *policy.Selector) bool {
	if s != nil {
		for key, value := range s.Labels {
			if labels[key] != value {
				return false
			}
		}
	}
	return true
}

// set fills a temporary set and swaps it with the final one.
func (b *kubeBuild) set(name, kind string, entries []string) string {
	kind += " family inet hashsize 1024 maxelem 65536 timeout 0"
	temporary := kubeName("TMP-", kind)
	if !slices.Contains(b.temporary, kind) {
		b.temporary = append(b.temporary, kind)
		fmt.Fprintf(&b.sets, "create %s %s\nflush %s\n", temporary, kind, temporary)
	}
	for _, e := range entries {
		b.sets.WriteString("add " + temporary + " " + e + " timeout 0\n")
	}
	fmt.Fprintf(&b.sets, "create %s %s\nswap %s %s\nflush %s\n", name, kind, temporary, name, temporary)
	return name
}

func addrs(list []policy.Endpoint) []string {
	out := make([]string, len(list))
	for i, e := range list {
		out[i] = e.Addrs[0].String()
	}
	return out
}

// policy makes the chain and the sets of a policy.
func (b *kubeBuild) policy(p policy.Policy, chain string) {
	b.chain(chain)
	own := b.pods(p.Namespace, &p.Pods)
	target := b.set(kubeName("KUBE-DST-", p.Ref()), "hash:ip", addrs(own))
	source := b.set(kubeName("KUBE-SRC-", p.Ref()), "hash:ip", addrs(own))
	for i, r := range p.Ingress {
		for _, from := range b.peers(p, kubeName("KUBE-SRC-", p.Ref(), i), r) {
			for _, port := range r.Ports {
				if port.Name == "" {
					b.allow(chain, from, target, port)
					continue
				}
				for number, pods := range numbers(own, port) {
					to := b.set(kubeName("KUBE-DST-", p.Ref(), i, number), "hash:ip", addrs(pods))
					b.allow(chain, from, to, policy.Port{Protocol: port.Protocol, Number: number})
				}
			}
		}
	}
	for i, r := range p.Egress { // egress rules of newCluster have no ports
		for _, to := range b.peers(p, kubeName("KUBE-DST-", p.Ref(), i), r) {
			b.allow(chain, source, to, policy.Port{})
		}
	}
}

// numbers returns the port numbers of a named port, each with its endpoints.
func numbers(list []policy.Endpoint, named policy.Port) map[uint16][]policy.Endpoint {
	out := map[uint16][]policy.Endpoint{}
	for _, e := range list {
		for _, p := range e.Ports {
			if p.Name == named.Name && p.Protocol == named.Protocol {
				out[p.Number] = append(out[p.Number], e)
			}
		}
	}
	return out
}

// peers builds the sets of a rule's peers: a set of all pods, and a set of all IP blocks.
func (b *kubeBuild) peers(p policy.Policy, name string, r policy.Rule) (sets []string) {
	var pods []policy.Endpoint
	var blocks []string
	for _, peer := range r.Peers {
		switch {
		case peer.Block != nil:
			blocks = append(blocks, peer.Block.CIDR.String())
		case peer.Namespaces == nil:
			pods = append(pods, b.pods(p.Namespace, peer.Pods)...)
		default:
			for namespace, labels := range b.namespaces {
				if has(labels, peer.Namespaces) {
					pods = append(pods, b.pods(namespace, peer.Pods)...)
				}
			}
		}
	}
	if len(pods) > 0 {
		sets = append(sets, b.set(name, "hash:ip", addrs(pods)))
	}
	if len(blocks) > 0 {
		sets = append(sets, b.set(kubeName(name[:len("KUBE-SRC-")], name, "blocks"), "hash:net", blocks))
	}
	return sets
}

// allow marks packets from one set to another, and returns from the chain.
func (b *kubeBuild) allow(chain, from, to string, port policy.Port) {
	match := fmt.Sprintf(`-m comment --comment "rule to ACCEPT traffic from source pods to dest pods" -m set --match-set %s src -m set --match-set %s dst`, from, to)
	if port.Protocol != 0 {
		match += fmt.Sprintf(" -p %s --dport %d", strings.ToLower(port.Protocol.String()), port.Number)
	}
	b.rule(chain, "%s -j MARK --set-xmark 0x10000/0x10000", match)
	b.rule(chain, "%s -m mark --mark 0x10000/0x10000 -j RETURN", match)
}

// pod makes the chain of a pod, and the rules that jump to it.
func (b *kubeBuild) pod(e policy.Endpoint, policies []string) {
	chain, addr := kubeName("KUBE-POD-FW-", e.Ref(), b.version), e.Addrs[0]
	comment := fmt.Sprintf(`-m comment --comment "POD name:%s namespace: %s"`, e.Name, e.Namespace)
	b.chain(chain)
	b.rule(chain, "%s -j KUBE-NWPLCY-COMMON", comment)
	b.rule(chain, "%s -m addrtype --src-type LOCAL -d %v -j ACCEPT", comment, addr)
	for _, name := range policies {
		b.rule(chain, "%s -j %s", comment, name)
	}
	if len(policies) == 0 {
		b.rule(chain, "%s -s %v -j KUBE-NWPLCY-DEFAULT", comment, addr)
		b.rule(chain, "%s -d %v -j KUBE-NWPLCY-DEFAULT", comment, addr)
	}
	b.rule(chain, "%s -m mark ! --mark 0x10000/0x10000 -m limit --limit 10/minute --limit-burst 10 -j NFLOG --nflog-group 100", comment)
	b.rule(chain, "%s -m mark ! --mark 0x10000/0x10000 -j REJECT", comment)
	b.rule(chain, "-j MARK --set-mark 0/0x10000")
	b.rule(chain, "-m mark --mark 0/0x20000 -j MARK --set-mark 0x20000/0x20000")
	for _, side := range []string{"-s", "-d"} {
		b.rule("KUBE-ROUTER-FORWARD", "-m physdev --physdev-is-bridged %s %s %v -j %s", comment, side, addr, chain)
		b.rule("KUBE-ROUTER-FORWARD", "%s %s %v -j %s", comment, side, addr, chain)
		b.rule("KUBE-ROUTER-OUTPUT", "%s %s %v -j %s", comment, side, addr, chain)
	}
	b.rule("KUBE-ROUTER-INPUT", "%s -s %v -j %s", comment, addr, chain)
}
