package control

import (
	"net"
	"os"
	"strings"
)

// Notify reports the unit's state to systemd (sd_notify(3)): READY=1 once the control socket answers,
// and STATUS= with the text for `systemctl status`. Without systemd it does nothing.
func Notify(lines ...string) {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return
	}
	if path[0] == '@' { // systemd writes the NUL byte of an abstract socket as @
		path = "\x00" + path[1:]
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return // a supervisor that does not listen is no reason to end
	}
	defer c.Close()
	_, _ = c.Write([]byte(strings.Join(lines, "\n")))
}
