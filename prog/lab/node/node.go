package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// server is a running node.
type server struct {
	cfg    Config
	reaper *reaper

	mu       sync.Mutex
	children map[string]child
	nat      *NAT // of a router, once it is configured
}

type child struct {
	pid  int
	done <-chan struct{} // closed when all of the child's namespaces are empty
}

// Main runs a node: it reads its Config from stdin, sets up its namespaces, answers on descriptor 3,
// and serves. It only returns if the start fails; a node ends when it is killed.
func Main(ctx context.Context) error {
	if os.Getpid() != 1 {
		return errors.New("this command is internal: use weft lab up")
	}
	unix.CloseOnExec(3)
	answer := os.NewFile(3, "answer")
	s := &server{reaper: newReaper(), children: make(map[string]child)}
	listener, err := s.setup()
	if err != nil {
		_, _ = answer.WriteString(err.Error())
		return err
	}
	_, _ = answer.WriteString(ready)
	_ = answer.Close()
	go s.reaper.run(ctx)
	return s.serve(listener)
}

func (s *server) setup() (*net.UnixListener, error) {
	if err := json.NewDecoder(os.Stdin).Decode(&s.cfg); err != nil {
		return nil, fmt.Errorf("no configuration: %w", err) // the parent died before it sent a configuration
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Dup3(int(null.Fd()), 0, 0); err != nil { // descendants must not keep the parent's pipe open
		return nil, err
	}
	if err := os.Chdir("/"); err != nil {
		return nil, err
	}
	if err := unix.Sethostname([]byte(s.cfg.Name)); err != nil {
		return nil, fmt.Errorf("set the hostname: %w", err)
	}
	if s.cfg.Lock != "" {
		if err := holdLock(s.cfg.Lock); err != nil {
			return nil, err
		}
	}
	if err := setupMounts(s.cfg); err != nil {
		return nil, err
	}
	if err := setupNetwork(s.cfg); err != nil {
		return nil, err
	}
	if err := os.Remove(s.cfg.Socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	return net.ListenUnix("unixpacket", &net.UnixAddr{Name: s.cfg.Socket, Net: "unixpacket"})
}

func (s *server) serve(listener *net.UnixListener) error {
	for {
		conn, err := listener.AcceptUnix()
		if err != nil {
			return err
		}
		go func() { // the goroutine ends with the request
			defer conn.Close()
			s.handle(conn)
		}()
	}
}

func (s *server) handle(conn *net.UnixConn) {
	var req request
	files, err := receive(conn, &req)
	if err != nil {
		return
	}
	defer closeAll(files)
	if req.Op == opExec {
		_ = send(conn, s.exec(conn, req, files))
		return
	}
	r, err := s.answer(req)
	if err != nil {
		r = reply{Error: err.Error()}
	}
	_ = send(conn, r) // the error is ignored: it only fails if the client is gone
}

func (s *server) answer(req request) (reply, error) {
	switch req.Op {
	case opSpawn:
		return reply{}, s.spawn(*req.Config)
	case opEnd:
		return reply{}, s.end(req.Name)
	case opInfo:
		info, err := s.info()
		return reply{Info: &info}, err
	case opSignal:
		pids, err := signalProcesses(s.cfg.Bin, req.Verb, req.Signal)
		return reply{Pids: pids}, err
	case opCut, opHeal:
		return reply{}, setCut(*req.Cut, req.Op == opCut)
	case opPlug:
		return reply{}, s.plug(req.Name, *req.Uplink)
	case opUnplug:
		return reply{}, removePort(req.Name)
	case opUplink:
		return reply{}, setupUplink(*req.Uplink)
	case opMTU:
		return reply{}, setMTU(req.Link, req.MTU)
	case opRoute:
		return reply{}, setRouteMTU(req.Route, req.MTU)
	case opNAT:
		return reply{}, s.setNAT(*req.NAT)
	}
	return reply{}, fmt.Errorf("unknown request %q: the lab runs another version of weft: run weft lab down and weft lab up", req.Op)
}

// exec runs one command. When the caller's connection ends, the command's process group is killed.
func (s *server) exec(conn *net.UnixConn, req request, files []*os.File) reply {
	if len(req.Argv) == 0 || len(files) != 3 {
		return reply{Code: 125, Error: "exec needs a command and three descriptors"}
	}
	path, err := s.lookPath(req.Argv[0])
	if err != nil {
		return reply{Code: 127, Error: err.Error()}
	}
	pid, done, err := s.reaper.start(path, req.Argv, &os.ProcAttr{
		Dir: "/", Env: s.environ(req.Env), Files: files,
		Sys: &unix.SysProcAttr{Setsid: true, Setctty: req.Terminal}, // descriptor 0 becomes the controlling terminal
	})
	closeAll(files) // only the command may keep a pipe open
	if err != nil {
		return reply{Code: 126, Error: err.Error()}
	}
	go func() { // the goroutine ends with the connection
		for {
			var r request
			if _, err := receive(conn, &r); err != nil {
				s.reaper.signal(pid, unix.SIGKILL, true)
				return
			}
			s.reaper.signal(pid, r.Signal, true)
		}
	}()
	status := <-done
	if status.Signaled() {
		return reply{Died: status.Signal()}
	}
	return reply{Code: status.ExitStatus()}
}

const systemPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

func (s *server) environ(add []string) []string {
	env := slices.DeleteFunc(slices.Clone(add), func(v string) bool { return strings.HasPrefix(v, "PATH=") })
	return append(env, "PATH="+s.cfg.Bin+":"+systemPath)
}

func (s *server) lookPath(name string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	for dir := range strings.SplitSeq(s.cfg.Bin+":"+systemPath, ":") {
		path := filepath.Join(dir, name)
		if unix.Access(path, unix.X_OK) == nil {
			if st, err := os.Stat(path); err == nil && st.Mode().IsRegular() {
				return path, nil
			}
		}
	}
	return "", fmt.Errorf("%s: no such program in the folders %s:%s", name, s.cfg.Bin, systemPath)
}

func (s *server) spawn(cfg Config) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c, ok := s.children[cfg.Name]; ok && !c.ended() {
		return fmt.Errorf("%s already runs", cfg.Name)
	}
	b, err := newBirth(os.Stderr)
	if err != nil {
		return err
	}
	pid, status, err := s.reaper.start("/proc/self/exe", argv(cfg), b.attr(namespaces(cfg.Role)))
	b.started()
	if err != nil {
		b.abandon()
		return namespaceError(err)
	}
	done := make(chan struct{})
	go func() { // the goroutine ends with the child
		<-status
		close(done)
	}()
	s.children[cfg.Name] = child{pid, done}
	if cfg.Uplink != nil {
		err = plugHost(*cfg.Uplink, pid)
	}
	if err != nil {
		b.abandon()
	} else {
		err = b.configure(cfg)
	}
	if err != nil {
		s.reaper.signal(pid, unix.SIGKILL, false)
		<-done
	}
	return err
}

func (c child) ended() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

func (s *server) end(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c, ok := s.children[name]; ok {
		s.reaper.signal(c.pid, unix.SIGKILL, false)
		<-c.done // the kernel reaps pid 1 last
		delete(s.children, name)
	}
	if s.cfg.Role != Underlay {
		return nil
	}
	return unplugHost(name)
}

// plug connects a running host with another link.
func (s *server) plug(host string, up Uplink) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.children[host]
	if !ok || c.ended() {
		return fmt.Errorf("%s does not run", host)
	}
	return plugHost(up, c.pid)
}

func (s *server) info() (Info, error) {
	info := Info{Name: s.cfg.Name, Processes: make(map[string][]int)}
	s.mu.Lock()
	for name, c := range s.children {
		if !c.ended() {
			info.Children = append(info.Children, Child{name, c.pid})
		}
	}
	info.NAT = s.nat
	s.mu.Unlock()
	slices.SortFunc(info.Children, func(a, b Child) int { return a.Pid - b.Pid })
	var err error
	if info.Addrs, err = addresses(); err != nil {
		return info, err
	}
	if s.cfg.Role == Underlay {
		info.Cuts, err = listCuts()
		return info, errors.Join(err, listPorts(&info))
	}
	for _, verb := range []string{"agent", "datapath"} {
		if info.Processes[verb], err = findProcesses(s.cfg.Bin, verb); err != nil {
			return info, err
		}
	}
	return info, nil
}
