package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"weft/mesh/meshtest/eventually"
	"weft/prog/api"
	"weft/prog/lab"
	"weft/prog/lab/labtest"
)

// cnitool builds libcni's program cnitool, and returns its path.
func cnitool(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "cnitool")
	cmd := exec.Command("go", "build", "-o", path, "github.com/containernetworking/cni/cnitool")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building cnitool returned %v, want success:\n%s", err, out)
	}
	return path
}

// container makes the namespaces of a container and returns the path of its network namespace.
func container(t *testing.T, l *lab.Lab, name string) string {
	t.Helper()
	if err := l.AddContainer(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	path, err := l.NetNS(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func TestCNIToolAttachesAndDetachesAContainer(t *testing.T) {
	l := labtest.New(t, lab.Options{Hosts: 1})
	tool, netns := cnitool(t), container(t, l, "h1/x")
	cni := func(verb string) []string {
		return []string{"env", "CNI_PATH=/opt/cni/bin", "NETCONFPATH=/etc/cni/net.d", "CNI_IFNAME=eth0", tool, verb, "weft", netns}
	}
	run(t, l, "h1", cni("status")...)
	var result struct {
		CNIVersion string
		Interfaces []struct{ Name, Mac, Sandbox string }
		IPs        []struct{ Address, Gateway string }
		Routes     []struct{ Dst, GW string }
		DNS        struct {
			Nameservers []string
			Domain      string
		}
	}
	if err := json.Unmarshal([]byte(run(t, l, "h1", cni("add")...)), &result); err != nil {
		t.Fatal(err)
	}
	have := addrs(t, l, "h1/x")
	if result.CNIVersion != "1.1.0" || len(result.IPs) != 2 || len(result.Routes) != 2 || len(result.Interfaces) != 2 ||
		result.Interfaces[1].Sandbox != netns || !slices.Equal(result.DNS.Nameservers, []string{"169.254.1.1"}) || result.DNS.Domain != "weft.internal" || result.IPs[0].Address != have[0]+"/32" || result.IPs[1].Address != have[1]+"/128" || result.IPs[0].Gateway != "169.254.1.1" {
		t.Errorf("the result of ADD is %+v, want the container's addresses %v, gateway and DNS settings", result, have)
	}
	run(t, l, "h1", cni("check")...)
	if said := fails(t, l, "h1", "", cni("add")...); !strings.Contains(said, "attached already, as "+have[0]) {
		t.Errorf("the second ADD returned %s, want a refusal with the address", said)
	}
	// The refused ADD leaves the first attachment as it was.
	run(t, l, "h1/x", append([]string{"weft", "probe", "icmp", "--count", "1"}, addrs(t, l, "h1")[0])...)
	run(t, l, "h1", cni("del")...)
	run(t, l, "h1", cni("del")...) // DEL of a deleted attachment succeeds
	nothingLeft(t, l, "h1")
	run(t, l, "h1", cni("add")...)
	run(t, l, "h1", cni("gc")...) // cnitool collects all attachments
	nothingLeft(t, l, "h1")
}

// plugin runs weft-cni by hand, as a runtime would.
func plugin(l *lab.Lab, t *testing.T, command, id, netns, conf string) (string, error) {
	t.Helper()
	return l.Exec(t.Context(), "h1", strings.NewReader(conf), "env", "CNI_COMMAND="+command, "CNI_CONTAINERID="+id,
		"CNI_NETNS="+netns, "CNI_IFNAME=eth0", "CNI_PATH=/opt/cni/bin", "/opt/cni/bin/weft-cni")
}

const conf = `{"cniVersion":"%s","name":"weft","type":"weft-cni"%s}`

// Bad input to the plugin gets the spec's error code and changes nothing.
func TestCNIRefusesInvalidInput(t *testing.T) {
	l := labtest.New(t, lab.Options{Hosts: 1})
	netns := container(t, l, "h1/x")
	good := fmt.Sprintf(conf, "1.1.0", "")
	for name, tt := range map[string]struct {
		command, id, netns, conf string
		code                     int
	}{
		"unknown version":   {"ADD", "a", netns, fmt.Sprintf(conf, "9.9.9", ""), 1},
		"no JSON":           {"ADD", "a", netns, "{", 6},
		"odd container id":  {"ADD", "../../etc", netns, good, 4},
		"missing namespace": {"ADD", "a", "/no/such/netns", good, 4},
		"a file, no netns":  {"ADD", "a", "/etc/passwd", good, 4},
		"unknown command":   {"FROB", "a", netns, good, 4},
		"no container id":   {"ADD", "", netns, good, 4},
		"check of an unknown container": {"CHECK", "stranger", netns, fmt.Sprintf(conf, "1.1.0",
			`,"prevResult":{"cniVersion":"1.1.0","ips":[{"address":"10.32.0.9/32"}]}`), 3},
		"check without prev": {"CHECK", "a", netns, good, 7},
		"unreadable prev":    {"ADD", "a", netns, fmt.Sprintf(conf, "1.1.0", `,"prevResult":[]`), 6},
	} {
		out, err := plugin(l, t, tt.command, tt.id, tt.netns, tt.conf)
		var answer struct {
			Code int
			Msg  string
		}
		if err == nil || json.Unmarshal([]byte(out), &answer) != nil || answer.Code != tt.code || answer.Msg == "" {
			t.Errorf("%s: error %v, answer %s, want code %d and a message", name, err, out, tt.code)
		}
	}
	nothingLeft(t, l, "h1")
}

// A container with any name gets a network. Names, labels and ports that Weft does not support are
// omitted and reported.
func TestCNIOmitsUnsupportedNames(t *testing.T) {
	l := labtest.New(t, lab.Options{Hosts: 1, Containers: 1})
	plain := fmt.Sprintf(conf, "1.1.0", "")
	for what, c := range map[string]struct{ args, conf, says string }{
		"a long pod name": {"IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=" + strings.Repeat("step-", 14) + "x", plain, "1 to 63"},
		"no DNS name":     {"IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=My Pod", plain, "only letters"},
		"no namespace":    {"IgnoreUnknown=1;K8S_POD_NAMESPACE=a/b;K8S_POD_NAME=web", plain, "namespace"},
		"an odd port":     {"", fmt.Sprintf(conf, "1.1.0", `,"args":{"cni":{"name":"web","ports":[{"name":"http","protocol":"quic","port":80}]}}`), "quic"},
		"many labels":     {"", fmt.Sprintf(conf, "1.1.0", `,"args":{"cni":{"name":"web","labels":[`+manyLabels(300)+`]}}`), "300 labels"},
	} {
		id := strings.ToLower(strings.ReplaceAll(what, " ", "-"))
		netns := container(t, l, "h1/"+id)
		out, err := l.Exec(t.Context(), "h1", strings.NewReader(c.conf), "env", "CNI_COMMAND=ADD", "CNI_CONTAINERID="+id, "CNI_ARGS="+c.args,
			"CNI_NETNS="+netns, "CNI_IFNAME=eth0", "CNI_PATH=/opt/cni/bin", "/opt/cni/bin/weft-cni")
		if err != nil {
			t.Errorf("ADD with %s returned %v, want success: %s", what, err, out)
			continue
		}
		run(t, l, "h1/"+id, append([]string{"weft", "probe", "icmp", "--count", "2", "--interval", "20ms"}, addrs(t, l, "h1/c1")...)...)
		if w := strings.Join(report(t, l, "h1").Warnings, "\n"); !strings.Contains(w, c.says) {
			t.Errorf("ADD with %s: got the warnings %q, want one with %q", what, w, c.says)
		}
		if out, err := plugin(l, t, "DEL", id, netns, plain); err != nil {
			t.Errorf("DEL after ADD with %s returned %v, want success: %s", what, err, out)
		}
	}
}

func manyLabels(n int) string {
	labels := make([]string, n)
	for i := range labels {
		labels[i] = fmt.Sprintf(`{"key":"l%d","value":""}`, i)
	}
	return strings.Join(labels, ",")
}

// ADD returns the result in the format of each supported version. In a chain, it adds to the previous result.
func TestCNIAddSupportsAllVersionsAndChaining(t *testing.T) {
	l := labtest.New(t, lab.Options{Hosts: 1})
	for _, v := range []string{"0.4.0", "1.0.0", "1.1.0"} {
		prev := fmt.Sprintf(`,"prevResult":{"cniVersion":%q,"interfaces":[{"name":"other0"}],"ips":[{"version":"4","address":"198.51.100.7/24","interface":0}]}`, v)
		for i, extra := range []string{"", prev} {
			name := fmt.Sprintf("v%s-%d", strings.ReplaceAll(v, ".", ""), i)
			netns := container(t, l, "h1/"+name)
			out, err := plugin(l, t, "ADD", name, netns, fmt.Sprintf(conf, v, extra))
			if err != nil {
				t.Fatalf("ADD as %s returned %v, want success: %s", name, err, out)
			}
			var result struct {
				CNIVersion string
				IPs        []struct {
					Version, Address string
					Interface        int
				}
			}
			if err := json.Unmarshal([]byte(out), &result); err != nil {
				t.Fatal(err)
			}
			if result.CNIVersion != v || len(result.IPs) != 2+i || (v == "0.4.0") != (result.IPs[i].Version == "4") || result.IPs[i].Interface != 1+i {
				t.Errorf("ADD as %s returned %s, want the format of version %s and %d addresses", name, out, v, 2+i)
			}
			if _, err := plugin(l, t, "DEL", name, netns, fmt.Sprintf(conf, v, "")); err != nil {
				t.Errorf("DEL as %s returned %v, want success", name, err)
			}
		}
	}
	out, err := plugin(l, t, "VERSION", "", "", fmt.Sprintf(conf, "1.1.0", ""))
	if err != nil || !strings.Contains(out, `"0.4.0","1.0.0","1.1.0"`) {
		t.Errorf("VERSION: error %v, want the versions 0.4.0, 1.0.0 and 1.1.0: %s", err, out)
	}
	nothingLeft(t, l, "h1")
}

// While the agent is down, STATUS returns 50, ADD returns "try again later" and leaves nothing, and
// DEL removes the link at once. The next agent releases the address.
func TestCNIAddFailsAndDelSucceedsWhileTheAgentIsDown(t *testing.T) {
	l := labtest.New(t, lab.Options{Hosts: 1})
	netns, other := container(t, l, "h1/x"), container(t, l, "h1/y")
	good := fmt.Sprintf(conf, "1.1.0", "")
	if out, err := plugin(l, t, "ADD", "x", netns, good); err != nil {
		t.Fatalf("ADD while the agent runs returned %v, want success: %s", err, out)
	}
	if err := l.Kill(t.Context(), "h1", "agent"); err != nil {
		t.Fatal(err)
	}
	for command, code := range map[string]string{"STATUS": `"code": 50`, "ADD": `"code": 11`} {
		if out, err := plugin(l, t, command, "y", other, good); err == nil || !strings.Contains(out, code) {
			t.Errorf("%s while the agent is down: error %v, want %s: %s", command, err, code, out)
		}
	}
	for range 2 {
		if out, err := plugin(l, t, "DEL", "x", netns, good); err != nil {
			t.Errorf("DEL while the agent is down returned %v, want success: %s", err, out)
		}
	}
	if links := endpointLinks(t, l, "h1"); len(links) > 0 {
		t.Errorf("DEL left the links %v, want none", links)
	}
	queued, _ := filepath.Glob(filepath.Join(l.StateDir("h1"), "releases", "*"))
	if len(queued) != 1 {
		t.Errorf("DEL queued the releases %v, want one file", queued)
	}
	if err := l.Start(t.Context(), "h1"); err != nil {
		t.Fatal(err)
	}
	nothingLeft(t, l, "h1")
}

// While the agent hangs, every operation ends within 10 s with the spec's code and the reason. DEL
// removes the link. When the agent resumes, DEL succeeds and nothing is left.
func TestCNIOperationsEndInTimeWhileTheAgentHangs(t *testing.T) {
	l := labtest.New(t, lab.Options{Hosts: 1})
	netns, other := container(t, l, "h1/x"), container(t, l, "h1/y")
	good := fmt.Sprintf(conf, "1.1.0", "")
	out, err := plugin(l, t, "ADD", "x", netns, good)
	if err != nil {
		t.Fatalf("ADD while the agent runs returned %v, want success: %s", err, out)
	}
	checked := fmt.Sprintf(conf, "1.1.0", `,"prevResult":`+out)
	signalAgent(t, l, 0, "STOP")
	var ops sync.WaitGroup
	for _, op := range []struct {
		command, id, netns, conf string
		code                     int
	}{{"DEL", "x", netns, good, 11}, {"DEL", "x", netns, good, 11}, {"ADD", "y", other, good, 11}, {"STATUS", "y", other, good, 50}, {"CHECK", "x", netns, checked, 11}} {
		ops.Go(func() {
			begin := time.Now()
			out, err := plugin(l, t, op.command, op.id, op.netns, op.conf)
			if took := time.Since(begin); err == nil || took > 10*time.Second || !strings.Contains(out, fmt.Sprintf(`"code": %d`, op.code)) || !strings.Contains(out, "not answer") {
				t.Errorf("%s with a stopped agent took %v and returned %v, want within 10 s code %d and an error that the agent does not answer: %s", op.command, took, err, op.code, out)
			}
		})
	}
	ops.Wait()
	if links := endpointLinks(t, l, "h1"); len(links) > 0 {
		t.Errorf("DEL left the links %v, want none", links)
	}
	signalAgent(t, l, 0, "CONT")
	for _, id := range []string{"x", "y"} { // a runtime repeats DEL after an error
		if out, err := plugin(l, t, "DEL", id, netns, good); err != nil {
			t.Errorf("DEL after the agent resumed returned %v, want success: %s", err, out)
		}
	}
	nothingLeft(t, l, "h1")
}

// A hundred concurrent containers get a hundred addresses, and leave nothing when they are gone.
func TestHundredContainersAttachAtOnce(t *testing.T) {
	l := labtest.New(t, lab.Options{Hosts: 1})
	const n = 100
	paths := make([]string, n)
	for i := range paths {
		paths[i] = container(t, l, fmt.Sprintf("h1/p%d", i))
	}
	good := fmt.Sprintf(conf, "1.1.0", "")
	each := func(command string) []string {
		outs := make([]string, n)
		var group sync.WaitGroup
		for i := range n {
			group.Go(func() {
				out, err := plugin(l, t, command, fmt.Sprintf("p%d", i), paths[i], good)
				if err != nil {
					t.Errorf("%s of container %d returned %v, want success: %s", command, i, err, out)
				}
				outs[i] = out
			})
		}
		group.Wait()
		return outs
	}
	distinct := map[string]bool{}
	for _, out := range each("ADD") {
		var result struct{ IPs []struct{ Address string } }
		if err := json.Unmarshal([]byte(out), &result); err != nil || len(result.IPs) != 2 {
			t.Fatalf("ADD: error %v, want two addresses: %s", err, out)
		}
		distinct[result.IPs[0].Address], distinct[result.IPs[1].Address] = true, true
	}
	if len(distinct) != 2*n {
		t.Errorf("the containers have %d distinct addresses, want %d", len(distinct), 2*n)
	}
	run(t, l, "h1/p0", append([]string{"weft", "probe", "icmp", "--count", "1"}, addrs(t, l, "h1/p99")...)...)
	each("DEL")
	nothingLeft(t, l, "h1")
}

// GC detaches exactly the containers that the runtime no longer lists.
func TestCNIGCDetachesUnlistedContainers(t *testing.T) {
	l := labtest.New(t, lab.Options{Hosts: 1})
	good := fmt.Sprintf(conf, "1.1.0", "")
	for _, name := range []string{"stays", "goes"} {
		if out, err := plugin(l, t, "ADD", name, container(t, l, "h1/"+name), good); err != nil {
			t.Fatalf("ADD of %s returned %v, want success: %s", name, err, out)
		}
	}
	if out, err := plugin(l, t, "GC", "", "", good); err != nil || len(report(t, l, "h1").Endpoints) != 2 {
		t.Fatalf("GC without a list: error %v, want no error and two endpoints: %s", err, out)
	}
	valid := `,"cni.dev/valid-attachments":[{"containerID":"stays","ifname":"eth0"}]`
	if out, err := plugin(l, t, "GC", "", "", fmt.Sprintf(conf, "1.1.0", valid)); err != nil {
		t.Fatalf("GC with a list returned %v, want success: %s", err, out)
	}
	r := report(t, l, "h1")
	if len(r.Endpoints) != 1 || r.Endpoints[0].ContainerID != "stays" || len(endpointLinks(t, l, "h1")) != 1 || r.IPAM.Active != 2 {
		t.Errorf("after GC there are the endpoints %+v and %d active addresses, want only the container that stays, and 2", r.Endpoints, r.IPAM.Active)
	}
	run(t, l, "h1/stays", append([]string{"weft", "probe", "icmp", "--count", "1"}, addrs(t, l, "h1")[0])...)
}

// endpointLinks returns the host side links of endpoints.
func endpointLinks(t *testing.T, l *lab.Lab, host string) []string {
	t.Helper()
	var out []string
	for line := range strings.SplitSeq(run(t, l, host, "cat", "/proc/net/dev"), "\n") {
		if name, _, _ := strings.Cut(strings.TrimSpace(line), ":"); strings.HasPrefix(name, "weft-") {
			out = append(out, name)
		}
	}
	return out
}

// nothingLeft asserts that no endpoint has left a slot, link, route or file on a host.
func nothingLeft(t *testing.T, l *lab.Lab, host string) {
	t.Helper()
	var r api.Report
	eventually.True(t, 5*time.Second, "the agent has no endpoints and only its node address", func() bool {
		r = report(t, l, host)
		return len(r.Endpoints) == 0 && r.IPAM.Active == 1
	})
	if links := endpointLinks(t, l, host); len(links) > 0 {
		t.Errorf("DEL left the links %v, want none", links)
	}
	for _, file := range []string{"/proc/net/route", "/proc/net/ipv6_route"} {
		for line := range strings.SplitSeq(run(t, l, host, "cat", file), "\n") {
			if strings.Contains(line, "weft-") {
				t.Errorf("DEL left the route %s, want none", line)
			}
		}
	}
	files, _ := filepath.Glob(filepath.Join(l.StateDir(host), "releases", "*"))
	if len(files) > 0 {
		t.Errorf("DEL left the queued releases %v, want none", files)
	}
}
