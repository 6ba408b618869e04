package matrix

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"weft/prog/words"
	"weft/router/link"
)

const (
	// port is where test endpoints answer.
	port = 6790
	// payload fills several packets of full size, in both directions.
	payload = 8 << 10
	// patience bounds one conversation: TCP repeats its first packet after 1 s.
	patience = 3 * time.Second
	// allTalk bounds all conversations of one order together: the agent that asked waits no longer.
	allTalk = 4 * time.Second
	// atOnce bounds how many conversations run at once.
	atOnce = 128
)

// order is what the agent asks a test endpoint's process: to talk to each target.
type order struct {
	Targets []netip.Addr `json:"targets"`
}

// result has why a target did not answer, by its address.
type result struct {
	Failed map[netip.Addr]string `json:"failed"`
}

// Child is the process of a test endpoint. It runs in a network namespace of its own, which it opens for the agent
// through the socket, and then talks to other test endpoints as the agent asks. It ends with the socket.
func Child(ctx context.Context, socket *os.File) error {
	conn, err := net.FileConn(socket)
	if err != nil {
		return fmt.Errorf("this command is only for the agent: %w", err)
	}
	defer conn.Close()
	unixConn, ok := conn.(*net.UnixConn)
	if !ok {
		return errors.New("this command is only for the agent: its input is no unix socket")
	}
	if err := offer(unixConn); err != nil {
		return err
	}
	l, err := net.Listen("tcp", ":"+strconv.Itoa(port))
	if err != nil {
		return err
	}
	defer l.Close()
	go echo(l)
	in, out := json.NewDecoder(conn), json.NewEncoder(conn)
	for {
		var o order
		if err := in.Decode(&o); err != nil {
			return nil // the agent has ended the endpoint
		}
		if err := out.Encode(talk(ctx, o.Targets)); err != nil {
			return err
		}
	}
}

// offer opens this process's network namespace, and a netlink socket in it, for the agent.
func offer(conn *net.UnixConn) error {
	namespace, err := os.Open("/proc/self/ns/net")
	if err != nil {
		return err
	}
	defer namespace.Close()
	netlink, err := link.OpenSocket()
	if err != nil {
		return err
	}
	defer netlink.Close()
	_, _, err = conn.WriteMsgUnix([]byte{1}, unix.UnixRights(int(namespace.Fd()), int(netlink)), nil)
	return err
}

// echo returns what each connection sends.
func echo(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(patience))   // if this fails, so does the copying
			_, _ = io.Copy(c, io.LimitReader(c, payload)) // the other end reports a failure
		}()
	}
}

// talk sends data to each target, and expects it back.
func talk(ctx context.Context, targets []netip.Addr) result {
	var mu sync.Mutex
	out := result{Failed: map[netip.Addr]string{}}
	ctx, cancel := context.WithTimeout(ctx, allTalk)
	defer cancel()
	var group errgroup.Group
	group.SetLimit(atOnce)
	for _, to := range targets {
		group.Go(func() error {
			if err := converse(ctx, to); err != nil {
				mu.Lock()
				defer mu.Unlock()
				out.Failed[to] = words.Cause(err)
			}
			return nil
		})
	}
	_ = group.Wait() // its functions return no error
	return out
}

func converse(ctx context.Context, to netip.Addr) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var dialer net.Dialer
	c, err := dialer.DialContext(ctx, "tcp", netip.AddrPortFrom(to, port).String())
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	sent, got := bytes.Repeat([]byte("weft-chk"), payload/8), make([]byte, payload)
	go func() { _, _ = c.Write(sent) }() // reading reports a failure
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if !bytes.Equal(sent, got) {
		return errors.New("other data came back")
	}
	return nil
}
