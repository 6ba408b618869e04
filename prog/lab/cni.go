package lab

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	cni100 "github.com/containernetworking/cni/pkg/types/100"
)

// Where every container runtime looks.
const (
	cniConfDir = "/etc/cni/net.d"
	cniBinDir  = "/opt/cni/bin"
	// The default, /var/lib/cni, would outlive a reboot that no container does.
	cniCacheDir = "/run/cni"
)

// confWait bounds the wait for the conflist, which the agent writes when it is ready.
const confWait = 30 * time.Second

// plugged is what an add gave.
type plugged struct {
	Addresses  []string `json:"addresses"`
	ResolvConf string   `json:"resolvConf"`
}

// runCNI does on a host what a container runtime does there. The container is called as
// Kubernetes calls a pod: its own name, and its host's for a namespace.
func runCNI(ctx context.Context, verb, id, netns string) (out plugged, err error) {
	list, err := waitForConf(ctx)
	if err != nil {
		return out, err
	}
	cni := libcni.NewCNIConfigWithCacheDir([]string{cniBinDir}, cniCacheDir, nil)
	rt := &libcni.RuntimeConf{ContainerID: id, NetNS: netns, IfName: "eth0"}
	if host, name, ok := strings.Cut(strings.TrimPrefix(id, idPrefix), "-"); ok {
		rt.Args = [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", host}, {"K8S_POD_NAME", name}}
	}
	switch verb {
	case "add":
		result, err := cni.AddNetworkList(ctx, list, rt)
		if err != nil {
			return out, cniError(err)
		}
		return readResult(result)
	case "del":
		return out, cniError(cni.DelNetworkList(ctx, list, rt))
	}
	return out, fmt.Errorf("unknown CNI verb %q: use add or del", verb)
}

// cniError keeps a plugin's details, which types.Error's own text drops.
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
