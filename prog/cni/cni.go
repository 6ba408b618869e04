// Package cni implements weft-cni, the CNI plugin (CNI spec 1.1.0; results of 0.4.0 and 1.0.0).
// It configures the container's network namespace itself, and asks the agent over the control
// socket for the addresses and the host side.
//
// The plugin is one process per operation and keeps no state, with one exception. If no agent runs,
// DEL removes the link at once, and queues the release of its address in a file, which the agent reads
// when it starts.
package cni

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"weft/prog/api"
	"weft/router/endpoint"
)

// Versions are the versions of the CNI spec that the plugin supports.
var Versions = version.PluginSupports("0.4.0", "1.0.0", "1.1.0")

// config is the plugin's part of the network configuration.
type config struct {
	types.NetConf
	Socket   string `json:"socket"`   // the path of the agent's socket; default api.DefaultSocket
	StateDir string `json:"stateDir"` // the folder of queued releases; default /var/lib/weft
	// Labels of all endpoints of this network. A container's own labels override them.
	Labels map[string]string `json:"labels"`
	// The addresses that the container requests, by the capability "ips" or by args (CNI conventions).
	RuntimeConfig struct {
		IPs []string `json:"ips"`
	} `json:"runtimeConfig"`
	Args struct {
		CNI struct {
			IPs    []string `json:"ips"`
			Labels []struct {
				Key   string `json:"key"`
				Value string `json:"value"`
			} `json:"labels"`
			// Fields that the CNI conventions do not define.
			Name      string     `json:"name"`
			Namespace string     `json:"namespace"`
			Ports     []api.Port `json:"ports"`
		} `json:"cni"`
	} `json:"args"`
}

// describe adds name, namespace, labels and ports of a container: from Kubernetes' arguments, else
// from args.
func (c config) describe(k8s arguments, req *api.AttachRequest) {
	asked := c.Args.CNI
	req.Name = cmp.Or(string(k8s.K8S_POD_NAME), asked.Name)
	req.Namespace = cmp.Or(string(k8s.K8S_POD_NAMESPACE), asked.Namespace)
	req.PodUID = string(k8s.K8S_POD_UID)
	req.Ports = asked.Ports
	if len(c.Labels)+len(asked.Labels) > 0 {
		req.Labels = map[string]string{}
	}
	maps.Copy(req.Labels, c.Labels)
	for _, l := range asked.Labels {
		req.Labels[l.Key] = l.Value
	}
}

// arguments holds the parts of CNI_ARGS that Kubernetes sets for a pod.
type arguments struct {
	types.CommonArgs
	K8S_POD_NAME      types.UnmarshallableString // field names are the keys of CNI_ARGS
	K8S_POD_NAMESPACE types.UnmarshallableString
	K8S_POD_UID       types.UnmarshallableString
	IP                types.UnmarshallableString // the requested address, or two, separated by a comma
}

// asked returns the addresses that a container requests: by the capability "ips", by args or by
// CNI_ARGS.
func asked(conf config, args arguments) ([]netip.Addr, error) {
	list := slices.Concat(conf.RuntimeConfig.IPs, conf.Args.CNI.IPs)
	if args.IP != "" {
		list = append(list, strings.Split(string(args.IP), ",")...)
	}
	addrs, err := ParseAddresses(list)
	if err != nil {
		return nil, types.NewError(types.ErrInvalidNetworkConfig, "invalid requested address", err.Error())
	}
	return addrs, nil
}

// patience limits how long the plugin waits for the agent, so that an operation ends within 10 s.
// Runtimes only give up after several minutes, and pods would wait for that.
const patience = 9 * time.Second

// Main runs the operation that CNI_COMMAND names.
func Main() {
	skel.PluginMainFuncs(skel.CNIFuncs{Add: add, Del: del, Check: check, GC: collect, Status: status}, Versions,
		"weft-cni: attaches containers to the Weft network (CNI "+strings.Join(Versions.SupportedVersions(), ", ")+")")
}

func parse(stdin []byte) (config, *api.Client, error) {
	c := config{Socket: api.DefaultSocket, StateDir: "/var/lib/weft"}
	if err := json.Unmarshal(stdin, &c); err != nil {
		return c, nil, types.NewError(types.ErrDecodingFailure, "invalid network configuration: not JSON", err.Error())
	}
	if err := version.ParsePrevResult(&c.NetConf); err != nil {
		return c, nil, types.NewError(types.ErrDecodingFailure, "invalid prevResult", err.Error())
	}
	return c, api.NewClient(c.Socket).Within(patience), nil
}

// add attaches the container (CNI ADD).
func add(args *skel.CmdArgs) error {
	conf, client, err := parse(args.StdinData)
	if err != nil {
		return err
	}
	var k8s arguments
	if err := types.LoadArgs(args.Args, &k8s); err != nil && args.Args != "" {
		k8s = arguments{} // CNI_ARGS are optional: ignore keys that we do not know
	}
	result, err := chain(conf)
	if err != nil {
		return err
	}
	addrs, err := asked(conf, k8s)
	if err != nil {
		return err
	}
	ctx := context.Background()
	at := Attachment{
		AttachRequest: api.AttachRequest{
			ContainerID: args.ContainerID, Interface: args.IfName, Source: api.SourceCNI, Network: conf.Name, Addresses: addrs,
		},
		Netns: args.Netns, Default: true,
	}
	conf.describe(k8s, &at.AttachRequest)
	done, err := Attach(ctx, client, at)
	if err != nil {
		return cniError(err)
	}
	extend(result, args, done)
	if err := types.PrintResult(result, conf.CNIVersion); err != nil { // the runtime does not get the result: undo the attachment
		return cniError(errors.Join(err, Detach(ctx, client, api.EndpointRef{ContainerID: args.ContainerID, Interface: args.IfName})))
	}
	return nil
}

// chain returns the result of the previous plugin, or an empty result if there was none.
func chain(conf config) (*current.Result, error) {
	if conf.PrevResult == nil {
		return &current.Result{CNIVersion: current.ImplementedSpecVersion}, nil
	}
	prev, err := current.NewResultFromResult(conf.PrevResult)
	if err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "invalid prevResult", err.Error())
	}
	return prev, nil
}

// extend adds the attached interface to a result.
func extend(result *current.Result, args *skel.CmdArgs, done Attached) {
	host := endpoint.HostLink(args.ContainerID, args.IfName)
	result.Interfaces = append(result.Interfaces,
		&current.Interface{Name: host, Mac: done.HostMAC.String(), Mtu: done.MTU},
		&current.Interface{Name: args.IfName, Mac: done.ContainerMAC.String(), Mtu: done.MTU, Sandbox: args.Netns})
	if r := done.Resolver; r != nil {
		result.DNS = types.DNS{Nameservers: r.Servers, Domain: r.Domain, Search: r.Search, Options: r.Options}
	}
	index := len(result.Interfaces) - 1
	for _, a := range done.Addresses {
		gateway, all := net.ParseIP(endpoint.Gateway4.String()), "0.0.0.0/0"
		if a.Is6() {
			gateway, all = net.ParseIP(endpoint.Gateway6.String()), "::/0"
		}
		_, dst, _ := net.ParseCIDR(all) // a constant is always valid
		result.IPs = append(result.IPs, &current.IPConfig{
			Interface: &index, Gateway: gateway,
			Address: net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())},
		})
		result.Routes = append(result.Routes, &types.Route{Dst: *dst, GW: gateway})
	}
}

// del detaches the container (CNI DEL). It also succeeds if the endpoint is gone already, or if no agent
// runs.
func del(args *skel.CmdArgs) error {
	conf, client, err := parse(args.StdinData)
	if err != nil {
		return err
	}
	ctx := context.Background()
	ref := api.EndpointRef{ContainerID: args.ContainerID, Interface: args.IfName}
	err = Detach(ctx, client, ref)
	if _, down := errors.AsType[*api.NotRunningError](err); down {
		err = queue(conf.StateDir, ref)
	}
	return cniError(err)
}

// queue atomically writes a file that makes the agent release the endpoint when the agent starts next.
func queue(stateDir string, ref api.EndpointRef) error {
	dir := filepath.Join(stateDir, "releases")
	if _, err := os.Stat(stateDir); errors.Is(err, os.ErrNotExist) {
		return nil // this host was reset: there is nothing to release
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("queueing the release of the address: %w", err)
	}
	data, err := json.Marshal(ref)
	if err != nil {
		return fmt.Errorf("queueing the release of the address: %w", err)
	}
	sum := sha256.Sum256([]byte(ref.Key()))
	name := filepath.Join(dir, hex.EncodeToString(sum[:16]))
	if err := os.WriteFile(name+".tmp", data, 0o600); err != nil {
		return fmt.Errorf("queueing the release of the address: %w", err)
	}
	if err := os.Rename(name+".tmp", name+".json"); err != nil {
		return fmt.Errorf("queueing the release of the address: %w", err)
	}
	return nil
}

// check compares the container's interface with what was attached (CNI CHECK).
func check(args *skel.CmdArgs) error {
	conf, client, err := parse(args.StdinData)
	if err != nil {
		return err
	}
	if conf.PrevResult == nil {
		return types.NewError(types.ErrInvalidNetworkConfig, "missing prevResult: CHECK needs the result of ADD", "")
	}
	prev, err := current.NewResultFromResult(conf.PrevResult)
	if err != nil {
		return types.NewError(types.ErrDecodingFailure, "invalid prevResult", err.Error())
	}
	ctx := context.Background()
	e, err := client.Endpoint(ctx, api.EndpointRef{ContainerID: args.ContainerID, Interface: args.IfName})
	if err != nil {
		return cniError(err)
	}
	for _, a := range e.Addresses {
		if !inResult(prev, a) {
			return types.NewError(types.ErrInternal, fmt.Sprintf("%s has the address %v according to the agent, but not in the result of ADD", args.IfName, a), "")
		}
	}
	return cniError(endpoint.Check(e.HostLink, args.Netns, args.IfName, e.Addresses))
}

func inResult(r *current.Result, a netip.Addr) bool {
	for _, ip := range r.IPs {
		if have, ok := netip.AddrFromSlice(ip.Address.IP); ok && have.Unmap() == a {
			return true
		}
	}
	return false
}

// validAttachments is the key of the attachments that GC keeps (CNI spec 1.1.0, GC).
const validAttachments = "cni.dev/valid-attachments"

// collect detaches containers that the runtime no longer lists (CNI GC).
func collect(args *skel.CmdArgs) error {
	conf, client, err := parse(args.StdinData)
	if err != nil {
		return err
	}
	var given map[string]json.RawMessage
	if err := json.Unmarshal(args.StdinData, &given); err != nil || given[validAttachments] == nil {
		return nil // without this list, GC would detach all containers; libcni itself calls DEL for the attachments in its cache
	}
	req := api.CollectRequest{Network: conf.Name}
	for _, a := range conf.ValidAttachments {
		req.Valid = append(req.Valid, api.EndpointRef{ContainerID: a.ContainerID, Interface: a.IfName})
	}
	ctx := context.Background()
	return cniError(client.Collect(ctx, req))
}

// codeUnavailable is the code for "plugin not available" (CNI spec 1.1.0, STATUS).
const codeUnavailable = 50

// status reports whether containers can be attached (CNI STATUS).
func status(args *skel.CmdArgs) error {
	_, client, err := parse(args.StdinData)
	if err != nil {
		return err
	}
	ctx := context.Background()
	if err := client.Ready(ctx); err != nil {
		return types.NewError(codeUnavailable, "Weft cannot attach containers on this host at present", err.Error())
	}
	return nil
}

// cniError converts an error to an error with a code of the CNI spec. No other function does that.
func cniError(err error) error {
	if err == nil {
		return nil
	}
	code, msg := types.ErrInternal, "Weft failed"
	_, down := errors.AsType[*api.NotRunningError](err)
	_, silent := errors.AsType[*api.SilentError](err)
	answer, _ := errors.AsType[*api.Error](err)
	switch {
	case down:
		code, msg = types.ErrTryAgainLater, "Weft does not run on this host"
	case silent:
		code, msg = types.ErrTryAgainLater, "Weft does not answer on this host"
	case answer != nil && answer.Code == api.CodeNoSpace:
		code, msg = types.ErrTryAgainLater, "Weft has no free address on this host at present"
	case answer != nil && answer.Code == api.CodeNotReady:
		code, msg = types.ErrTryAgainLater, "Weft is not ready on this host yet"
	case answer != nil && answer.Code == api.CodeBadRequest:
		code, msg = types.ErrInvalidNetworkConfig, "Weft cannot attach the container as requested"
	case answer != nil && answer.Code == api.CodeNotFound:
		code, msg = types.ErrUnknownContainer, "the container is not attached"
	case errors.Is(err, endpoint.ErrNoNamespace):
		code, msg = types.ErrInvalidEnvironmentVariables, "CNI_NETNS names no network namespace"
	}
	return types.NewError(code, msg, err.Error())
}
