package lab

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	cni100 "github.com/containernetworking/cni/pkg/types/100"
)

// These are the folders of container runtimes.
const (
	cniConfDir = "/etc/cni/net.d"
	cniBinDir  = "/opt/cni/bin"
	// The default, /var/lib/cni, would survive a reboot of a host, but the host's containers do not.
	cniCacheDir = "/run/cni"
)

// confWait limits the wait for the conflist, which the agent writes when it is ready.
const confWait = 30 * time.Second

// plugged has the parts of CNI ADD's result that the lab uses.
type plugged struct {
	Addresses  []string `json:"addresses"`
	ResolvConf string   `json:"resolvConf"`
}

// Identity is what a container runtime passes to the CNI plugin about a container.
type Identity struct {
	Namespace string            `json:"namespace"`
	Name      string            `json:"name"`
	Labels    map[string]string `json:"labels,omitempty"`
	Ports     []Port            `json:"ports,omitempty"`
}

// Port is a named port of a container.
type Port struct {
	Name     string `json:"name"`
	Protocol string `json:"protocol"` // tcp, udp or sctp
	Number   uint16 `json:"port"`
}

// identityOf returns the default Identity of a container: its own name, in a namespace with its
// host's name.
func identityOf(container string) Identity {
	host, name, _ := strings.Cut(container, "/")
	return Identity{Namespace: host, Name: name}
}

// cniArgs returns a container's labels and ports as the CNI conventions define them: as args in the
// plugin's configuration.
func (i Identity) cniArgs() map[string]any {
	labels := []map[string]string{}
	for _, key := range slices.Sorted(maps.Keys(i.Labels)) {
		labels = append(labels, map[string]string{"key": key, "value": i.Labels[key]})
	}
	return map[string]any{"cni": map[string]any{"labels": labels, "ports": i.Ports}}
}

// runCNI acts as a container runtime on a host. It passes the container's name as Kubernetes does
// (CNI_ARGS), and labels and ports in args.
func runCNI(ctx context.Context, operation, id, netns string, as Identity) (out plugged, err error) {
	list, err := waitForConf(ctx)
	if err != nil {
		return out, err
	}
	if len(as.Labels)+len(as.Ports) > 0 {
		for i, p := range list.Plugins {
			if list.Plugins[i], err = libcni.InjectConf(p, map[string]any{"args": as.cniArgs()}); err != nil {
				return out, err
			}
		}
	}
	cni := libcni.NewCNIConfigWithCacheDir([]string{cniBinDir}, cniCacheDir, nil)
	rt := &libcni.RuntimeConf{ContainerID: id, NetNS: netns, IfName: "eth0"}
	rt.Args = [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", as.Namespace}, {"K8S_POD_NAME", as.Name}}
	switch operation {
	case "add":
		result, err := cni.AddNetworkList(ctx, list, rt)
		if err != nil {
			return out, cniError(err)
		}
		return readResult(result)
	case "del":
		return out, cniError(cni.DelNetworkList(ctx, list, rt))
	}
	return out, fmt.Errorf("unknown CNI operation %q: use add or del", operation)
}

// cniError adds a plugin's details, which types.Error's text omits.
func cniError(err error) error {
	if e, ok := errors.AsType[*types.Error](err); ok && e.Details != "" {
		return fmt.Errorf("CNI code %d: %s: %s", e.Code, e.Msg, e.Details)
	}
	return err
}

func waitForConf(ctx context.Context) (*libcni.NetworkConfigList, error) {
	ctx, cancel := context.WithTimeout(ctx, confWait)
	defer cancel()
	for {
		files, err := libcni.ConfFiles(cniConfDir, []string{".conflist"})
		if err != nil {
			return nil, err
		}
		if len(files) > 0 {
			return libcni.NetworkConfFromFile(files[0])
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("no conflist in %s after %v: the agent writes it when it is ready; see weft status", cniConfDir, confWait)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func readResult(result types.Result) (out plugged, err error) {
	r, err := cni100.NewResultFromResult(result)
	if err != nil {
		return out, err
	}
	for _, ip := range r.IPs {
		out.Addresses = append(out.Addresses, ip.Address.IP.String())
	}
	for _, server := range r.DNS.Nameservers {
		out.ResolvConf += "nameserver " + server + "\n"
	}
	if len(r.DNS.Search) > 0 {
		out.ResolvConf += "search " + strings.Join(r.DNS.Search, " ") + "\n"
	}
	if len(r.DNS.Options) > 0 {
		out.ResolvConf += "options " + strings.Join(r.DNS.Options, " ") + "\n"
	}
	return out, nil
}
