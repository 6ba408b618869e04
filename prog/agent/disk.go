package agent

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"weft/prog/state"
)

// leastFree is how much room the state's disk has to have: below that no more containers come,
// so that what is attached can still be changed and ended.
const leastFree = 1 << 20

// CheckDisk reports why nothing can be kept in a folder.
func CheckDisk(dir string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("the state folder %s: %w", dir, err)
	}
	switch free := st.Bavail * uint64(st.Bsize); {
	case st.Flags&unix.ST_RDONLY != 0:
		return fmt.Errorf("the file system of %s is read-only, and Weft keeps its state there: see why (dmesg), and mount it writable (mount -o remount,rw), or name another folder with --state-dir", dir)
	case st.Blocks > 0 && free < leastFree: // memory without a limit has no blocks
		return fmt.Errorf("the disk of %s is full (%d KiB are left, %d are needed): make room there (df %s)", dir, free>>10, leastFree>>10, dir)
	case st.Files > 0 && st.Ffree == 0:
		return fmt.Errorf("the file system of %s has no more inodes: delete files there (df -i %s)", dir, dir)
	}
	return nil
}

// MakeStateDir makes the state folder, and reports why nothing can be kept there.
func MakeStateDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return state.Explained(fmt.Errorf("the state folder %s cannot be made: %w", dir, err))
	}
	return CheckDisk(dir)
}
