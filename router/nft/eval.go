package nft

import (
	"bytes"
	"fmt"
	"net/netip"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Packet is what rules look at.
type Packet struct {
	Src, Dst         netip.Addr
	Protocol         byte
	SrcPort, DstPort uint16
	Iif, Oif         string
	Reply            bool // conntrack says that it answers
}

// tables are rules and sets, of a Program or of the kernel.
type tables interface {
	rules(chain string) ([][]expr.Any, error)
	// find looks a key up; of a map it says to which chain that leads.
	find(set string, key []byte) (chain string, found bool, err error)
}

// machine runs rules on a packet as the kernel does (nft_do_chain).
type machine struct {
	tables
	packet Packet
	// passed are the chains that it came through.
	passed []string
	data   [20 * 4]byte // registers of 32 bits; those of 128 bits are four of them
}

// maxDepth is more than any program needs; a ring of jumps cannot be loaded.
const maxDepth = 16

// run judges the packet by a chain, and all that it leads to. The kind is VerdictContinue
// where the chain has no more to say.
func (m *machine) run(chain string, depth int) (expr.VerdictKind, error) {
	if depth > maxDepth {
		return 0, fmt.Errorf("nftables: chain %s: jumps lead too deep", chain)
	}
	m.passed = append(m.passed, chain)
	rules, err := m.rules(chain)
	if err != nil {
		return 0, err
	}
	for _, rule := range rules {
		v, err := m.rule(rule)
		if err != nil {
			return 0, fmt.Errorf("nftables: chain %s: %w", chain, err)
		}
		switch {
		case v == nil:
			continue
		case v.Kind == expr.VerdictReturn:
			return expr.VerdictContinue, nil
		case v.Kind == expr.VerdictGoto:
			return m.run(v.Chain, depth+1)
		case v.Kind == expr.VerdictJump:
			if kind, err := m.run(v.Chain, depth+1); err != nil || kind != expr.VerdictContinue {
				return kind, err
			}
		default:
			return v.Kind, nil
		}
	}
	return expr.VerdictContinue, nil
}

// rule runs one rule: its verdict, or nil where it does not fit or has none.
func (m *machine) rule(exprs []expr.Any) (*expr.Verdict, error) {
	for _, e := range exprs {
		v, fits, err := m.step(e)
		if err != nil || v != nil || !fits {
			return v, err
		}
	}
	return nil, nil
}

// reg is where a register's bytes begin.
func (m *machine) reg(number uint32) []byte {
	at := int(number-unix.NFT_REG32_00) * 4
	if number < unix.NFT_REG32_00 {
		at = int(number-unix.NFT_REG_1) * 16
	}
	return m.data[min(max(at, 0), len(m.data)):]
}

func (m *machine) step(e expr.Any) (v *expr.Verdict, fits bool, err error) {
	switch e := e.(type) {
	case *expr.Counter, *expr.Limit, *expr.Log:
		return nil, true, nil
	case *expr.Verdict:
		return e, true, nil
	case *expr.Meta:
		return nil, true, m.meta(e)
	case *expr.Payload:
		return nil, m.payload(e), nil
	case *expr.Ct:
		return nil, true, m.ct(e)
	case *expr.Bitwise:
		src, dst := m.reg(e.SourceRegister), m.reg(e.DestRegister)
		for i := range min(int(e.Len), len(src), len(dst), len(e.Mask), len(e.Xor)) {
			dst[i] = src[i]&e.Mask[i] ^ e.Xor[i]
		}
		return nil, true, nil
	case *expr.Cmp:
		equal := bytes.HasPrefix(m.reg(e.Register), e.Data)
		return nil, equal == (e.Op == expr.CmpOpEq), nil
	case *expr.Lookup:
		chain, found, err := m.find(e.SetName, m.reg(e.SourceRegister))
		if err != nil || !found {
			return nil, false, err
		}
		if chain != "" {
			return jump(chain), true, nil
		}
		return nil, true, nil
	}
	return nil, false, fmt.Errorf("%T is not understood", e)
}

func (m *machine) meta(e *expr.Meta) error {
	switch e.Key {
	case expr.MetaKeyNFPROTO:
		family := byte(unix.NFPROTO_IPV6)
		if m.packet.Src.Is4() {
			family = unix.NFPROTO_IPV4
		}
		copy(m.reg(e.Register), []byte{family, 0, 0, 0})
	case expr.MetaKeyL4PROTO:
		copy(m.reg(e.Register), []byte{m.packet.Protocol, 0, 0, 0})
	case expr.MetaKeyIIFNAME:
		m.name(e.Register, m.packet.Iif)
	case expr.MetaKeyOIFNAME:
		m.name(e.Register, m.packet.Oif)
	default:
		return fmt.Errorf("meta key %d is not understood", e.Key)
	}
	return nil
}

func (m *machine) name(register uint32, link string) {
	padded := make([]byte, unix.IFNAMSIZ)
	copy(padded, link)
	copy(m.reg(register), padded)
}

// payload reads from the headers; a packet without ports has none to read.
func (m *machine) payload(e *expr.Payload) bool {
	var header []byte
	switch p := m.packet; {
	case e.Base == expr.PayloadBaseTransportHeader:
		if p.Protocol != unix.IPPROTO_TCP && p.Protocol != unix.IPPROTO_UDP && p.Protocol != unix.IPPROTO_SCTP {
			return false
		}
		header = append(binaryutil.BigEndian.PutUint16(p.SrcPort), binaryutil.BigEndian.PutUint16(p.DstPort)...)
	case p.Src.Is4():
		header = append(make([]byte, saddr.off4), append(p.Src.AsSlice(), p.Dst.AsSlice()...)...)
	default:
		header = append(make([]byte, saddr.off6), append(p.Src.AsSlice(), p.Dst.AsSlice()...)...)
	}
	end := int(e.Offset + e.Len)
	if end > len(header) {
		return false
	}
	value := make([]byte, int(e.Len)+padding(int(e.Len)))
	copy(value, header[e.Offset:end])
	copy(m.reg(e.DestRegister), value)
	return true
}

func (m *machine) ct(e *expr.Ct) error {
	value := make([]byte, 4)
	switch e.Key {
	case expr.CtKeyDIRECTION:
		if m.packet.Reply {
			value[0] = 1
		}
	case expr.CtKeySTATE, expr.CtKeySTATUS: // neither related nor translated
	default:
		return fmt.Errorf("ct key %d is not understood", e.Key)
	}
	copy(m.reg(e.Register), value)
	return nil
}

// rules and find make a Program tables.
func (p Program) rules(chain string) (out [][]expr.Any, err error) {
	for _, c := range p.Chains {
		if c.Name == chain {
			for _, r := range c.Rules {
				out = append(out, r.exprs)
			}
			return out, nil
		}
	}
	return nil, fmt.Errorf("nftables: there is no chain %s", chain)
}

func (p Program) find(set string, key []byte) (chain string, found bool, err error) {
	for _, s := range p.Sets {
		if s.Name == set {
			chain, found = s.find(key)
			return chain, found, nil
		}
	}
	return "", false, fmt.Errorf("nftables: there is no set %s", set)
}

func (s *Set) find(key []byte) (chain string, found bool) {
	for _, e := range s.Elements.All() {
		k := string(key[:len(e.First)])
		if k == e.First || s.Interval && e.First <= k && k <= e.Last {
			return e.Chain, true
		}
	}
	return "", false
}
