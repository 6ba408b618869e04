package cli

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"weft/prog/agent/bundle"
	"weft/prog/agent/config"
	"weft/prog/api"
	"weft/prog/words"
)

// bundled is the JSON output of weft bundle.
type bundled struct {
	File   string   `json:"file"`
	Hosts  int      `json:"hosts"`            // hosts whose files it has
	Silent []string `json:"silent,omitempty"` // hosts that did not answer, each with the reason
}

func (a *app) bundle() *cobra.Command {
	var out string
	var anonymous bool
	cmd := &cobra.Command{
		Use: "bundle [-o FILE] [--anonymous]", Short: "write an archive that describes all hosts, for a report of a fault", Args: cobra.NoArgs,
		Long: `Writes one archive with each host's report, log, rules, routes, links and sysctls, and the checks of
all hosts. It has no keys, secrets or tokens, and no payload. It has names, labels and addresses. With
--anonymous, names and labels are replaced by words like name-1, the same one everywhere, and the
logs, other programs' rules and the manifests of policies are left out.

Without a running agent the archive only has what describes this host.` + exitHelp,
		Example: "  weft bundle\n  weft bundle --anonymous -o /tmp/weft.tar.gz",
		RunE: func(cmd *cobra.Command, _ []string) error {
			now := time.Now().UTC()
			if out == "" {
				out = "weft-bundle-" + now.Format("20060102T150405") + ".tar.gz"
			}
			if out == "-" {
				files, _ := a.collect(cmd.Context(), anonymous)
				return writeArchive(a.out, "weft-bundle", files, now)
			}
			f, err := os.OpenFile(out, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
			if err != nil {
				return fmt.Errorf("the archive is not written: %w: name another file with -o", err)
			}
			files, done := a.collect(cmd.Context(), anonymous)
			if err := errors.Join(writeArchive(f, strings.TrimSuffix(filepath.Base(out), ".tar.gz"), files, now), f.Close()); err != nil {
				return fmt.Errorf("the archive %s is not complete: %w", out, err)
			}
			done.File = out
			return a.show(done, func() {
				fmt.Fprintf(a.out, "%s describes %s. It has addresses", out, words.Count(done.Hosts, "host"))
				if !anonymous {
					fmt.Fprint(a.out, ", names and labels (--anonymous replaces these)")
				}
				fmt.Fprintln(a.out, ": look at it before you pass it on.")
			})
		},
	}
	cmd.Flags().StringVarP(&out, "output", "o", "", "the archive to write (default weft-bundle-TIME.tar.gz); -: standard output")
	cmd.Flags().BoolVar(&anonymous, "anonymous", false, "replace names and labels")
	return cmd
}

// collect returns the files of all hosts, without names if they are to be anonymous.
func (a *app) collect(ctx context.Context, anonymous bool) (files map[string]string, done bundled) {
	files, done = a.askForFiles(ctx)
	if anonymous {
		files = anonymized(files)
	}
	return files, done
}

// askForFiles asks all hosts for their files. It says on standard error which hosts do not answer.
func (a *app) askForFiles(ctx context.Context) (files map[string]string, done bundled) {
	const atOnce = 8
	files = map[string]string{}
	client := a.client()
	network, err := client.Network(ctx)
	if err != nil { // what this host can say without its agent
		done.Hosts = 1
		fmt.Fprintln(a.err, "weft:", err)
		files["error.txt"] = err.Error() + "\n"
		maps.Copy(files, bundle.System())
		files[agentLog] = tail(filepath.Join(config.DefaultStateDir, agentLog))
		return files, done
	}
	files["network.json"] = indented(network)
	checks, err := client.Check(ctx, api.CheckRequest{AllHosts: true})
	files["checks.json"] = bundle.JSON(checks, err)
	policies, err := client.PolicyStatus(ctx)
	files["policy-status.json"] = bundle.JSON(policies, err)
	endpoints, err := client.NetworkEndpoints(ctx)
	files["endpoints.json"] = bundle.JSON(endpoints, err)
	answers := make([]api.BundleReply, len(network.Hosts))
	failed := make([]error, len(network.Hosts))
	var group errgroup.Group
	group.SetLimit(atOnce)
	for i, h := range network.Hosts {
		group.Go(func() error {
			answers[i], failed[i] = client.Bundle(ctx, api.HostRequest{Peer: h.Peer})
			return nil
		})
	}
	_ = group.Wait() // its functions return no error
	for i, h := range network.Hosts {
		name := h.Peer + "(" + h.Nickname + ")"
		if failed[i] != nil {
			fmt.Fprintf(a.err, "weft: %s is left out: %v\n", name, failed[i])
			done.Silent = append(done.Silent, name+": "+failed[i].Error())
			continue
		}
		done.Hosts++
		for file, content := range answers[i].Files {
			files[path.Join(folder(h), file)] = content
		}
	}
	if len(done.Silent) > 0 {
		files["error.txt"] = strings.Join(done.Silent, "\n") + "\n"
	}
	return files, done
}

// folder names a host's folder. A host chooses its nickname, which must lead to no other folder.
func folder(h api.Host) string {
	return strings.Map(func(r rune) rune {
		if r == '/' || r == '\\' {
			return '_'
		}
		return r
	}, h.Nickname) + "-" + h.Peer
}

func indented(v any) string { return bundle.JSON(v, nil) }

// tail returns the end of a file, or why it cannot be read.
func tail(file string) string {
	const most = 1 << 20
	f, err := os.Open(file)
	if err != nil {
		return err.Error() + "\n"
	}
	defer f.Close()
	if _, err := f.Seek(-most, io.SeekEnd); err != nil {
		_, err = f.Seek(0, io.SeekStart) // the file is shorter
		if err != nil {
			return err.Error() + "\n"
		}
	}
	data, err := io.ReadAll(io.LimitReader(f, most))
	if err != nil {
		return err.Error() + "\n"
	}
	return string(data)
}

// writeArchive writes files as a compressed tar archive, in the folder dir.
func writeArchive(w io.Writer, dir string, files map[string]string, now time.Time) error {
	z := gzip.NewWriter(w)
	t := tar.NewWriter(z)
	names := make([]string, 0, len(files))
	for name := range files {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		head := &tar.Header{Name: path.Join(dir, name), Mode: 0o600, Size: int64(len(files[name])), ModTime: now, Typeflag: tar.TypeReg}
		if err := t.WriteHeader(head); err != nil {
			return err
		}
		if _, err := io.WriteString(t, files[name]); err != nil {
			return err
		}
	}
	return errors.Join(t.Close(), z.Close())
}
