package lab

import (
	"context"
	"errors"
	"fmt"
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

// runCNI does on a host what a container runtime does there, and returns the addresses that an add gave.
func runCNI(ctx context.Context, verb, id, netns string) ([]string, error) {
	list, err := waitForConf(ctx)
	if err != nil {
		return nil, err
	}
	cni := libcni.NewCNIConfigWithCacheDir([]string{cniBinDir}, cniCacheDir, nil)
	rt := &libcni.RuntimeConf{ContainerID: id, NetNS: netns, IfName: "eth0"}
	switch verb {
	case "add":
		result, err := cni.AddNetworkList(ctx, list, rt)
		if err != nil {
			return nil, cniError(err)
		}
		return cniAddrs(result)
	case "del":
		return nil, cniError(cni.DelNetworkList(ctx, list, rt))
	}
	return nil, fmt.Errorf("unknown CNI verb %q: use add or del", verb)
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

func cniAddrs(result types.Result) ([]string, error) {
	r, err := cni100.NewResultFromResult(result)
	if err != nil {
		return nil, err
	}
	addrs := make([]string, len(r.IPs))
	for i, ip := range r.IPs {
		addrs[i] = ip.Address.IP.String()
	}
	return addrs, nil
}
