package lab_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"weft/prog/api"
	"weft/prog/lab"
	"weft/prog/ui"
)

// fakeUI serves the page like weft ui, with an agent that only knows the name of its host.
func fakeUI() *cobra.Command {
	cmd := &cobra.Command{
		Use: "ui",
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := ui.Inherited()
			if err != nil || l == nil {
				return fmt.Errorf("there is no inherited socket: %w", err)
			}
			site, err := ui.NewSite(l, "token", "", "")
			if err != nil {
				return err
			}
			if err := json.NewEncoder(os.Stdout).Encode(map[string]string{"url": site.URL}); err != nil {
				return err
			}
			return site.Serve(cmd.Context(), l, ui.Config{Agent: named{}, Token: "token", Hosts: site.Hosts})
		},
	}
	cmd.Flags().Bool("json", false, "")
	return cmd
}

type named struct{ *api.Client }

func (named) Network(context.Context) (api.Network, error) {
	host, err := os.Hostname()
	return api.Network{Cluster: host}, err
}

// The page of a host is reached from the machine, also if an ordinary user owns the lab. It ends with the lab.
func TestPageOfAHostIsReachedFromTheMachine(t *testing.T) {
	l := bare(t, 2, 0)
	at, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer at.Close()
	urls, ended := make(chan string, 1), make(chan error, 1)
	go func() {
		ended <- l.ServeUI(t.Context(), "h2", at.(*net.TCPListener), func(url string) { urls <- url })
	}()
	select {
	case url := <-urls:
		if want := "http://" + at.Addr().String() + "/#token=token"; url != want {
			t.Errorf("the page is at %s, want %s", url, want)
		}
	case err := <-ended:
		t.Fatalf("the page did not start: %v", err)
	}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+at.Addr().String()+"/api/network", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer token")
	r.Header.Set("Content-Type", "application/json")
	reply, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer reply.Body.Close()
	var out struct{ Answer api.Network }
	if err := json.NewDecoder(reply.Body).Decode(&out); err != nil || out.Answer.Cluster != "h2" {
		t.Errorf("the page is that of %q (%v), want h2", out.Answer.Cluster, err)
	}
	if _, err := lab.Down(t.Context(), labName(t)); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Errorf("after the lab is removed, the page ended with %v, want nil", err)
	}
}

func TestPageThatDoesNotStartSaysWhy(t *testing.T) {
	l := bare(t, 1, 0)
	at, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer at.Close()
	never := func(url string) { t.Errorf("the page is at %s, want none", url) }
	if err := l.ServeUI(t.Context(), "h9", at.(*net.TCPListener), never); err == nil || !strings.Contains(err.Error(), "no host h9") {
		t.Errorf("the page of a missing host: %v, want an error that says so", err)
	}
	if err := l.PowerOff(t.Context(), "h1"); err != nil {
		t.Fatal(err)
	}
	if err := l.ServeUI(t.Context(), "h1", at.(*net.TCPListener), never); err == nil || errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "does not run") {
		t.Errorf("the page of a host without power: %v, want an error that says so", err)
	}
}
