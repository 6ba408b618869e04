package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"weft/mesh/directory"
	"weft/prog/api"
	"weft/prog/cni"
	"weft/prog/docker"
	"weft/prog/words"
)

// container is a container given to attach or detach. Its addresses are allocated to id. netns is the
// path of its network namespace, or empty if the namespace is gone.
type container struct {
	id, netns, name string
}

func (a *app) attach() *cobra.Command {
	var iface, name, namespace string
	var labels, ports []string
	var all bool
	cmd := &cobra.Command{
		Use: "attach [ADDRESS...] CONTAINER", Short: "attach a running container or process to the network", Args: cobra.MinimumNArgs(1),
		Long: `Attaches CONTAINER: a PID, the path of a network namespace, or the name or id of a Docker
container. It prints the addresses. Only traffic to the network's own addresses uses the new
interface, unless --default is given. Published ports keep working, and detach leaves the
container's other routes as they were. The attachment ends with the container: after
"docker restart", attach it again. With ADDRESS, the container gets that address, if it is
free anywhere in the network: IPv4, IPv6, or one of each if they belong together.` + exitHelp,
		Example: "  weft attach 10.32.0.7 web",
		RunE: func(cmd *cobra.Command, args []string) error {
			asked, err := askedAddresses(args[:len(args)-1])
			if err != nil {
				return words.Misused(err)
			}
			c, err := findContainer(cmd.Context(), args[len(args)-1])
			if err != nil {
				return err
			}
			if err := checkDocker(c.name); err != nil && name == "" {
				return words.Misused(err)
			}
			at := cni.Attachment{
				AttachRequest: api.AttachRequest{
					ContainerID: c.id, Interface: iface, Source: api.SourceAttach,
					Name: cmp.Or(name, c.name), Namespace: namespace, Addresses: asked,
				},
				Netns: c.netns, Default: all, Beside: true,
			}
			if at.Labels, err = parseLabels(labels); err != nil {
				return words.Misused(err)
			}
			if at.Ports, err = parsePorts(ports); err != nil {
				return words.Misused(err)
			}
			done, err := cni.Attach(cmd.Context(), a.client(), at)
			if err != nil {
				return err
			}
			return a.show(done.AttachReply, func() {
				for _, addr := range done.Addresses {
					fmt.Fprintln(a.out, addr)
				}
			})
		},
	}
	cmd.Flags().StringVar(&iface, "interface", "ethwe", "the interface's name inside the container")
	cmd.Flags().StringVar(&name, "name", "", "the endpoint's name, NAME.DOMAIN in DNS (default: the Docker container's)")
	cmd.Flags().StringVar(&namespace, "namespace", "", "the endpoint's namespace: NAME.NAMESPACE.DOMAIN in DNS")
	cmd.Flags().StringArrayVar(&labels, "label", nil, "KEY=VALUE; repeatable")
	cmd.Flags().StringArrayVar(&ports, "port", nil, "a named port, NAME=NUMBER[/tcp|udp|sctp], for SRV records; repeatable")
	cmd.Flags().BoolVar(&all, "default", false, "route all traffic of the container through the interface until the container is detached (connections from another network's address keep that network's route)")
	return cmd
}

// checkDocker reports why a Docker container's name cannot be its DNS name.
func checkDocker(name string) error {
	if err := directory.CheckName(strings.ToLower(name)); name != "" && err != nil {
		return fmt.Errorf("the container's Docker name cannot be its DNS name: %w: give another with --name", err)
	}
	return nil
}

func parseLabels(list []string) (map[string]string, error) {
	if len(list) == 0 {
		return nil, nil
	}
	out := map[string]string{}
	for _, l := range list {
		key, value, ok := strings.Cut(l, "=")
		if !ok || key == "" {
			return nil, fmt.Errorf("--label %s: want KEY=VALUE", l)
		}
		out[key] = value
	}
	return out, nil
}

func parsePorts(list []string) (out []api.Port, err error) {
	for _, p := range list {
		name, rest, _ := strings.Cut(p, "=")
		number, proto, _ := strings.Cut(rest, "/")
		n, err := strconv.ParseUint(number, 10, 16)
		if err != nil {
			return nil, fmt.Errorf("--port %s: want NAME=NUMBER or NAME=NUMBER/udp, such as http=80", p)
		}
		out = append(out, api.Port{Name: name, Protocol: cmp.Or(proto, "tcp"), Number: uint16(n)})
	}
	return out, nil
}

func (a *app) detach() *cobra.Command {
	var iface string
	cmd := &cobra.Command{
		Use: "detach CONTAINER", Short: "detach a container that attach attached", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client := a.client()
			r, err := client.Report(cmd.Context())
			if err != nil {
				return err
			}
			all, err := chosen(cmd.Context(), slices.Concat(r.Endpoints, r.Unattached), args)
			if err != nil {
				return err
			}
			all = slices.DeleteFunc(all, func(e api.Endpoint) bool { return e.Interface != iface })
			switch len(all) {
			case 0:
				return fmt.Errorf("%s is not attached here with interface %s (`weft ps` lists the attached containers)", args[0], iface)
			case 1:
				return a.did(cni.Detach(cmd.Context(), client, api.EndpointRef{ContainerID: all[0].ContainerID, Interface: iface}))
			}
			return fmt.Errorf("%s matches %s: give the id of one container (`weft ps` lists them)", args[0], words.Count(len(all), "container"))
		},
	}
	cmd.Flags().StringVar(&iface, "interface", "ethwe", "the interface's name inside the container")
	return cmd
}

func (a *app) ps() *cobra.Command {
	return &cobra.Command{
		Use: "ps [CONTAINER...]", Short: "list the containers attached to this host",
		Long: "Lists the containers attached to this host, or only those given. CONTAINER is an id or its beginning,\na name, a PID or the path of a network namespace. The command fails if a given container is not attached." + exitHelp,
		RunE: func(cmd *cobra.Command, words []string) error {
			r, err := a.client().Report(cmd.Context())
			if err != nil {
				return err
			}
			if len(words) > 0 {
				all, err := chosen(cmd.Context(), slices.Concat(r.Endpoints, r.Unattached), words)
				if err != nil {
					return err
				}
				attached := len(all)
				if i := slices.IndexFunc(all, func(e api.Endpoint) bool { return len(e.Addresses) == 0 }); i >= 0 {
					attached = i
				}
				r.Endpoints, r.Unattached = all[:attached], all[attached:]
			}
			return a.show(r.Endpoints, func() {
				t := newTable(a.out)
				t.row("CONTAINER", "INTERFACE", "NAME", "ADDRESSES", "BY")
				for _, e := range r.Endpoints {
					name := e.Name
					if e.Namespace != "" {
						name = e.Namespace + "/" + name
					}
					addresses := join(e.Addresses, " ")
					if e.Lost {
						addresses += " (lost)"
					}
					if e.Withdrawn {
						name += " (withdrawn)"
					}
					t.row(shortID(e.ContainerID), e.Interface, orDash(name), addresses, e.Source)
				}
				for _, e := range r.Unattached {
					t.row(shortID(e.ContainerID), e.Interface, orDash(e.Name), "-", "none: the container was restarted (attach it again)")
				}
				t.flush()
			})
		},
	}
}

// shortID shortens a container id to 12 characters, as Docker does. Only hashes are shortened: other
// ids may differ only after the 12th character.
func shortID(id string) string {
	if len(id) == 64 && strings.Trim(id, "0123456789abcdef") == "" {
		return id[:12]
	}
	return id
}

// findContainer finds the network namespace of an argument: a PID, a path or a Docker container.
func findContainer(ctx context.Context, word string) (container, error) {
	if pid, err := strconv.Atoi(word); err == nil {
		return namespaceOf(container{netns: fmt.Sprintf("/proc/%d/ns/net", pid)}, fmt.Sprintf("no process has the PID %d", pid))
	}
	if strings.Contains(word, "/") {
		return namespaceOf(container{netns: word}, word+" does not exist")
	}
	return dockerContainer(ctx, docker.Socket, word)
}

// namespaceOf uses the inode of a namespace as the container's id. So a PID and a path of the same
// namespace are the same container.
func namespaceOf(c container, missing string) (container, error) {
	link, err := os.Readlink(c.netns)
	if err != nil || !strings.HasPrefix(link, "net:") {
		info, statErr := os.Stat(c.netns)
		if statErr != nil {
			return c, errors.New(missing + ": name a PID, the path of a network namespace, or a Docker container")
		}
		stat, ok := info.Sys().(*syscall.Stat_t)
		if !ok || !info.Mode().IsRegular() {
			return c, fmt.Errorf("%s is no network namespace", c.netns)
		}
		link = fmt.Sprintf("net:[%d]", stat.Ino) // for a bind mount, build the text of the link in /proc/PID/ns
	}
	c.id = "netns-" + strings.Trim(strings.TrimPrefix(link, "net:"), "[]")
	return c, nil
}

// dockerContainer looks up a container in Docker.
func dockerContainer(ctx context.Context, socket, name string) (container, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	c, err := docker.Inspect(ctx, socket, name)
	_, silent := errors.AsType[*url.Error](err)
	switch {
	case silent:
		return container{}, fmt.Errorf("%q is neither a PID nor a path, and Docker does not answer on %s (%s): is Docker running, and may you use its socket?", name, socket, words.Cause(err))
	case errors.Is(err, docker.ErrNone):
		return container{}, fmt.Errorf("docker has no container %q (`docker ps`)", name)
	case err != nil:
		return container{}, err
	case c.State.Pid == 0:
		return container{}, fmt.Errorf("docker container %s is not running: start the container first", name)
	}
	return container{id: c.ID, netns: fmt.Sprintf("/proc/%d/ns/net", c.State.Pid), name: filepath.Base(c.Name)}, nil
}
