package meshtest

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"weft/mesh/peer"
)

// A write that fails changes nothing. A copy has the content of one moment, and does not fail with
// the original.
func TestFailedWriteChangesNeitherDiskNorCopy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, start := &Disk{Delay: time.Second}, time.Now()
		save := func(record string) error { return d.SavePeers(map[peer.ID][]byte{ID(1): []byte(record)}) }
		if err := save("first"); err != nil || time.Since(start) != time.Second {
			t.Errorf("the write returned %v after %v; want no error after one second", err, time.Since(start))
		}
		backup, full := d.Copy(), errors.New("disk full")
		d.Fail(full)
		if err := save("second"); !errors.Is(err, full) || string(d.Peers()[ID(1)]) != "first" || d.Writes() != 1 {
			t.Errorf("a write to a full disk returned %v; then the disk has %s after %d writes; want an error, \"first\" and 1", err, d.Peers()[ID(1)], d.Writes())
		}
		d.Fail(nil)
		if err := d.SavePeers(map[peer.ID][]byte{ID(1): nil}); err != nil || len(d.Peers()) != 0 {
			t.Errorf("deleting a record returned %v, or left it stored; want it gone", err)
		}
		if err := backup.SaveSynced(); err != nil || string(backup.Peers()[ID(1)]) != "first" || d.Synced() {
			t.Errorf("writing to the backup returned %v; the backup has %s, and the write changed the disk: %v; want \"first\" and false", err, backup.Peers()[ID(1)], d.Synced())
		}
	})
}
