package lab

import (
	"context"
	"errors"
	"time"

	"github.com/spf13/cobra"

	"weft/prog/lab/node"
)

// natChange holds the flags of weft lab nat.
type natChange struct {
	kind, behind string
	udpTimeout   time.Duration
}

// noNAT is the kind that removes a host's NAT.
const noNAT = "none"

func natCommand(name *string) *cobra.Command {
	var c natChange
	cmd := &cobra.Command{
		Use: "nat HOST", Short: "put a host behind NAT, or remove its NAT",
		Long: "Put a host behind NAT, or remove its NAT. The NAT is a router, nat-HOST: its outer address is the host's\n" +
			"underlay IPv4 address, and the host gets an inner address in 192.168.N.0/24, and no IPv6. The host's connections\n" +
			"break, as if its cable had been moved. The NAT stays when the host reboots.\n\n" +
			"The kinds differ for UDP, in the terms of RFC 4787. Of TCP, each lets in only answers. None does hairpinning.\n" +
			"  full-cone   endpoint-independent mapping and filtering: whoever sends to the outer port reaches the host\n" +
			"  restricted  endpoint-independent mapping, address and port-dependent filtering: only answers get in\n" +
			"  symmetric   address and port-dependent mapping, to random ports, and such filtering\n" +
			"  none        remove the NAT, or leave the NAT of another host",
		Example: "  weft lab nat h2 --kind symmetric --udp-timeout 10s\n  weft lab nat h3 --behind h2\n" +
			"  weft lab exec nat-h2 -- conntrack -L\n  weft lab nat h3 --kind none",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := c.check(); err != nil {
				return err
			}
			l, err := Open(*name)
			if err != nil {
				return err
			}
			return c.apply(cmd.Context(), l, args[0])
		},
	}
	f := cmd.Flags()
	f.StringVar(&c.kind, "kind", "", "full-cone, restricted, symmetric or none")
	f.StringVar(&c.behind, "behind", "", "a host with NAT: use the same NAT")
	f.DurationVar(&c.udpTimeout, "udp-timeout", 0, "end idle UDP mappings after this time (0: the kernel's default, 30 s, or 2 minutes with answers)")
	return cmd
}

func (c natChange) check() error {
	switch {
	case (c.kind == "") == (c.behind == ""):
		return errors.New("lab: want either --kind or --behind: a NAT has one kind for all hosts behind it")
	case c.udpTimeout != 0 && (c.kind == "" || c.kind == noNAT):
		return errors.New("lab: --udp-timeout is for a new NAT: add --kind full-cone, restricted or symmetric")
	}
	return nil
}

func (c natChange) apply(ctx context.Context, l *Lab, host string) error {
	switch {
	case c.behind != "":
		return l.JoinNAT(ctx, host, c.behind)
	case c.kind == noNAT:
		return l.RemoveNAT(ctx, host)
	}
	return l.SetNAT(ctx, host, node.NATKind(c.kind), c.udpTimeout)
}
