package endpoint

import (
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"weft/router/routertest"
)

func TestInterfaceNames(t *testing.T) {
	for name, says := range map[string]string{
		"eth0": "", "ethwe": "", "a.b-c@d": "", strings.Repeat("e", 15): "",
		strings.Repeat("e", 16): "at most 15", "": "want one such as", ".": "want one such as", "..": "want one such as",
		"a/b": "slash", "a:1": "colon", "a b": "space", "a\tb": "space",
	} {
		err := CheckInterface(name)
		if (err == nil) != (says == "") || err != nil && !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// What the kernel says of a link that it does not make is put in words about links.
func TestTheKernelsRefusalIsExplained(t *testing.T) {
	host, c := routertest.New(t), routertest.New(t)
	host.Do(func() {
		in, err := Open(c.Path(), strings.Repeat("e", 16))
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		err = in.Create("weft-one")
		if !errors.Is(err, unix.ERANGE) || strings.Contains(err.Error(), "numerical result") || !strings.Contains(err.Error(), "15 bytes") {
			t.Error(err)
		}
	})
}
