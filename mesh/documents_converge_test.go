package mesh

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"weft/mesh/meshtest"
)

// The documents under all misfortunes at once converge: loss, partitions, restarts with the
// disk as it was, with an older copy or with none, and clocks that are wrong by a lifetime.
func TestDocumentsConverge(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { badYear(t, seed) })
		})
	}
}

func badYear(t *testing.T, seed uint64) {
	c, r := newCouncil(t, seed), rand.New(rand.NewPCG(seed, 1))
	c.net.SetWeather(meshtest.Weather{Loss: 0.2, Duplicate: 0.1, Delay: time.Second})
	disks, backups := map[int]*shelf{}, map[int][]*shelf{}
	for n := 1; n <= 5; n++ {
		c.start(n, 0, nil)
	}
	if err := c.here[1].MarkSynced(); err != nil {
		t.Fatal(err)
	}
	for range 60 {
		n := 1 + r.IntN(5)
		m := c.here[n]
		switch dice := r.IntN(20); {
		case m == nil:
			disk := disks[n]
			if b := backups[n]; dice < 4 && len(b) > 0 {
				disk = b[r.IntN(len(b))].copy()
			} else if dice < 6 {
				disk = nil
			}
			c.start(n, 0, disk)
		case dice < 11:
			var changes []Change
			for i := range 1 + r.IntN(3) {
				change := policy(fmt.Sprint("web-", i), fmt.Sprint(r.IntN(3), strings.Repeat("x", r.IntN(2)*3000)))
				if r.IntN(3) == 0 {
					change = noPolicy(change.Name)
				}
				changes = append(changes, change)
			}
			m.ahead.Store([]int64{0, 0, 0, -20_000, 20_000}[r.IntN(5)])
			c.write(m, changes...)
			m.ahead.Store(0)
		case dice < 13:
			backups[n] = append(backups[n], m.disk.copy())
		case dice < 15 && len(c.here) > 2:
			c.kill(m)
			disks[n] = m.disk
		case dice < 17:
			c.net.Partition(func(*meshtest.Node) int { return r.IntN(2) })
		default:
			c.net.Heal()
		}
		time.Sleep(time.Duration(r.IntN(4000)) * time.Millisecond)
	}
	c.net.Heal()
	var last *member
	for _, m := range c.here {
		last = m
		c.write(m, policy(fmt.Sprint("last-", m.n), "x"))
	}
	c.eventually(5*time.Minute, "*")
	c.write(last, policy("web-0", "the last word"))
	c.eventually(time.Minute, "*")
	time.Sleep(2 * time.Minute)
	c.eventually(0, "*")
	before := c.asked()
	time.Sleep(time.Minute)
	if n := c.asked() - before; n > 0 {
		t.Errorf("%d questions without end", n)
	}
	for _, m := range c.here {
		again := documents(t, m.n, &stub{}, m.disk)
		if got := reads(again); got != reads(m.Documents) || !strings.Contains(got, "web-0=the last word") || !m.Synced() {
			t.Errorf("host %d has %s, on disk %s, synced %v", m.n, reads(m.Documents), got, m.Synced())
		}
	}
	c.end()
}
