// Package datapath is the userspace WireGuard process, for kernels without WireGuard. It is a
// separate process, so that traffic continues while the agent restarts. Its TUN device is
// persistent: after a crash, the device, its addresses and its routes stay until the next process
// opens it. Meanwhile the device has no carrier, and packets for the overlay are not sent through
// another link.
//
// wgctrl or `wg` configures the process through the standard UAPI socket. The process holds keys in
// memory only: after a restart the agent configures it again. One process serves the device; any
// other process may call Start, Await and Stop.
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

// socketPath is the UAPI socket, where wgctrl and `wg` expect it.
const socketPath = "/var/run/wireguard/" + link.Device + ".sock"

// startTimeout limits how long Start waits until the process answers.
const startTimeout = 5 * time.Second

// Config configures the process.
type Config struct {
	Log *slog.Logger
}

// errBusy says that another process serves the device already.
var errBusy = fmt.Errorf("datapath: device %s is in use by another `weft datapath`: stop that process first", link.Device)

// Standby does the same as Run on a kernel without WireGuard. On a kernel with WireGuard it does
// nothing until ctx ends. While another process serves the device, for example one that an agent
// started, Standby waits.
func Standby(ctx context.Context, cfg Config) error {
	kernel, err := link.KernelWireGuard()
	if err != nil {
		return fmt.Errorf("datapath: %w", err)
	}
	if !kernel {
		return onceFree(ctx, cfg.Log, func() error { return Run(ctx, cfg) })
	}
	cfg.Log.Info("the kernel has WireGuard: this process is not needed, and waits to be stopped")
	<-ctx.Done()
	return nil
}

// onceFree calls run until another process no longer serves the device.
func onceFree(ctx context.Context, log *slog.Logger, run func() error) error {
	err := run()
	if errors.Is(err, errBusy) {
		log.Info("another process serves the device: waiting until it ends")
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

// Run serves the device until ctx ends. The TUN device stays.
func Run(ctx context.Context, cfg Config) error {
	// Buffers are pooled, so there is little garbage, and each collection costs throughput. The memory limit (see
	// followMemory) bounds the heap.
	debug.SetGCPercent(400)
	t, err := openTUN()
	if err != nil {
		return err
	}
	file, err := ipc.UAPIOpen(link.Device)
	if err != nil {
		t.Close()
		return fmt.Errorf("datapath: opening socket %s: %w: another `weft datapath` may be running: stop that process first", socketPath, err)
	}
	bind, err := newBind(cfg.Log)
	if err != nil {
		t.Close()
		return err
	}
	defer bind.release() // this runs last, after the device is closed
	dev := device.NewDevice(t, bind, &device.Logger{
		Verbosef: device.DiscardLogf,
		Errorf: func(format string, args ...any) {
			cfg.Log.Warn("wireguard-go reported an error", "msg", fmt.Sprintf(format, args...))
		},
	})
	defer dev.Close()
	memory, stop := context.WithCancel(ctx)
	followed := make(chan struct{})
	go func() { defer close(followed); followMemory(memory, dev) }()
	defer func() { stop(); <-followed }()
	uapi, err := ipc.UAPIListen(link.Device, file)
	if err != nil {
		return fmt.Errorf("datapath: listening on socket %s: %w", socketPath, err)
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
	cfg.Log.Info("userspace WireGuard serves the device", "device", link.Device, "socket", socketPath)
	select {
	case <-ctx.Done():
		return nil
	case <-dev.Wait():
		return fmt.Errorf("datapath: another program deleted the device %s: this process ends; the agent or its supervisor starts a new process", link.Device)
	case err := <-failed:
		return fmt.Errorf("datapath: accepting on socket %s: %w", socketPath, err)
	}
}

// openTUN creates the persistent TUN device, or opens the existing device and keeps its MTU. With a
// larger MTU, packets would be lost until the agent sets the right MTU.
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
		return nil, fmt.Errorf("datapath: a link %s of another kind exists: delete it (ip link del %s)", link.Device, link.Device)
	case err != nil && notExist("/dev/net/tun"):
		return nil, errors.New("datapath: /dev/net/tun is missing: load the module (modprobe tun), or make it (mkdir -p /dev/net && mknod /dev/net/tun c 10 200)")
	case err != nil:
		return nil, fmt.Errorf("datapath: making device %s: %w", link.Device, err)
	}
	if err := persist(t.File()); err != nil {
		t.Close()
		return nil, fmt.Errorf("datapath: making device %s persistent: %w", link.Device, err)
	}
	return checked{t}, nil
}

func notExist(path string) bool {
	_, err := os.Stat(path)
	return errors.Is(err, os.ErrNotExist)
}

// persist makes the device outlive this process.
func persist(f *os.File) error {
	raw, err := f.SyscallConn() // not Fd, which would stop the runtime's polling of the file
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) { failed = unix.IoctlSetInt(int(fd), unix.TUNSETPERSIST, 1) })
	return errors.Join(err, failed)
}

// Start runs `exe datapath` in a new session, so that the process outlives the caller, and waits until
// the process answers. If a process answers already, Start does nothing.
func Start(ctx context.Context, exe, logPath string) error {
	if answers() {
		return nil
	}
	// The log is not truncated: after a crash, its last lines have the cause.
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("datapath: opening the log of the process: %w", err)
	}
	defer log.Close()
	cmd := exec.Command(exe, "datapath")
	cmd.Dir = filepath.Dir(logPath)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("datapath: starting the process: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }() // reaps the process when it ends
	switch err := await(ctx, ended); {
	case err == nil:
		return nil
	case errors.Is(err, errTimeout):
		cmd.Process.Kill()
		return fmt.Errorf("datapath: the process did not answer on %s within %v and was killed: see %s", socketPath, startTimeout, logPath)
	default:
		return fmt.Errorf("datapath: the process ended right after its start (%w): see %s", err, logPath)
	}
}

// Await waits until the process answers. Another program starts the process.
func Await(ctx context.Context) error {
	if err := await(ctx, nil); err != nil {
		return fmt.Errorf("datapath: this kernel has no WireGuard, and no `weft datapath` answers on %s: under Kubernetes see `kubectl -n weft get pods -l app=weft-datapath`", socketPath)
	}
	return nil
}

var errTimeout = errors.New("the datapath process does not answer")

// await waits until the process answers, has ended, or startTimeout is over.
func await(ctx context.Context, ended <-chan error) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !answers() {
		select {
		case <-ctx.Done():
			return errTimeout
		case err := <-ended:
			return errors.New(fmt.Sprint(err)) // makes an error of nil too: a process that has ended cannot answer
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

// Stop ends the process that answers, if any, and waits until it has ended.
func Stop(ctx context.Context) error {
	c, err := net.Dial("unix", socketPath)
	if err != nil {
		return nil // no process serves the socket
	}
	defer c.Close()
	pid, err := server(c.(*net.UnixConn))
	if err != nil {
		return fmt.Errorf("datapath: finding the process that serves %s: %w", socketPath, err)
	}
	process, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("datapath: opening process %d: %w", pid, err)
	}
	defer unix.Close(process)
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for _, signal := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		if err := unix.PidfdSendSignal(process, signal, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("datapath: ending process %d: %w", pid, err)
		}
		if ended(ctx, process) {
			return nil
		}
	}
	return fmt.Errorf("datapath: process %d did not end after SIGKILL: see its state with `ps -p %d`", pid, pid)
}

// server returns the id of the process at the other end of c.
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
		return 0, errors.New("the process is in another PID namespace: end the process there")
	}
	return int(cred.Pid), nil
}

// ended waits up to half of startTimeout until a process has ended. A zombie counts as ended.
func ended(ctx context.Context, process int) bool {
	for wait := startTimeout / 2; wait > 0 && ctx.Err() == nil; wait -= 10 * time.Millisecond {
		fds := []unix.PollFd{{Fd: int32(process), Events: unix.POLLIN}}
		if n, err := unix.Poll(fds, 10); n > 0 && err == nil {
			return true
		}
	}
	return false
}
