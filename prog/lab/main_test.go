package lab_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"testing"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"weft/prog/lab"
	"weft/prog/lab/probe"
)

// bin has a program "weft" that is this test binary, so that the lab is tested without a real agent.
var bin string

func TestMain(m *testing.M) {
	switch filepath.Base(os.Args[0]) {
	case "weft":
		os.Exit(weft())
	case "weft-cni":
		os.Exit(fakeCNI())
	}
	os.Exit(runTests(m))
}

func weft() int {
	root := &cobra.Command{Use: "weft", SilenceUsage: true, SilenceErrors: true}
	root.AddCommand(lab.Command(), probe.Command(nil), fakeLaunch(), fakeToken(), fakeUI(), socketCommand())
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM) // prog/cli handles these signals in the same way
	defer stop()
	err := root.ExecuteContext(ctx)
	if exit, ok := errors.AsType[*lab.ExitError](err); ok {
		return exit.Code
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "weft:", err)
		return 1
	}
	return 0
}

func runTests(m *testing.M) int {
	exe, err := os.Executable()
	if err != nil {
		panic(err)
	}
	// With -race every program sleeps for a second before it exits, and there are many.
	if err := os.Setenv("GORACE", "atexit_sleep_ms=0"); err != nil {
		panic(err)
	}
	if bin, err = os.MkdirTemp("", "lab-bin-"); err != nil {
		panic(err)
	}
	defer os.RemoveAll(bin)
	// Make copies instead of links, since weft lab up expects the programs beside its own file.
	err = errors.Join(os.Chmod(bin, 0o755), copyFile(exe, filepath.Join(bin, "weft")),
		os.Symlink("weft", filepath.Join(bin, "weft-cni")))
	if err != nil {
		panic(err)
	}
	return m.Run()
}
