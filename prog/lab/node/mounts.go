package node

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// setupMounts gives the node its own view of the file system. It is invisible outside the node's
// mount namespace, and the kernel removes it with the node's last process.
//
// A host can write below /etc, /opt and /var/lib without changing the machine: each has an overlay
// whose upper layer is in memory. This also creates mount points that the machine lacks. In an
// ordinary user's lab, existing folders would still belong to the user nobody, so the folders that
// Weft writes to get their own file systems:
//
//	/run, /etc/cni, /opt/cni   tmpfs    empty after a reboot
//	/var/lib/weft              bind     Config.StateDir: survives a reboot
//	/etc/weft                  bind     Config.Settings: survives a reboot
//
// The /etc/hosts of hosts and containers is Config.Names. A container has its host's other files,
// except for its own, empty resolv.conf.
func setupMounts(cfg Config) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w: a container needs --privileged for this, or: "+
			"apparmor_restrict_unprivileged_userns is on (sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0)", err)
	}
	switch cfg.Role {
	case Host:
		if err := hostMounts(cfg); err != nil {
			return err
		}
	case Container:
		if err := ownFile("/etc/resolv.conf", ""); err != nil {
			return err
		}
	}
	if cfg.Names != "" {
		if err := ownFile("/etc/hosts", cfg.Names); err != nil {
			return err
		}
	}
	const plain = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := unix.Mount("proc", "/proc", "proc", plain, ""); err != nil {
		return fmt.Errorf("mount a fresh /proc: %w: in a container, run it with --privileged or --security-opt systempaths=unconfined", err)
	}
	// sysfs shows the network namespace in which it was mounted. If the machine forbids the mount,
	// only /sys/class/net is wrong in the lab.
	_ = unix.Mount("sysfs", "/sys", "sysfs", plain|unix.MS_RDONLY, "")
	return nil
}

func hostMounts(cfg Config) error {
	if err := mountTmpfs(cfg.Scratch); err != nil {
		return err
	}
	for dir, point := range map[string]string{"/etc": "/etc/cni", "/opt": "/opt/cni", "/var/lib": "/var/lib/weft"} {
		err := overlay(dir, filepath.Join(cfg.Scratch, strings.ReplaceAll(dir, "/", "_")))
		// Without the overlay, the lab still works on a machine that has the mount points.
		if st, e := os.Stat(point); err != nil && (e != nil || !st.IsDir()) {
			return fmt.Errorf("%w: load the overlay module, or make the folder once: sudo mkdir -p %s", err, point)
		}
		if err := os.MkdirAll(point, 0o755); err != nil {
			return err
		}
	}
	for _, dir := range []string{"/run", "/etc/cni", "/opt/cni"} {
		if err := mountTmpfs(dir); err != nil {
			return err
		}
	}
	if err := unix.Mount(cfg.StateDir, "/var/lib/weft", "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s to /var/lib/weft: %w", cfg.StateDir, err)
	}
	if err := os.MkdirAll("/etc/weft", 0o755); err != nil {
		return err
	}
	if err := unix.Mount(cfg.Settings, "/etc/weft", "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s to /etc/weft: %w", cfg.Settings, err)
	}
	return nil
}

// ownFile mounts the node's own version over one of the machine's files.
func ownFile(path, content string) error {
	_ = unix.Unmount(path, unix.MNT_DETACH)                     // in a container, unmount the host's file: nothing can be mounted over it
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o644) // creates the mount point
	if err != nil {
		return err
	}
	f.Close()
	own, err := os.CreateTemp("/run", "own-")
	if err != nil {
		return err
	}
	defer os.Remove(own.Name()) // the mount keeps the content after the file is removed
	defer own.Close()
	_, err = own.WriteString(content)
	if err := errors.Join(err, own.Chmod(0o644), unix.Mount(own.Name(), path, "", unix.MS_BIND, "")); err != nil {
		return fmt.Errorf("bind %s to %s: %w", own.Name(), path, err)
	}
	return nil
}

func mountTmpfs(dir string) error {
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
		return fmt.Errorf("mount tmpfs on %s: %w", dir, err)
	}
	return nil
}

func overlay(dir, scratch string) error {
	upper, work := filepath.Join(scratch, "upper"), filepath.Join(scratch, "work")
	if err := errors.Join(os.MkdirAll(upper, 0o755), os.MkdirAll(work, 0o755)); err != nil {
		return err
	}
	// An ordinary user's overlay needs userxattr; it also works for root.
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s,userxattr", dir, upper, work)
	if err := unix.Mount("overlay", dir, "overlay", unix.MS_NODEV, options); err != nil {
		return fmt.Errorf("mount an overlay on %s: %w", dir, err)
	}
	return nil
}
