package cli

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pseudoTerminal returns a terminal, and the end at which the test reads and types.
func pseudoTerminal(t *testing.T) (master, terminal *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { master.Close() })
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	terminal, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { terminal.Close() })
	return master, terminal
}

// A token typed on a terminal is not shown.
func TestTokenPromptDoesNotEcho(t *testing.T) {
	master, terminal := pseudoTerminal(t)
	said := &typist{master: master, text: "hunter2\n"}
	if got, err := (&app{in: terminal, err: said}).readToken(); err != nil || string(got) != "hunter2" {
		t.Errorf("readToken returned %q, error %v; want the typed token", got, err)
	}
	if _, err := terminal.WriteString("end"); err != nil {
		t.Fatal(err)
	}
	shown := make([]byte, 100)
	k, err := master.Read(shown)
	if err != nil || strings.Contains(string(shown[:k]), "hunter2") || !strings.Contains(said.String(), "token") {
		t.Errorf("the terminal shows %q, want no token; the prompt is %q, want one that asks for the token: %v", shown[:k], said.String(), err)
	}
}

// typist types the token after the prompt, once the terminal's echo is off.
type typist struct {
	bytes.Buffer
	master *os.File
	text   string
}

func (y *typist) Write(p []byte) (int, error) {
	if y.Len() == 0 {
		go func() {
			for begin := time.Now(); time.Since(begin) < 10*time.Second; { // if the echo stays on, type anyway: the test then fails
				t, err := unix.IoctlGetTermios(int(y.master.Fd()), unix.TCGETS)
				if err != nil || t.Lflag&unix.ECHO == 0 {
					break
				}
			}
			_, _ = y.master.WriteString(y.text)
		}()
	}
	return y.Buffer.Write(p)
}
