package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"net/rpc"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"weft/mesh/meshtest/eventually"
	"weft/prog/api"
	"weft/prog/lab"
	"weft/prog/lab/labtest"
)

// policyLab is a lab in whose containers, and on whose hosts, the program Pod runs.
type policyLab struct {
	*lab.Lab
	t     *testing.T
	dir   string // folder of the sockets of the Pods
	pods  map[string]*rpc.Client
	addrs map[string][]netip.Addr // addresses of each container, IPv4 first
}

// hostPort is the port on which hosts serve.
const hostPort = 8088

// newPolicyLab makes a lab in which every host runs a Pod.
func newPolicyLab(t *testing.T, o lab.Options) *policyLab {
	t.Helper()
	p := &policyLab{Lab: labtest.New(t, o), t: t, pods: map[string]*rpc.Client{}, addrs: map[string][]netip.Addr{}}
	dir, err := os.MkdirTemp("/tmp", "weft-pods-") // the path of a socket must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	p.dir = dir
	for _, h := range p.Hosts() {
		p.start(h, hostPort)
	}
	return p
}

// start runs Pod in a container or on a host until the lab ends.
func (p *policyLab) start(target string, ports ...uint16) {
	p.t.Helper()
	socket := filepath.Join(p.dir, strings.ReplaceAll(target, "/", "-"))
	args := []string{socket}
	for _, port := range ports {
		args = append(args, strconv.Itoa(int(port)))
	}
	if _, err := p.Background(p.t.Context(), target, "serving", toolArgs(p.t, "pod", args...)...); err != nil {
		p.t.Fatal(err)
	}
	client, err := rpc.Dial("unix", socket)
	if err != nil {
		p.t.Fatal(err)
	}
	p.pods[target] = client
	p.t.Cleanup(func() { client.Close() })
}

// add makes a container, starts Pod in it, and attaches it. So it serves on ports before it has a network.
func (p *policyLab) add(target string, as lab.Identity, ports ...uint16) {
	p.t.Helper()
	if err := p.AddContainer(p.t.Context(), target); err != nil {
		p.t.Fatal(err)
	}
	p.start(target, ports...)
	p.plug(target, as)
}

// plug attaches a container with an identity.
func (p *policyLab) plug(target string, as lab.Identity) {
	p.t.Helper()
	given, err := p.PlugAs(p.t.Context(), target, as)
	if err != nil {
		p.t.Fatal(err)
	}
	var list []netip.Addr
	for _, a := range given {
		list = append(list, netip.MustParseAddr(a))
	}
	p.addrs[target] = list
}

// replug detaches a container, and attaches it again with another identity.
func (p *policyLab) replug(target string, as lab.Identity) {
	p.t.Helper()
	if err := p.Unplug(p.t.Context(), target); err != nil {
		p.t.Fatal(err)
	}
	p.plug(target, as)
}

// ask calls a method of the Pod in a container or on a host.
func ask[T any](p *policyLab, target, method string, args any) (out T) {
	p.t.Helper()
	if err := p.pods[target].Call("Pod."+method, args, &out); err != nil {
		p.t.Fatalf("on %s, the call of Pod.%s returned %v, want success", target, method, err)
	}
	return out
}

// weft runs weft on a host with standard input.
func (p *policyLab) weft(host, stdin string, args ...string) (string, error) {
	p.t.Helper()
	return p.Exec(p.t.Context(), host, strings.NewReader(stdin), append([]string{"weft"}, args...)...)
}

// apply applies a manifest and returns when all hosts enforce it.
func (p *policyLab) apply(host, manifest string) {
	p.t.Helper()
	if _, err := p.weft(host, manifest, "policy", "apply", "--wait", "-f", "-"); err != nil {
		p.t.Fatalf("applying policies failed, want success: %v\n%s", err, manifest)
	}
}

// remove deletes policies and returns when no host enforces them any more.
func (p *policyLab) remove(host string, names ...string) {
	p.t.Helper()
	if _, err := p.weft(host, "", append([]string{"policy", "delete"}, names...)...); err != nil {
		p.t.Fatal(err)
	}
	p.settled(host)
}

// settled waits until all hosts enforce the policies that the given host knows.
func (p *policyLab) settled(host string) {
	p.t.Helper()
	eventually.True(p.t, 30*time.Second, "all hosts enforce the same policies", func() bool {
		s := p.status(host)
		for _, one := range s.Peers {
			if !one.Current {
				return false
			}
		}
		return len(s.Peers) > 0
	})
}

func (p *policyLab) status(host string) (s api.PolicyStatus) {
	p.t.Helper()
	out, err := p.weft(host, "", "status", "policy", "--json")
	if err == nil {
		err = json.Unmarshal([]byte(out), &s)
	}
	if err != nil {
		p.t.Fatal(err)
	}
	return s
}

// manifest returns a manifest of policies p0, p1 and so on, each given as "NAMESPACE: {spec}".
func manifest(policies ...string) string {
	var b strings.Builder
	for i, one := range policies {
		namespace, spec, _ := strings.Cut(one, ": ")
		fmt.Fprintf(&b, "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p%d, namespace: %q}\nspec: %s\n", i, namespace, spec)
	}
	return b.String()
}

// space returns the manifest of a namespace with a label.
func space(name, key, value string) string {
	return fmt.Sprintf("---\napiVersion: v1\nkind: Namespace\nmetadata: {name: %q, labels: {%s: %q}}\n", name, key, value)
}

// patient is the time limit for packets that should arrive, impatient for packets that should not.
const (
	patient   = 15 * time.Second
	impatient = 300 * time.Millisecond
)

// reaches tries to reach ports of one container from another, over both protocols and in both
// families, and reports attempts with the wrong result.
func (p *policyLab) reaches(src, dst string, want bool, ports ...uint16) {
	p.t.Helper()
	if err := p.tryAll(src, dst, want, ports...); err != nil {
		p.t.Error(err)
	}
}

func (p *policyLab) tryAll(src, dst string, want bool, ports ...uint16) error {
	p.t.Helper()
	patience := map[bool]time.Duration{true: patient, false: impatient}[want]
	var tries []Try
	for _, addr := range p.addrs[dst] {
		for _, port := range ports {
			for _, network := range []string{"tcp", "udp"} {
				tries = append(tries, Try{network, netip.AddrPortFrom(addr, port), patience})
			}
		}
	}
	var errs []error
	for i, got := range ask[[]bool](p, src, "Reach", tries) {
		if got != want {
			errs = append(errs, fmt.Errorf("%s to %s (%s %v): reached %v, want %v", src, dst, tries[i].Network, tries[i].To, got, want))
		}
	}
	return errors.Join(errs...)
}
