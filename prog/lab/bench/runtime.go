package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/vishvananda/netns"
)

// cniRuntime calls CNI like a container runtime. It reads commands, one per line: "add" attaches another
// container, "add NAMESPACE NAME UID" attaches another pod, "del" detaches the last container. It answers
// each command with its duration. args are CONF, a folder with a conflist, and BIN, a folder with plugins.
func cniRuntime(ctx context.Context, args []string) error {
	files, err := libcni.ConfFiles(args[0], []string{".conflist"})
	if err != nil || len(files) != 1 {
		return fmt.Errorf("want a conflist in %s: found %v, error %w", args[0], files, err)
	}
	list, err := libcni.NetworkConfFromFile(files[0])
	if err != nil {
		return err
	}
	var (
		cni      = libcni.NewCNIConfigWithCacheDir([]string{args[1]}, "/run/cni", nil)
		spaces   []netns.NsHandle // the namespaces stay open, since freeing them would slow down the next call
		attached int
		out      = json.NewEncoder(os.Stdout)
	)
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		words := strings.Fields(in.Text())
		add := words[0] == "add"
		if add {
			attached++
		}
		if attached > len(spaces) {
			ns, err := newNetns()
			if err != nil {
				return err
			}
			spaces = append(spaces, ns)
		}
		rt := &libcni.RuntimeConf{
			ContainerID: fmt.Sprintf("bench-%d", attached), IfName: "eth0",
			NetNS: fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(spaces[attached-1])),
		}
		if len(words) == 4 {
			rt.Args = [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", words[1]}, {"K8S_POD_NAME", words[2]}, {"K8S_POD_UID", words[3]}}
		}
		start := time.Now()
		if add {
			_, err = cni.AddNetworkList(ctx, list, rt)
		} else {
			err = cni.DelNetworkList(ctx, list, rt)
			attached--
		}
		a := answer{Milliseconds: time.Since(start).Seconds() * 1e3}
		if err != nil {
			a.Error = err.Error()
		}
		if err := out.Encode(a); err != nil {
			return err
		}
	}
	return nil
}

// newNetns creates a network namespace.
func newNetns() (netns.NsHandle, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	own, err := netns.Get()
	if err != nil {
		return -1, err
	}
	defer own.Close()
	ns, err := netns.New() // New also moves this thread into the namespace
	if err != nil {
		return -1, err
	}
	return ns, netns.Set(own)
}
