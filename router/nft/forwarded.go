package nft

// Forwarded counts bytes of one direction of a pair, since its rules were loaded.
type Forwarded struct{ Passed, Dropped uint64 }

// Forwarded returns what this relay forwarded of each side of a pair to the other one, and what it dropped since that was
// too much. A pair whose rules are not loaded has forwarded nothing.
func (k *Kernel) Forwarded(p Pair) (out [2]Forwarded, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.loaded == nil {
		return out, nil
	}
	if err := k.open(); err != nil {
		return out, err
	}
	jumps := jumps{name: relayChain, ports: 2}
	for i, leg := range p {
		name := jumps.chain(leg.Host, leg.Own.Port())
		if !k.has(name) {
			continue
		}
		rules, err := k.counters(name)
		if err != nil {
			return out, err
		}
		for n, c := range rules {
			*[]*uint64{&out[i].Dropped, &out[i].Passed}[min(n, 1)] = c.Bytes
		}
	}
	return out, nil
}
