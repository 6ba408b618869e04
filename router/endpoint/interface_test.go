package endpoint

import (
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"weft/router/routertest"
)

func TestCheckInterfaceRefusesWhatTheKernelRefuses(t *testing.T) {
	for name, want := range map[string]string{
		"eth0": "", "ethwe": "", "a.b-c@d": "", strings.Repeat("e", 15): "",
		strings.Repeat("e", 16): "at most 15", "": "want one such as", ".": "want one such as", "..": "want one such as",
		"a/b": "slash", "a:1": "colon", "a b": "space", "a\tb": "space",
	} {
		err := CheckInterface(name)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("CheckInterface(%q) returned %v; want an error that contains %q, or none if empty", name, err, want)
		}
	}
}

// If the kernel refuses an interface name, the error says so, and not "Numerical result out of
// range" as libc does.
func TestCreateExplainsTheKernelsError(t *testing.T) {
	host, c := routertest.New(t), routertest.New(t)
	host.Do(func() {
		in, err := Open(c.Path(), strings.Repeat("e", 16))
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		err = in.Create("weft-one")
		if !errors.Is(err, unix.ERANGE) || strings.Contains(err.Error(), "numerical result") || !strings.Contains(err.Error(), "15 bytes") {
			t.Errorf("Create with a name of 16 bytes returned %v; want ERANGE and the limit of 15 bytes", err)
		}
	})
}
