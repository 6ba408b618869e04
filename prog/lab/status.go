package lab

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"weft/prog/api"
	"weft/prog/lab/node"
)

// Status is the current state of a lab.
type Status struct {
	Name  string       `json:"name"`
	Hosts []HostStatus `json:"hosts"`
	Cut   [][2]string  `json:"cut"` // pairs of hosts, or of their NATs, between which the underlay drops all frames
}

// HostStatus is the state of a host. Its pids are those in the host's own pid namespace.
type HostStatus struct {
	Name       string            `json:"name"`
	Up         bool              `json:"up"`
	Underlay   []string          `json:"underlay"`
	NAT        *NATStatus        `json:"nat,omitempty"`
	Agent      []int             `json:"agent"`
	Datapath   []int             `json:"datapath"`
	Containers []ContainerStatus `json:"containers"`
}

// NATStatus is the NAT that a host is behind. The host's underlay address is then the inner one.
type NATStatus struct {
	Name  string       `json:"name"`
	Kind  node.NATKind `json:"kind"`
	Outer string       `json:"outer"` // its outer address
}

// ContainerStatus is the state of a container. A container that is not attached has no addresses.
type ContainerStatus struct {
	Name  string   `json:"name"`
	Addrs []string `json:"addrs"`
}

// Status asks all nodes for their state.
func (l *Lab) Status(ctx context.Context) (Status, error) {
	s := Status{Name: l.opts.Name, Hosts: make([]HostStatus, l.opts.Hosts), Cut: [][2]string{}}
	root, err := l.node(UnderlayName).Info(ctx)
	if err != nil {
		return s, l.explain(UnderlayName, err)
	}
	for _, c := range root.Cuts {
		s.Cut = append(s.Cut, [2]string{c.A, c.B})
	}
	for i, host := range l.Hosts() {
		owner, nat, err := l.natOf(ctx, host)
		if err != nil {
			return s, err
		}
		up, err := l.uplinkBehind(host, owner)
		if err != nil {
			return s, err
		}
		// Use empty lists, so that the JSON has no null.
		h := HostStatus{Name: host, Underlay: []string{}, Agent: []int{}, Datapath: []int{}, Containers: []ContainerStatus{}}
		for _, a := range up.Addrs {
			h.Underlay = append(h.Underlay, a.Addr().String())
		}
		if owner != "" {
			h.NAT = &NATStatus{node.RouterOf(owner), nat.Kind, nat.Outer.String()}
		}
		if slices.ContainsFunc(root.Children, func(c node.Child) bool { return c.Name == host }) {
			if err := l.hostStatus(ctx, &h); err != nil {
				return s, err
			}
		}
		s.Hosts[i] = h
	}
	return s, nil
}

func (l *Lab) hostStatus(ctx context.Context, h *HostStatus) error {
	info, err := l.node(h.Name).Info(ctx)
	if err != nil {
		return l.explain(h.Name, err)
	}
	h.Up = true
	h.Agent = append(h.Agent, info.Processes["agent"]...)
	h.Datapath = append(h.Datapath, info.Processes["datapath"]...)
	for _, child := range info.Children {
		addrs, err := l.Addrs(ctx, h.Name+"/"+child.Name)
		if err != nil {
			return err
		}
		h.Containers = append(h.Containers, ContainerStatus{child.Name, addrs})
	}
	return nil
}

// Report asks the agent on a host for its whole state. Unlike weft report in a node, it starts no process, which would
// slow down what a test measures while it waits.
func (l *Lab) Report(ctx context.Context, host string) (r api.Report, err error) {
	root, err := l.node(host).Root()
	if err != nil {
		return r, l.explain(host, err)
	}
	return api.NewClient(root + api.DefaultSocket).Report(ctx)
}

// Addrs returns the addresses of a container's or host's eth0, without link-local ones, IPv4 first.
func (l *Lab) Addrs(ctx context.Context, target string) ([]string, error) {
	info, err := l.node(target).Info(ctx)
	if err != nil {
		return nil, l.explain(target, err)
	}
	addrs := append([]string{}, info.Addrs["eth0"]...)
	slices.SortStableFunc(addrs, func(a, b string) int {
		return strings.Count(a, ":") - strings.Count(b, ":")
	})
	return addrs, nil
}

// Print writes the status as a table.
func (s Status) Print(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "NAME\tADDRESSES\tAGENT\tDATAPATH")
	for _, h := range s.Hosts {
		if !h.Up {
			fmt.Fprintf(tw, "%s\tpowered off\t-\t-\n", h.Name)
			continue
		}
		addrs := joinOr(h.Underlay, "-")
		if h.NAT != nil {
			addrs += fmt.Sprintf(" (%s NAT: %s)", h.NAT.Kind, h.NAT.Outer)
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\n", h.Name, addrs, pids(h.Agent), pids(h.Datapath))
		for _, c := range h.Containers {
			fmt.Fprintf(tw, "%s/%s\t%s\t\t\n", h.Name, c.Name, joinOr(c.Addrs, "not attached"))
		}
	}
	for _, c := range s.Cut {
		fmt.Fprintf(tw, "link %s %s\tcut\t\t\n", c[0], c[1])
	}
	return tw.Flush()
}

func joinOr(list []string, none string) string {
	if len(list) == 0 {
		return none
	}
	return strings.Join(list, " ")
}

func pids(list []int) string {
	text := make([]string, len(list))
	for i, pid := range list {
		text[i] = strconv.Itoa(pid)
	}
	return joinOr(text, "-")
}
