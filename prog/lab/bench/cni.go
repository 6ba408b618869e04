package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"weft/prog/lab"
	"weft/prog/words"
)

const (
	referenceBin = "/usr/lib/cni" // folder of Debian's package containernetworking-plugins
	cniRounds    = 30
)

// reference is the usual bridge plugin with its usual IPAM. It only carries IPv4: with IPv6 it would
// wait a second for duplicate address detection, which would dominate the comparison.
const reference = `{"cniVersion": "1.0.0", "name": "reference", "plugins": [{"type": "bridge", "bridge": "cni0", "isGateway": true,
	"ipam": {"type": "host-local", "dataDir": "/var/lib/weft/cni", "ranges": [[{"subnet": "10.98.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}`

// cni measures ADD and DEL through libcni, with one and with many endpoints on the host.
func cni(ctx context.Context, b *bench) (err error) {
	for _, plugin := range []string{"bridge", "host-local"} {
		if _, err := os.Stat(filepath.Join(referenceBin, plugin)); err != nil {
			return fmt.Errorf("%w: the CNI plugins for the comparison are missing; run: apt-get install containernetworking-plugins", err)
		}
	}
	ours, down, err := b.up(ctx, lab.Options{Name: "weft", Hosts: 1})
	if err != nil {
		return err
	}
	defer down(&err)
	theirs, down, err := b.up(ctx, lab.Options{Name: "plain", Hosts: 1, Bare: true})
	if err != nil {
		return err
	}
	defer down(&err)
	// The host sees this folder as /var/lib/weft. It is on disk, like Weft's own state.
	if err := os.WriteFile(filepath.Join(theirs.StateDir("h1"), "reference.conflist"), []byte(reference), 0o600); err != nil {
		return err
	}
	sides := make([]*remote, 2)
	for i, at := range []struct {
		l         *lab.Lab
		conf, bin string
	}{{ours, "/etc/cni/net.d", "/opt/cni/bin"}, {theirs, "/var/lib/weft", referenceBin}} {
		if sides[i], err = b.startRemote(ctx, at.l, "h1", "cni-runtime", at.conf, at.bin); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, sides[i].stop()) }()
	}
	var rows []comparison
	attached := 0
	for _, n := range []int{1, 200} {
		for ; attached < n; attached++ {
			for _, side := range sides {
				if _, err := side.do("add"); err != nil {
					return err
				}
			}
		}
		add := comparison{what: fmt.Sprintf("ADD, %d attached already", n), atMost: 0.6}
		del := comparison{what: fmt.Sprintf("DEL, %s attached", words.Count(n, "other")), atMost: 1}
		for range cniRounds {
			for _, side := range []struct {
				*remote
				add, del *samples
			}{{sides[0], &add.ours, &del.ours}, {sides[1], &add.theirs, &del.theirs}} {
				if err := side.measure("add", side.add); err != nil {
					return err
				}
				if err := side.measure("del", side.del); err != nil {
					return err
				}
			}
		}
		rows = append(rows, add, del)
	}
	printComparisons(os.Stdout, "CNI", "ms", "bridge + host-local", rows...)
	return nil
}
