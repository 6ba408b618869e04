package nft

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"weft/router/policy"
	"weft/router/policy/policytest"
)

// verdict evaluates all policy rules of a program for a packet.
func (p Program) verdict(q policy.Packet) (allowed bool, passed []string, err error) {
	m := machine{tables: p, packet: Packet{
		Src: q.Src, Dst: q.Dst, Protocol: byte(q.Protocol), SrcPort: q.SrcPort, DstPort: q.DstPort, Reply: q.Reply,
	}}
	if _, err := p.rules("policies"); err != nil {
		return true, nil, nil // no endpoint is isolated
	}
	out, err := m.run("policies", 0)
	if out&drops != 0 && out != drops {
		err = errors.Join(err, fmt.Errorf("the evaluation has the outcomes %b; want a single outcome", out))
	}
	return out != drops, m.passed, err
}

// Three evaluations agree on random policies and packets: policy.Evaluate, the compiled program,
// and its nftables rules, interpreted as in the kernel. SOAK=n tests n packets, SEED=n tests the
// packets of one seed.
func TestPolicyEvaluationsAgree(t *testing.T) {
	const each = 100 // packets that are tested per set of policies
	number := func(name string, otherwise uint64) uint64 {
		if n, err := strconv.ParseUint(os.Getenv(name), 10, 64); err == nil {
			return n
		}
		return otherwise
	}
	packets := number("SOAK", 20_000)
	seed, last := number("SEED", 0), time.Now()
	end := seed + packets/each
	if seed > 0 {
		end = seed + 1
	}
	w := policytest.World()
	denied := 0
	for ; seed < end; seed++ {
		r := policytest.Random(rand.New(rand.NewPCG(seed, 0)).IntN)
		policies := r.Policies()
		prog := policy.Compile(policies, w, func(policy.Endpoint) bool { return true })
		rules := build(Config{Policy: Policy{Program: &prog}})
		for range each {
			p := r.Packet(w)
			want := policy.Evaluate(policies, w, p)
			if got := policytest.Allows(prog, p); got != want.Allowed {
				t.Fatalf("SEED=%d: packet %+v: the program allows it: %v; want the verdict of Evaluate, %+v", seed, p, got, want)
			}
			for _, q := range []policy.Packet{p, policytest.Answer(p)} {
				if got, passed, err := rules.verdict(q); err != nil || got != want.Allowed {
					t.Fatalf("SEED=%d: packet %+v: nftables allow it: %v through chains %v, error %v; want the verdict of Evaluate, %+v\n%v", seed, q, got, passed, err, want, rules)
				}
			}
			if !want.Allowed {
				denied++
			}
		}
		if time.Since(last) > 5*time.Second {
			last = time.Now()
			fmt.Fprintf(os.Stderr, "%d of %d packets are tested, %d were denied\n", seed*each, packets, denied)
		}
	}
	if packets > 1000 && end > 10 && (denied < int(packets/10) || denied > int(packets*9/10)) {
		t.Errorf("%d of %d packets were denied; want a tenth to nine tenths, else the test proves little", denied, packets)
	}
	t.Logf("evaluations of %d packets and their replies agree, %d are denied", packets, denied)
}
