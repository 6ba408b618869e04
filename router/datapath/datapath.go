// Package datapath is the userspace WireGuard process, for kernels without
// WireGuard. It is a process of its own, so that traffic flows on while the agent
// restarts; its TUN device is persistent, so that after a crash the device, its
// addresses and its routes stay (without carrier: packets for the overlay go
// nowhere else) until the next process adopts it.
//
// It is configured through the standard UAPI socket, by wgctrl or `wg`, and holds
// keys in memory only: the agent configures it again after a restart.
package datapath

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/ipc"
	"golang.zx2c4.com/wireguard/tun"

	"weft/router/link"
)

// socketPath is where wgctrl and `wg` look for the process (wireguard-go's UAPI).
const socketPath = "/var/run/wireguard/" + link.Device + ".sock"

// startTimeout bounds how long Start waits until the process answers.
const startTimeout = 5 * time.Second

// Config is what the process is made of.
type Config struct {
	Log *slog.Logger
}

// errBusy says that another process serves the device.
var errBusy = fmt.Errorf("datapath: device %s is in use: another `weft datapath` runs already", link.Device)

// Standby is Run where the kernel has no WireGuard; where it has, there is nothing to do. It
// waits while another process serves, such as one that an agent started.
func Standby(ctx context.Context, cfg Config) error {
	kernel, err := link.KernelWireGuard()
	if err != nil {
		return fmt.Errorf("datapath: %w", err)
	}
	if !kernel {
		return onceFree(ctx, cfg.Log, func() error { return Run(ctx, cfg) })
	}
	cfg.Log.Info("the kernel has WireGuard: this process has nothing to do, and waits")
	<-ctx.Done()
	return nil
}

// onceFree runs run again and again until the device is no other process's.
func onceFree(ctx context.Context, log *slog.Logger, run func() error) error {
	err := run()
	if errors.Is(err, errBusy) {
		log.Info("another process serves the device: this one waits until that ends")
	}
	for errors.Is(err, errBusy) {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Second):
		}
		err = run()
	}
	return err
}

// Run serves until ctx ends. The TUN device stays.
func Run(ctx context.Context, cfg Config) error {
	// Buffers are pooled: little garbage comes up, and each collection costs
	// throughput. The limit (see followMemory) is a backstop.
	debug.SetGCPercent(400)
	t, err := openTUN()
	if err != nil {
		return err
	}
	file, err := ipc.UAPIOpen(link.Device)
	if err != nil {
		t.Close()
		return fmt.Errorf("datapath: socket %s: %w: another `weft datapath` may be running", socketPath, err)
	}
	bind, err := newBind(cfg.Log)
	if err != nil {
		t.Close()
		return err
	}
	defer bind.release() // after the device is closed
	dev := device.NewDevice(t, bind, &device.Logger{
		Verbosef: device.DiscardLogf,
		Errorf:   func(format string, args ...any) { cfg.Log.Warn("wireguard", "msg", fmt.Sprintf(format, args...)) },
	})
	defer dev.Close()
	memory, stop := context.WithCancel(ctx)
	followed := make(chan struct{})
	go func() { defer close(followed); followMemory(memory, dev) }()
	defer func() { stop(); <-followed }()
	uapi, err := ipc.UAPIListen(link.Device, file)
	if err != nil {
		return fmt.Errorf("datapath: socket %s: %w", socketPath, err)
	}
	defer uapi.Close()
	failed := make(chan error, 1)
	go func() {
		for {
			c, err := uapi.Accept()
			if err != nil {
				failed <- err
				return
			}
			go dev.IpcHandle(c)
		}
	}()
	cfg.Log.Info("userspace WireGuard serves", "device", link.Device, "socket", socketPath)
	select {
	case <-ctx.Done():
		return nil
	case <-dev.Wait():
		return fmt.Errorf("datapath: the device %s was removed", link.Device)
	case err := <-failed:
		return fmt.Errorf("datapath: socket %s: %w", socketPath, err)
	}
}

// openTUN makes or adopts the persistent TUN device. One that is adopted keeps its
// MTU: with a greater one, packets would be lost until the agent corrects it.
func openTUN() (tun.Device, error) {
	mtu := device.DefaultMTU
	if l, err := net.InterfaceByName(link.Device); err == nil {
		mtu = l.MTU
	}
	t, err := tun.CreateTUN(link.Device, mtu)
	switch {
	case errors.Is(err, unix.EBUSY):
		return nil, errBusy
	case errors.Is(err, unix.EINVAL):
		return nil, fmt.Errorf("datapath: a link %s of another kind is there: remove it (ip link del %s)", link.Device, link.Device)
	case err != nil && notExist("/dev/net/tun"):
		return nil, errors.New("datapath: /dev/net/tun is missing: load the module (modprobe tun), or make it (mkdir -p /dev/net && mknod /dev/net/tun c 10 200)")
	case err != nil:
		return nil, fmt.Errorf("datapath: make device %s: %w", link.Device, err)
	}
	if err := persist(t.File()); err != nil {
		t.Close()
		return nil, fmt.Errorf("datapath: keep device %s: %w", link.Device, err)
	}
	return checked{t}, nil
}

func notExist(path string) bool {
	_, err := os.Stat(path)
	return errors.Is(err, os.ErrNotExist)
}

// persist makes the device outlive the process.
func persist(f *os.File) error {
	raw, err := f.SyscallConn() // not Fd: the runtime goes on polling the file
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) { failed = unix.IoctlSetInt(int(fd), unix.TUNSETPERSIST, 1) })
	return errors.Join(err, failed)
}

// Start runs `exe datapath` in a session of its own, which outlives the caller, and
// waits until it answers. A process that answers already will do.
func Start(ctx context.Context, exe, logPath string) error {
	if answers() {
		return nil
	}
	// Appended to: how the last one ended is what people look for.
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("datapath: %w", err)
	}
	defer log.Close()
	cmd := exec.Command(exe, "datapath")
	cmd.Dir = filepath.Dir(logPath)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("datapath: start: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }() // reaps it, whenever it ends
	switch err := await(ctx, ended); {
	case err == nil:
		return nil
	case errors.Is(err, errSilent):
		cmd.Process.Kill()
		return fmt.Errorf("datapath: it does not answer on %s: see %s", socketPath, logPath)
	default:
		return fmt.Errorf("datapath: it ended at once (%w): see %s", err, logPath)
	}
}

// Await waits until a process that somebody else starts answers.
func Await(ctx context.Context) error {
	if err := await(ctx, nil); err != nil {
		return fmt.Errorf("datapath: this kernel has no WireGuard, and no `weft datapath` answers on %s: under Kubernetes see `kubectl -n weft get pods -l app=weft-datapath`", socketPath)
	}
	return nil
}

var errSilent = errors.New("nobody answers")

// await waits until the process answers or has ended, for a while.
func await(ctx context.Context, ended <-chan error) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !answers() {
		select {
		case <-ctx.Done():
			return errSilent
		case err := <-ended:
			return errors.New(fmt.Sprint(err)) // nil: it ended well, which is no better
		case <-tick.C:
		}
	}
	return nil
}

func answers() bool {
	c, err := net.Dial("unix", socketPath)
	if err == nil {
		c.Close()
	}
	return err == nil
}

// Stop ends the process, if one answers, and waits until it is gone.
func Stop(ctx context.Context) error {
	c, err := net.Dial("unix", socketPath)
	if err != nil {
		return nil // nobody is there
	}
	defer c.Close()
	pid, err := server(c.(*net.UnixConn))
	if err != nil {
		return fmt.Errorf("datapath: which process serves %s: %w", socketPath, err)
	}
	process, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("datapath: process %d: %w", pid, err)
	}
	defer unix.Close(process)
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for _, signal := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		if err := unix.PidfdSendSignal(process, signal, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("datapath: end process %d: %w", pid, err)
		}
		if ended(ctx, process) {
			return nil
		}
	}
	return fmt.Errorf("datapath: process %d does not end", pid)
}

// server is the process at the other end of c.
func server(c *net.UnixConn) (int, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var failed error
	err = raw.Control(func(fd uintptr) { cred, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err := errors.Join(err, failed); err != nil {
		return 0, err
	}
	if cred.Pid <= 0 {
		return 0, errors.New("one of another PID namespace: end it there")
	}
	return int(cred.Pid), nil
}

// ended waits up to half of startTimeout for a process to end; a zombie has ended.
func ended(ctx context.Context, process int) bool {
	for wait := startTimeout / 2; wait > 0 && ctx.Err() == nil; wait -= 10 * time.Millisecond {
		fds := []unix.PollFd{{Fd: int32(process), Events: unix.POLLIN}}
		if n, err := unix.Poll(fds, 10); n > 0 && err == nil {
			return true
		}
	}
	return false
}
