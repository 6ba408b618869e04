package matrix

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"weft/prog/api"
	"weft/router/endpoint"
)

const (
	ifname    = "eth0"
	namespace = "weft-check" // of test endpoints: policies of other namespaces do not select them
)

// tester is a test endpoint of this host, and its process.
type tester struct {
	addresses []netip.Addr
	conn      *net.UnixConn
	close     func()
}

// start starts a process in a network namespace of its own, and attaches it.
func (m *Matrix) start(ctx context.Context) (_ *tester, err error) {
	conn, cmd, err := spawn(m.cfg.Program)
	if err != nil {
		return nil, err
	}
	ref := api.EndpointRef{ContainerID: fmt.Sprintf("%s-%d", namespace, cmd.Process.Pid), Interface: ifname}
	hostLink := endpoint.HostLink(ref.ContainerID, ifname)
	t := &tester{conn: conn}
	t.close = func() {
		conn.Close() // the process ends, and with it the namespace and the link
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // its result is that it was killed
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
		defer cancel()
		if err := m.cfg.Endpoints.Detach(ctx, ref); err != nil {
			m.cfg.Log.Warn("a test endpoint is not removed: it will be once its link is gone", "err", err)
		}
	}
	defer func() {
		if err != nil {
			t.close()
		}
	}()
	container, err := receive(conn)
	if err != nil {
		return nil, err
	}
	defer container.Close()
	if err := container.Create(hostLink); err != nil {
		return nil, err
	}
	pair := endpoint.PairOf(hostLink)
	reply, err := m.cfg.Endpoints.Attach(ctx, api.AttachRequest{
		ContainerID: ref.ContainerID, Interface: ifname, Source: api.SourceAttach, Namespace: namespace, HostLink: hostLink, MAC: pair.ContainerMAC.String(),
	})
	if err != nil {
		return nil, errors.Join(err, endpoint.Delete(hostLink))
	}
	side := endpoint.Config{HostMAC: pair.HostMAC, MTU: reply.MTU, Routes: reply.Universe}
	for _, a := range reply.Addresses {
		if a.Is4() {
			side.Addr4 = a
		} else {
			side.Addr6 = a
		}
	}
	t.addresses = reply.Addresses
	return t, errors.Join(container.Configure(side), m.cfg.Endpoints.Plug(ctx, ref))
}

// inNamespace starts a program in a network namespace of its own. A user namespace gives it the right to do so; where
// these are forbidden, an agent with all rights of root needs none.
func inNamespace(program []string, socket *os.File) (*exec.Cmd, error) {
	start := func(attr *syscall.SysProcAttr) (*exec.Cmd, error) {
		cmd := exec.Command(program[0], program[1:]...)
		cmd.Stdin, cmd.SysProcAttr = socket, attr
		return cmd, cmd.Start()
	}
	cmd, err := start(&syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}},
	})
	if err == nil {
		return cmd, nil
	}
	if cmd, e := start(&syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}); e == nil {
		return cmd, nil
	}
	return nil, err
}

// spawn starts a program in a network namespace of its own, with a socket to it.
func spawn(program []string) (*net.UnixConn, *exec.Cmd, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "socket"), os.NewFile(uintptr(pair[1]), "socket")
	defer ours.Close()
	defer theirs.Close()
	cmd, err := inNamespace(program, theirs)
	if err != nil {
		return nil, nil, fmt.Errorf("this host lets the agent make no namespace for a test endpoint (%w): a container's seccomp profile or user.max_user_namespaces forbids it", err)
	}
	conn, err := net.FileConn(ours)
	if err != nil {
		return nil, nil, errors.Join(err, cmd.Process.Kill(), cmd.Wait())
	}
	return conn.(*net.UnixConn), cmd, nil
}

// receive takes what offer has sent.
func receive(conn *net.UnixConn) (*endpoint.Container, error) {
	_ = conn.SetReadDeadline(time.Now().Add(patience)) // if this fails, so does the read
	data, control := make([]byte, 1), make([]byte, unix.CmsgSpace(2*4))
	_, n, _, _, err := conn.ReadMsgUnix(data, control)
	if err != nil {
		return nil, fmt.Errorf("the process of the test endpoint ended: %w", err)
	}
	messages, err := unix.ParseSocketControlMessage(control[:n])
	if err != nil || len(messages) != 1 {
		return nil, fmt.Errorf("the process of the test endpoint sent no descriptors: %w", errors.Join(err, os.ErrInvalid))
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 2 {
		return nil, fmt.Errorf("the process of the test endpoint sent %d descriptors: %w", len(fds), errors.Join(err, os.ErrInvalid))
	}
	for _, fd := range fds {
		unix.CloseOnExec(fd)
	}
	return endpoint.Adopt(fds[0], fds[1], ifname), nil
}

// probe asks the process to talk to targets.
func (t *tester) probe(targets []netip.Addr) (r result, err error) {
	_ = t.conn.SetDeadline(time.Now().Add(2 * patience)) // if this fails, so does the conversation
	if err := json.NewEncoder(t.conn).Encode(order{targets}); err != nil {
		return r, err
	}
	return r, json.NewDecoder(t.conn).Decode(&r)
}
