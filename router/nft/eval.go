package nft

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// tables gives access to rules and sets, of a Program or of the kernel.
type tables interface {
	rules(chain string) ([][]expr.Any, error)
	// keySize returns the number of bytes of a set's keys; negative if find does not support the set.
	keySize(set string) (int, error)
	// find looks up a key; for a verdict map it returns the verdict.
	find(set string, key []byte) (v *expr.Verdict, found bool, err error)
}

// answer is yes, no, or maybe if the answer depends on something unknown.
type answer int8

const (
	no answer = iota
	maybe
	yes
)

func is(b bool) answer {
	if b {
		return yes
	}
	return no
}

// outcomes is the set of possible results of a packet in a chain. It has a single result if
// everything that the rules examine is known.
type outcomes byte

const (
	accepts outcomes = 1 << iota
	drops
	falls // the packet reaches the end of the chain
)

// machine interprets rules on a packet as the kernel does (nft_do_chain). If a rule examines
// something unknown, machine follows both branches.
type machine struct {
	tables
	packet Packet
	// passed lists the chains that the packet traversed.
	passed []string
	been   map[string]outcomes // results by chain, so that each chain runs once
	data   [20 * 4]byte        // 32-bit registers; a 128-bit register is four of them
	known  [20 * 4]bool        // which bytes of data have a known value
}

// maxDepth exceeds the depth of any program; the kernel refuses loops of jumps.
const maxDepth = 16

// run evaluates a chain, and all chains that it leads to.
func (m *machine) run(chain string, depth int) (out outcomes, err error) {
	if depth > maxDepth {
		return 0, fmt.Errorf("nftables: chain %s: jumps lead too deep", chain)
	}
	if out, ok := m.been[chain]; ok {
		return out, nil
	}
	m.passed = append(m.passed, chain)
	rules, err := m.rules(chain)
	if err != nil {
		return 0, err
	}
	left := false
	for _, rule := range rules {
		v, fits, err := m.rule(rule)
		if err != nil {
			return 0, fmt.Errorf("nftables: chain %s: %w", chain, err)
		}
		if fits == no || v == nil || v.Kind == expr.VerdictContinue {
			continue
		}
		o, err := m.verdict(v, depth)
		if err != nil {
			return 0, err
		}
		if back := o&falls != 0; v.Kind == expr.VerdictJump && back {
			o, fits = o&^falls, maybe
		}
		out |= o
		if left = fits == yes; left {
			break
		}
	}
	if !left {
		out |= falls
	}
	if m.been == nil {
		m.been = map[string]outcomes{}
	}
	m.been[chain] = out
	return out, nil
}

// verdict returns the possible results of a packet for which a rule has given the verdict v.
func (m *machine) verdict(v *expr.Verdict, depth int) (outcomes, error) {
	switch v.Kind {
	case expr.VerdictReturn:
		return falls, nil
	case expr.VerdictGoto, expr.VerdictJump:
		return m.run(v.Chain, depth+1)
	case expr.VerdictAccept:
		return accepts, nil
	case expr.VerdictDrop:
		return drops, nil
	}
	return accepts | drops, nil // another program decides, for example after a queue
}

// rule evaluates one rule. It returns whether the rule matches, and the rule's verdict, or nil if
// the rule has none.
func (m *machine) rule(exprs []expr.Any) (*expr.Verdict, answer, error) {
	m.known = [len(m.known)]bool{} // a register stays unknown if the library cannot parse the expression that loads it
	fits := yes
	for _, e := range exprs {
		v, so, err := m.step(e)
		if err != nil || so == no {
			return nil, no, err
		}
		if fits = min(fits, so); v != nil {
			return v, fits, nil
		}
	}
	return nil, fits, nil
}

// at returns the offset of a register in data.
func at(number uint32) int {
	i := int(number-unix.NFT_REG32_00) * 4
	if number < unix.NFT_REG32_00 {
		i = int(number-unix.NFT_REG_1) * 16
	}
	return i
}

// reg returns the part of data that begins with a register.
func (m *machine) reg(number uint32) []byte { return m.data[min(max(at(number), 0), len(m.data)):] }

// set stores a known value in a register.
func (m *machine) set(number uint32, value []byte) {
	copy(m.reg(number), value)
	m.mark(number, len(value), true)
}

func (m *machine) mark(number uint32, size int, known bool) {
	for i := range m.known {
		if from := at(number); i >= from && i < from+size+padding(size) {
			m.known[i] = known
		}
	}
}

// knows reports whether the first bytes of a register are known.
func (m *machine) knows(number uint32, size int) bool {
	from := min(max(at(number), 0), len(m.known))
	return !slices.Contains(m.known[from:min(from+size, len(m.known))], false)
}

func (m *machine) step(e expr.Any) (*expr.Verdict, answer, error) {
	switch e := e.(type) {
	case *expr.Counter, *expr.Log:
		return nil, yes, nil
	case *expr.Verdict:
		return e, yes, nil
	case *expr.Meta:
		if !e.SourceRegister { // otherwise the expression sets the meta value
			m.meta(e)
		}
		return nil, yes, nil
	case *expr.Payload:
		return nil, m.payload(e), nil
	case *expr.Ct:
		if !e.SourceRegister {
			m.ct(e)
		}
		return nil, yes, nil
	case *expr.Bitwise:
		m.bitwise(e)
		return nil, yes, nil
	case *expr.Cmp:
		if !m.knows(e.Register, len(e.Data)) {
			return nil, maybe, nil
		}
		return nil, compared(e.Op, bytes.Compare(m.reg(e.Register)[:len(e.Data)], e.Data)), nil
	case *expr.Lookup:
		return m.lookup(e)
	}
	v, so := m.foreign(e)
	return v, so, nil
}

// compared reports whether the result of a comparison (below, equal to or above 0) satisfies an
// operator.
func compared(op expr.CmpOp, order int) answer {
	switch op {
	case expr.CmpOpEq:
		return is(order == 0)
	case expr.CmpOpNeq:
		return is(order != 0)
	case expr.CmpOpLt:
		return is(order < 0)
	case expr.CmpOpLte:
		return is(order <= 0)
	case expr.CmpOpGt:
		return is(order > 0)
	case expr.CmpOpGte:
		return is(order >= 0)
	}
	return maybe
}

func (m *machine) bitwise(e *expr.Bitwise) {
	known := m.knows(e.SourceRegister, int(e.Len)) && len(e.Mask) > 0 // without a mask the expression is a shift
	src, dst := m.reg(e.SourceRegister), m.reg(e.DestRegister)
	for i := range min(int(e.Len), len(src), len(dst), len(e.Mask), len(e.Xor)) {
		dst[i] = src[i]&e.Mask[i] ^ e.Xor[i]
	}
	m.mark(e.DestRegister, int(e.Len), known)
}

func (m *machine) lookup(e *expr.Lookup) (*expr.Verdict, answer, error) {
	key := m.reg(e.SourceRegister)
	size, err := m.keySize(e.SetName)
	if err != nil {
		return nil, no, err
	}
	if size < 0 || !m.knows(e.SourceRegister, size) {
		return unsure(e.IsDestRegSet), maybe, nil
	}
	v, found, err := m.find(e.SetName, key)
	if err != nil {
		return nil, no, err
	}
	if e.IsDestRegSet && v == nil && found { // the map has values, not verdicts
		return nil, maybe, nil
	}
	return v, is(found != e.Invert), nil
}

// unsure returns the verdict of a map with unknown content.
func unsure(verdicts bool) *expr.Verdict {
	if verdicts {
		return &expr.Verdict{Kind: expr.VerdictQueue}
	}
	return nil
}

func (m *machine) meta(e *expr.Meta) {
	p := m.packet
	family, ether := byte(unix.NFPROTO_IPV6), uint16(unix.ETH_P_IPV6)
	if p.Src.Is4() {
		family, ether = unix.NFPROTO_IPV4, unix.ETH_P_IP
	}
	switch e.Key {
	case expr.MetaKeyNFPROTO:
		m.set(e.Register, []byte{family, 0, 0, 0})
	case expr.MetaKeyL4PROTO:
		m.set(e.Register, []byte{p.Protocol, 0, 0, 0})
	case expr.MetaKeyPROTOCOL:
		m.set(e.Register, append(binaryutil.BigEndian.PutUint16(ether), 0, 0))
	case expr.MetaKeyIIFNAME:
		m.name(e.Register, p.Iif)
	case expr.MetaKeyOIFNAME:
		m.name(e.Register, p.Oif)
	case expr.MetaKeyIIF:
		m.set(e.Register, binaryutil.NativeEndian.PutUint32(p.IifIndex))
	case expr.MetaKeyOIF:
		m.set(e.Register, binaryutil.NativeEndian.PutUint32(p.OifIndex))
	default:
		m.mark(e.Register, 16, false)
	}
}

func (m *machine) name(register uint32, link string) {
	padded := make([]byte, unix.IFNAMSIZ)
	copy(padded, link)
	m.set(register, padded)
}

// payload loads header fields. A rule on ports does not match a packet without ports.
func (m *machine) payload(e *expr.Payload) answer {
	if e.OperationType == expr.PayloadWrite {
		return yes
	}
	if e.Base == expr.PayloadBaseTransportHeader && !m.packet.hasPorts() && !m.packet.pings() {
		return no
	}
	header, known := m.packet.header(e.Base)
	end := int(e.Offset + e.Len)
	if end > len(header) || slices.Contains(known[e.Offset:end], false) {
		m.mark(e.DestRegister, int(e.Len), false)
		return yes
	}
	value := make([]byte, int(e.Len)+padding(int(e.Len)))
	copy(value, header[e.Offset:end])
	m.set(e.DestRegister, value)
	return yes
}

func (m *machine) ct(e *expr.Ct) {
	switch e.Key {
	case expr.CtKeyDIRECTION:
		direction := byte(0)
		if m.packet.Reply {
			direction = 1
		}
		m.set(e.Register, []byte{direction, 0, 0, 0})
	case expr.CtKeySTATE:
		m.set(e.Register, binaryutil.NativeEndian.PutUint32(m.packet.state()))
	case expr.CtKeySTATUS: // our rules use no other bits, so others are not translated
		m.set(e.Register, make([]byte, 4))
	default:
		m.mark(e.Register, 16, false)
	}
}

// rules, keySize and find implement tables for a Program.
func (p Program) rules(chain string) (out [][]expr.Any, err error) {
	for _, c := range p.Chains {
		if c.Name == chain {
			for _, r := range c.Rules {
				out = append(out, r.exprs)
			}
			return out, nil
		}
	}
	return nil, fmt.Errorf("nftables: chain %s does not exist", chain)
}

func (p Program) set(name string) (*Set, error) {
	for _, s := range p.Sets {
		if s.Name == name {
			return s, nil
		}
	}
	return nil, fmt.Errorf("nftables: set %s does not exist", name)
}

func (p Program) keySize(set string) (int, error) {
	s, err := p.set(set)
	if err != nil {
		return 0, err
	}
	size := 0
	for _, k := range s.Key {
		size += k.size + padding(k.size)
	}
	return size, nil
}

func (p Program) find(set string, key []byte) (*expr.Verdict, bool, error) {
	s, err := p.set(set)
	if err != nil {
		return nil, false, err
	}
	for _, e := range s.Elements.All() {
		k := string(key[:len(e.First)])
		if k == e.First || s.Interval && e.First <= k && k <= e.Last {
			if e.Chain != "" {
				return jump(e.Chain), true, nil
			}
			return nil, true, nil
		}
	}
	return nil, false, nil
}
