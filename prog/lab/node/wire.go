package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Role determines a node's namespaces and their setup.
type Role string

const (
	// Underlay has the bridge to which hosts are connected. It is the ancestor of all other nodes.
	Underlay Role = "underlay"
	// Host is one machine: its own mounts, processes and hostname, and eth0 on the bridge.
	Host Role = "host"
	// Router is a NAT: eth0 is on the bridge, eth1 on the switch of the hosts inside. It forwards IPv4 only.
	Router Role = "router"
	// Container is what a container runtime makes before it calls CNI: it only has lo.
	Container Role = "container"
)

// Config is the configuration of a node.
type Config struct {
	Role   Role
	Name   string // hostname of the node; also the name of a host's port on the bridge
	Socket string // path of the socket on which the node answers requests
	Bin    string // directory that comes first in PATH for all commands

	Lock     string  `json:",omitempty"` // underlay only: path of the file that the node locks while the lab runs
	StateDir string  `json:",omitempty"` // host only: folder mounted on /var/lib/weft; it survives a reboot
	Settings string  `json:",omitempty"` // host only: folder mounted on /etc/weft; it survives a reboot
	Scratch  string  `json:",omitempty"` // host only: mount point for data that does not survive a reboot
	Uplink   *Uplink `json:",omitempty"` // host and router: the link eth0
	Names    string  `json:",omitempty"` // host and container: content of /etc/hosts
}

// Info is the state of a node.
type Info struct {
	Name      string
	Children  []Child             `json:",omitempty"`
	Addrs     map[string][]string `json:",omitempty"` // addresses by interface, without lo and link-local addresses
	Processes map[string][]int    `json:",omitempty"` // pids of weft by its first argument, such as "agent"
	Cuts      []Cut               `json:",omitempty"`
	Ports     []string            `json:",omitempty"` // names of the hosts' ports on the underlay's switches
	NAT       *NAT                `json:",omitempty"` // router only
}

// Child is a child of a node, with its pid in its parent's PID namespace.
type Child struct {
	Name string
	Pid  int
}

// Cut is a pair of hosts between which the underlay drops all frames.
type Cut struct{ A, B string }

// request is a request to a node. The comment of a field names the operations (Op) that use it.
type request struct {
	Op     string
	Argv   []string    `json:",omitempty"` // exec
	Env    []string    `json:",omitempty"` // exec
	Config *Config     `json:",omitempty"` // spawn
	Name   string      `json:",omitempty"` // end, plug, unplug
	Verb   string      `json:",omitempty"` // signal
	Signal unix.Signal `json:",omitempty"` // signal; while exec runs, a message with this field alone passes the signal to its command
	Cut    *Cut        `json:",omitempty"` // cut, heal
	Uplink *Uplink     `json:",omitempty"` // plug (at the underlay, with Name), uplink (at the host)
	Link   string      `json:",omitempty"` // mtu: eth0, or a port of the underlay
	MTU    int         `json:",omitempty"` // mtu, route
	Route  string      `json:",omitempty"` // route: the prefix
	NAT    *NAT        `json:",omitempty"` // nat: at the router

	// With exec: the descriptors are a terminal, which becomes the command's controlling terminal.
	Terminal bool `json:",omitempty"`
}

const (
	opExec   = "exec"
	opSpawn  = "spawn"
	opEnd    = "end"
	opInfo   = "info"
	opSignal = "signal"
	opCut    = "cut"
	opHeal   = "heal"
	opPlug   = "plug"
	opUnplug = "unplug"
	opUplink = "uplink"
	opMTU    = "mtu"
	opRoute  = "route"
	opNAT    = "nat"
)

// reply is a node's answer. The comment of a field names the operation that sets it.
type reply struct {
	Error string      `json:",omitempty"`
	Code  int         `json:",omitempty"` // exec: exit code
	Died  unix.Signal `json:",omitempty"` // exec: the signal that killed it
	Pids  []int       `json:",omitempty"` // signal: pids of the processes that got the signal
	Info  *Info       `json:",omitempty"`
}

// maxMessage limits a message in bytes. Each message is one datagram of a seqpacket socket, and the
// socket's send buffer limits a datagram. 200 kB are enough for any command line of a lab.
const maxMessage = 200 << 10

func send(conn *net.UnixConn, msg any, files ...*os.File) error {
	data, err := json.Marshal(msg)
	if err != nil {
		return err
	}
	if len(data) > maxMessage {
		return fmt.Errorf("message of %d bytes is too long: pass large input on stdin", len(data))
	}
	var rights []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		rights = unix.UnixRights(fds...)
	}
	_, _, err = conn.WriteMsgUnix(data, rights, nil)
	return err
}

// receive reads a message and the descriptors that came with it. The end of the connection is io.EOF.
func receive(conn *net.UnixConn, msg any) ([]*os.File, error) {
	data, oob := make([]byte, maxMessage), make([]byte, unix.CmsgSpace(3*4))
	n, oobn, _, _, err := conn.ReadMsgUnix(data, oob)
	if err != nil {
		return nil, err
	}
	if n == 0 {
		return nil, io.EOF
	}
	files, err := parseRights(oob[:oobn])
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(data[:n], msg); err != nil {
		closeAll(files)
		return nil, err
	}
	return files, nil
}

func parseRights(oob []byte) ([]*os.File, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var files []*os.File
	for _, m := range msgs {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			closeAll(files)
			return nil, err
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "passed"))
		}
	}
	return files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

func dial(socket string) (*net.UnixConn, error) {
	conn, err := net.DialTimeout("unixpacket", socket, 5*time.Second)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ECONNREFUSED):
		return nil, fmt.Errorf("%w: no process listens on %s", ErrDown, socket)
	case err != nil:
		return nil, err
	}
	return conn.(*net.UnixConn), nil
}

// ErrDown means that the node is not running.
var ErrDown = errors.New("node is down")
