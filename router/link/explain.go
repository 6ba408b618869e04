package link

import (
	"errors"

	"golang.org/x/sys/unix"
)

// meanings are what the kernel's codes mean of links, addresses and routes. libc's words for
// them speak of files and numerical results.
var meanings = map[unix.Errno]string{
	unix.ERANGE:       "a name or value is longer or larger than the kernel takes (an interface's name has at most 15 bytes)",
	unix.EINVAL:       "the kernel does not take this value",
	unix.EPERM:        "the kernel forbids it: this needs root, and in a container the capability NET_ADMIN",
	unix.EOPNOTSUPP:   "this kernel has no support for it: load its module (modprobe veth, wireguard), or use a kernel with it",
	unix.EAFNOSUPPORT: "this kernel has no support for it: is IPv6 compiled out?",
	unix.EEXIST:       "it exists already",
	unix.ENOBUFS:      "the kernel has no room for it: see `dmesg`",
}

// explained is an errno in better words. It is still found by errors.Is.
type explained struct {
	errno unix.Errno
	text  string
}

func (e explained) Error() string { return e.text }
func (e explained) Unwrap() error { return e.errno }

// Explain puts what an errno means of links, addresses and routes in the place of libc's words.
// Other errors stay as they are.
func Explain(err error) error {
	errno, ok := errors.AsType[unix.Errno](err)
	if text := meanings[errno]; ok && text != "" {
		return explained{errno, text}
	}
	return err
}
