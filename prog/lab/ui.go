package lab

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"weft/prog/lab/node"
	"weft/prog/ui"
	"weft/prog/words"
)

// ServeUI runs weft ui on a host, with a listening socket of the machine: so the machine's own browser reaches the
// page, although the host is in another network namespace. It calls ready with the page's address, and returns nil
// when ctx ends or the lab is removed.
func (l *Lab) ServeUI(ctx context.Context, host string, at *net.TCPListener, ready func(url string)) error {
	if err := l.checkHost(host); err != nil {
		return err
	}
	socket, err := at.File()
	if err != nil {
		return err
	}
	defer socket.Close()
	out, outW, err := os.Pipe()
	if err != nil {
		return err
	}
	defer out.Close()
	ended := make(chan error, 1)
	go func() { // ends with weft ui
		err := l.node(host).Exec(ctx, node.Command{
			Argv:  []string{"sh", "-c", "LISTEN_PID=$$ LISTEN_FDS=1 exec weft ui --json 3<&0 </dev/null"},
			Stdio: [3]*os.File{socket, outW, os.Stderr},
		})
		_ = outW.Close()
		ended <- err
	}()
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err == nil {
		var said struct {
			URL string `json:"url"`
		}
		if err := json.Unmarshal(line, &said); err != nil {
			return fmt.Errorf("lab: weft ui on %s printed %q, want its address: %w", host, line, err)
		}
		ready(said.URL)
	}
	switch err := <-ended; {
	case ctx.Err() != nil:
		return nil
	case len(line) > 0 && errors.Is(err, node.ErrDown): // the lab was removed
		return nil
	default:
		return l.explain(host, err)
	}
}

func uiCommand(name *string) *cobra.Command {
	var port uint16
	cmd := &cobra.Command{
		Use: "ui [HOST]", Args: cobra.MaximumNArgs(1),
		Short: "serve the page of weft ui on this machine's loopback address (HOST: h1)",
		Long: "Serve the page of weft ui on this machine's loopback address, and print its address.\n\n" +
			"HOST is the host that the page asks, h1 unless it is given. If the usual port is in use, a free one\n" +
			"is taken. The page ends with the lab, or when this command is interrupted.",
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := Open(*name)
			if err != nil {
				return err
			}
			at, err := listenUI(cmd.Context(), port, cmd.Flags().Changed("port"))
			if err != nil {
				return err
			}
			defer at.Close()
			machine, _ := os.Hostname() // without a name, the line has a placeholder
			return l.ServeUI(cmd.Context(), append(args, "h1")[0], at, func(url string) {
				fmt.Fprint(cmd.OutOrStdout(), ui.Invitation(url, machine))
			})
		},
	}
	cmd.Flags().Uint16Var(&port, "port", 0, "TCP port (default the one of weft ui; 0: any free one)")
	return cmd
}

// listenUI listens on the given port of the loopback address; by default on that of weft ui, or any free one.
func listenUI(ctx context.Context, port uint16, given bool) (*net.TCPListener, error) {
	address := ui.DefaultListen
	if given {
		address = fmt.Sprintf("127.0.0.1:%d", port)
	}
	l, err := ui.Listen(ctx, address)
	if err != nil && !given {
		l, err = ui.Listen(ctx, "127.0.0.1:0")
	}
	if err != nil {
		return nil, fmt.Errorf("lab: listen for the page: %w", err)
	}
	return l.(*net.TCPListener), nil // the address is one of TCP
}

// picture starts the page of h1 in a process of its own, which ends with the lab, and shows its address.
func (d *demo) picture(ctx context.Context) error {
	d.caption("The network's picture, live. Open the address while the demo runs%s", map[bool]string{true: ", and afterwards"}[d.keep])
	page := exec.Command(filepath.Join(d.lab.opts.Bin, "weft"), "lab", "ui", "--name", d.lab.opts.Name) // it outlives ctx if the lab is kept
	page.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	page.Stderr = os.Stderr
	out, err := page.StdoutPipe()
	if err != nil {
		return err
	}
	if err := page.Start(); err != nil {
		return fmt.Errorf("lab: the page: %w", err)
	}
	d.page = page
	var lines [2]string
	r := bufio.NewReader(out)
	for i := range lines {
		if lines[i], err = r.ReadString('\n'); err != nil {
			return fmt.Errorf("lab: the page did not start: %w", err)
		}
	}
	fmt.Fprint(d.out, lines[0], lines[1])
	_, address, _ := strings.Cut(strings.TrimSpace(lines[0]), ": ")
	hosts, err := askPage(ctx, address)
	if err != nil {
		return err
	}
	if hosts != len(d.lab.Hosts()) {
		return fmt.Errorf("lab: the page shows %s, want %d", words.Count(hosts, "host"), len(d.lab.Hosts()))
	}
	return nil
}

// askPage asks a page for the network, as the browser does, and returns the number of hosts.
func askPage(ctx context.Context, address string) (int, error) {
	u, err := url.Parse(address)
	if err != nil {
		return 0, fmt.Errorf("lab: the page's address: %w", err)
	}
	token := strings.TrimPrefix(u.Fragment, "token=")
	u.Fragment, u.Path = "", "/api/network"
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), strings.NewReader("{}"))
	if err != nil {
		return 0, err
	}
	r.Header.Set("Authorization", "Bearer "+token)
	r.Header.Set("Content-Type", "application/json")
	reply, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0, fmt.Errorf("lab: ask the page: %w", err)
	}
	defer reply.Body.Close()
	data, err := io.ReadAll(reply.Body)
	if err != nil {
		return 0, err
	}
	var out struct {
		Answer struct {
			Hosts []struct{} `json:"hosts"`
		} `json:"answer"`
	}
	if err := json.Unmarshal(data, &out); err != nil || reply.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("lab: the page answered HTTP status %d: %.200s", reply.StatusCode, data)
	}
	return len(out.Answer.Hosts), nil
}
