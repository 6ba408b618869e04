package conntrack

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Only makes the kernel deliver only events of connections with an address in one of two prefixes,
// before or after NAT: so other connections of this host cost no wake-up. It may be called again, also
// while Run reads.
func (r *Events) Only(four, six netip.Prefix) error {
	program, err := bpf.Assemble(filter(four, six))
	if err != nil {
		return fmt.Errorf("conntrack: making a filter: %w", err)
	}
	list := make([]unix.SockFilter, len(program))
	for i, p := range program {
		list[i] = unix.SockFilter{Code: p.Op, Jt: p.Jt, Jf: p.Jf, K: p.K}
	}
	var failed error
	err = r.socket.raw.Control(func(fd uintptr) {
		failed = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(list)), Filter: unsafe.SliceData(list)})
	})
	if err == nil {
		err = failed
	}
	if err != nil {
		return fmt.Errorf("conntrack: setting a filter: %w", err)
	}
	return nil
}

// filter returns a program of socket(7)'s classic BPF. A message that is not as it expects passes: the
// reader checks the addresses again. An event begins with the tuple of the original direction, and that
// with its addresses: at a fixed place. The reply's tuple is searched for.
func filter(four, six netip.Prefix) []bpf.Instruction {
	const (
		family = unix.SizeofNlMsghdr
		first  = headers + 2           // the kind of the first attribute
		ip     = 3 * unix.SizeofNlAttr // from a tuple to its first address: three nested headers
		pass   = ^uint32(0)            // the whole message
	)
	section := func(p netip.Prefix) (out []bpf.Instruction) {
		size := uint32(len(p.Addr().AsSlice()))
		second := ip + size + unix.SizeofNlAttr
		out = append(out, bpf.LoadAbsolute{Off: first, Size: 2},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, attrOriginal|unix.NLA_F_NESTED))), SkipTrue: 1},
			bpf.RetConstant{Val: pass})
		for _, at := range []uint32{headers + ip, headers + second} {
			out = append(out, inside(p, func(word uint32) bpf.Instruction { return bpf.LoadAbsolute{Off: at + word, Size: 4} })...)
		}
		out = append(out, bpf.LoadConstant{Dst: bpf.RegA, Val: headers}, bpf.LoadConstant{Dst: bpf.RegX, Val: attrReply},
			bpf.LoadExtension{Num: bpf.ExtNetlinkAttr}, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: 0, SkipTrue: 1}, bpf.RetConstant{Val: pass}, bpf.TAX{})
		for _, at := range []uint32{ip, second} {
			out = append(out, inside(p, func(word uint32) bpf.Instruction { return bpf.LoadIndirect{Off: at + word, Size: 4} })...)
		}
		return append(out, bpf.RetConstant{Val: 0})
	}
	forFour, forSix := section(four), section(six)
	out := []bpf.Instruction{
		bpf.LoadAbsolute{Off: family, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.AF_INET, SkipTrue: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.AF_INET6, SkipTrue: uint8(1 + len(forFour))},
		bpf.RetConstant{Val: pass},
	}
	return append(append(out, forFour...), forSix...)
}

// inside lets a message pass if the address that load loads, word by word, is in a prefix. Otherwise the
// program goes on.
func inside(p netip.Prefix, load func(word uint32) bpf.Instruction) []bpf.Instruction {
	address := p.Masked().Addr().AsSlice()
	out := []bpf.Instruction{bpf.RetConstant{Val: ^uint32(0)}}
	for word := (max(p.Bits(), 1) - 1) / 32; word >= 0; word-- { // from the last word, since a mismatch skips the rest
		mask := ^uint32(0) << (32 - min(p.Bits()-32*word, 32))
		out = append([]bpf.Instruction{
			load(uint32(4 * word)),
			bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: mask},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: binary.BigEndian.Uint32(address[4*word:]), SkipFalse: uint8(len(out))},
		}, out...)
	}
	return out
}
