package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"weft/prog/api"
	"weft/prog/ui"
	"weft/prog/words"
)

// served is the output of weft ui with --json. The command goes on afterwards.
type served struct {
	URL         string `json:"url"`                   // with the token; whoever has it sees the network
	Fingerprint string `json:"fingerprint,omitempty"` // SHA-256 of the certificate that was made at the start
}

func (a *app) ui() *cobra.Command {
	var listen, cert, key string
	var untilEOF bool
	cmd := &cobra.Command{
		Use: "ui", Short: "serve a page with the picture of the whole network", Args: cobra.NoArgs,
		Long: `Serves a page with the picture of the whole network, and prints its address. The page shows
hosts and tunnels, the owners of the addresses, endpoints and who may reach whom, flows and
drops, and each problem with its fix. It changes nothing.

The address ends with a token. Whoever has the whole address can see the network.
The page is on this host's loopback address only, unless --listen gives another one. Then
it uses TLS: with the given certificate, or with one that is made at the start, whose
fingerprint is printed. weft ui ends when it is interrupted.` + exitHelp,
		Example: "  weft ui\n  weft ui --listen 127.0.0.1:0\n  weft ui --listen 192.0.2.1:6786 --tls-cert ui.crt --tls-key ui.key",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if (cert == "") != (key == "") {
				return words.Misused(errors.New("--tls-cert and --tls-key go together: give both, or none"))
			}
			l, err := ui.Inherited()
			if err == nil && l == nil {
				l, err = ui.Listen(cmd.Context(), listen)
			}
			if err != nil {
				if _, bad := errors.AsType[net.Error](err); !bad {
					err = words.Misused(err)
				}
				return err
			}
			defer l.Close()
			ctx := cmd.Context()
			if untilEOF {
				var stop context.CancelFunc
				ctx, stop = context.WithCancel(ctx)
				defer stop()
				go func() { // the goroutine ends with standard input, or with this program
					_, _ = io.Copy(io.Discard, a.in)
					stop()
				}()
			}
			return a.serveUI(ctx, l, cert, key)
		},
	}
	cmd.Flags().StringVar(&listen, "listen", ui.DefaultListen, "address and port of the page; port 0: any free port")
	cmd.Flags().StringVar(&cert, "tls-cert", "", "file with the certificate and its chain (PEM)")
	cmd.Flags().StringVar(&key, "tls-key", "", "file with the certificate's key (PEM)")
	cmd.Flags().BoolVar(&untilEOF, "until-eof", false, "also end when standard input ends")
	return cmd
}

// serveUI prints where the page is, and serves it until ctx ends.
func (a *app) serveUI(ctx context.Context, l net.Listener, cert, key string) error {
	token := ui.NewToken()
	site, err := ui.NewSite(l, token, cert, key)
	if err != nil {
		return err
	}
	a.oneLine = true
	err = a.show(served{site.URL, site.Fingerprint}, func() {
		machine, _ := os.Hostname() // without a name, the line has a placeholder
		fmt.Fprint(a.out, ui.Invitation(site.URL, machine))
		if site.Fingerprint != "" {
			fmt.Fprintln(a.out, "The browser does not know the certificate. Its SHA-256 fingerprint:", site.Fingerprint)
		}
		fmt.Fprintln(a.out, "The page is read-only. End it with Ctrl-C.")
	})
	if err != nil {
		return err
	}
	return site.Serve(ctx, l, ui.Config{
		Agent: a.client(), Token: token, Hosts: site.Hosts, Version: Version,
		Words: func(e api.Explanation) string {
			var text strings.Builder
			printExplanation(&text, e)
			return text.String()
		},
	})
}
