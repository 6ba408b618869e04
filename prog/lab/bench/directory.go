package main

import (
	"context"
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"time"

	"weft/ipam/slot"
	"weft/mesh"
	"weft/mesh/directory"
	"weft/mesh/peer"
)

const (
	directoryPeers  = 1000
	directoryPods   = 100 // endpoints of each peer
	directoryRounds = 50
	lookups         = 1000 // look-ups per sample: a single one is too fast for the clock
)

// directoryIdentity returns the key of peer n.
func directoryIdentity(n int) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(binary.BigEndian.AppendUint64(make([]byte, ed25519.SeedSize-8), uint64(n)))
}

// pod returns pod i of peer n, named and labelled as in Kubernetes. The pods of one deployment only
// differ in their names.
func pod(n, i int) directory.Endpoint {
	number := n*directoryPods + i
	app, hash := fmt.Sprintf("app-%d", number%500), fmt.Sprintf("%010x", 7*(number%500)+1e9)
	return directory.Endpoint{
		ID: fmt.Sprintf("%064x/eth0", number), Slots: []slot.Slot{slot.Slot(number + 1)},
		Name: fmt.Sprintf("%s-%s-%05x", app, hash, number), Namespace: fmt.Sprintf("team-%d", number%50),
		Labels: map[string]string{
			"app.kubernetes.io/name": app, "app.kubernetes.io/instance": app + "-production", "app.kubernetes.io/component": "frontend",
			"app.kubernetes.io/version": fmt.Sprintf("1.%d.0", number%500), "pod-template-hash": hash,
		},
	}
}

func pods(n int) (out []directory.Endpoint) {
	for i := range directoryPods {
		out = append(out, pod(n, i))
	}
	return out
}

// blockRing says which peer owns an address: every peer owns the addresses of its pods.
type blockRing []peer.ID

func (r blockRing) Owner(s slot.Slot) (peer.ID, bool) {
	n := (int(s) - 1) / directoryPods
	if n < 0 || n >= len(r) {
		return peer.ID{}, false
	}
	return r[n], true
}

// directoryBench measures the directory of a thousand peers with a hundred endpoints each: the memory
// that the copy of one peer uses, the bytes that a change sends to one peer and to all peers, and the
// time of a look-up and of a listing.
func directoryBench(context.Context, *bench) error {
	before := heap()
	d, ring, err := filled()
	if err != nil {
		return err
	}
	held := heap() - before

	change, decode, lookup := figure{what: "merge of one changed set"}, figure{what: "one set of 100 decoded and verified"}, figure{what: "one lookup"}
	apply := figure{what: "one delta applied and verified"}
	var names []string
	for j := range lookups {
		e := pod(500+j%400, j%directoryPods)
		names = append(names, e.Name+"."+e.Namespace)
	}
	for i := range directoryRounds {
		old := d.Set(ring[i])
		endpoints := pods(i)
		endpoints[i].Name += "-new"
		next, delta, err := directory.Next(old, endpoints, 0, directoryIdentity(i))
		if err != nil {
			return err
		}
		encoded := next.Encode()
		start := time.Now()
		theirs, err := directory.Decode(encoded)
		decode.ours.add(time.Since(start).Seconds() * 1e6)
		start = time.Now()
		applied, err2 := old.Apply(*delta)
		apply.ours.add(time.Since(start).Seconds() * 1e6)
		if err := errors.Join(err, err2); err != nil || applied.Digest != theirs.Digest {
			return fmt.Errorf("the delta gives a set that differs from the whole set, error: %w", err)
		}
		start = time.Now()
		d.Put(theirs)
		change.ours.add(time.Since(start).Seconds() * 1e6)
		start = time.Now()
		for _, name := range names {
			if got, _ := d.Lookup(name, ring); len(got) != 1 {
				return fmt.Errorf("found %d endpoints with the name %s, want 1", len(got), name)
			}
		}
		lookup.ours.add(time.Since(start).Seconds() * 1e6 / lookups)
	}
	all, err := listing(d, ring)
	if err != nil {
		return err
	}
	printFigures(os.Stdout, "The directory of a thousand peers with a hundred endpoints each: time", "µs", change, apply, decode, lookup, all)
	if err := directoryTraffic(d, ring); err != nil {
		return err
	}
	printFigures(os.Stdout, "The directory: memory", "MiB", figure{
		what: fmt.Sprintf("all %d endpoints, on each peer", directoryPeers*directoryPods), atMost: 100, ours: samples{float64(held) / (1 << 20)},
	})
	runtime.KeepAlive(d)
	return nil
}

// listing measures the listing of all entries, as a policy compiler needs it.
func listing(d *directory.Directory, ring blockRing) (figure, error) {
	all := figure{what: fmt.Sprintf("all %d entries listed", directoryPeers*directoryPods)}
	for range 5 {
		start := time.Now()
		n := len(d.Entries(ring))
		all.ours.add(time.Since(start).Seconds() * 1e6)
		if n != directoryPeers*directoryPods {
			return all, fmt.Errorf("the directory lists %d entries, want all", n)
		}
	}
	return all, nil
}

// filled returns the directory of a peer that has the sets of endpoints of all peers.
func filled() (*directory.Directory, blockRing, error) {
	d, ring := directory.New(), blockRing{}
	for n := range directoryPeers {
		s, _, err := directory.Next(nil, pods(n), 0, directoryIdentity(n))
		if err == nil {
			s, err = directory.Decode(s.Encode())
		}
		if err != nil {
			return nil, nil, err
		}
		d.Put(s)
		ring = append(ring, s.Owner)
	}
	return d, ring, nil
}

// keepsNothing is a directory store without a disk: it forgets all sets.
type keepsNothing struct{}

func (keepsNothing) SaveSets(map[peer.ID][]byte) error { return nil }

// directoryTraffic measures what a peer sends when one endpoint changes.
func directoryTraffic(d *directory.Directory, ring blockRing) error {
	one := comparison{what: "one pod replaced by another: all bytes of gossip", atMost: 1}
	full := figure{what: "a push/pull about 1,000 sets"}
	say := func(owners []peer.ID, to *samples) error {
		net := &alone{}
		var sets [][]byte
		for _, owner := range owners {
			sets = append(sets, d.Set(owner).Encode())
		}
		replica, err := mesh.NewDirectory(mesh.DirectoryConfig{
			Identity: directoryIdentity(0), Mesh: net, Store: keepsNothing{}, Sets: sets, Log: slog.New(slog.DiscardHandler), Changed: func() {},
			Wanted: func(peer.ID) bool { return true },
		})
		if err != nil {
			return err
		}
		if err := replica.Publish(pods(0)); err != nil {
			return err
		}
		endpoints := pods(0)
		for i := range directoryRounds {
			said := net.said
			endpoints[i] = pod(directoryPeers, i) // replace the endpoint by another pod of the same kind
			endpoints[i].Slots = []slot.Slot{slot.Slot(i + 1)}
			if err := replica.Publish(endpoints); err != nil {
				return err
			}
			to.add(float64(net.said - said))
		}
		full.ours = samples{float64(len(replica.Full()))}
		return nil
	}
	if err := errors.Join(say(ring[:1], &one.theirs), say(ring, &one.ours)); err != nil {
		return err
	}
	printComparisons(os.Stdout, "The directory: bytes sent, with 1,000 peers and with one", "bytes", "one peer", one)
	printFigures(os.Stdout, "The directory: bytes of whole sets", "bytes", full, figure{what: "one whole set", ours: samples{float64(len(d.Set(ring[0]).Encode()))}})
	return nil
}
