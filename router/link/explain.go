package link

import (
	"errors"

	"golang.org/x/sys/unix"
)

// meanings says what the kernel's error codes mean for links, addresses and routes. The texts of
// libc are about files and numerical results.
var meanings = map[unix.Errno]string{
	unix.ERANGE:       "a name or value is longer or larger than the kernel accepts (an interface name has at most 15 bytes)",
	unix.EINVAL:       "the kernel does not accept this value",
	unix.EPERM:        "the kernel denies this: run as root, in a container with the capability NET_ADMIN",
	unix.EOPNOTSUPP:   "this kernel does not support this: load the module (modprobe veth, wireguard), or use a kernel that supports it",
	unix.EAFNOSUPPORT: "this kernel does not support this address family: is IPv6 compiled out?",
	unix.EEXIST:       "this object exists already",
	unix.ENOBUFS:      "the kernel has no memory or buffer for this: see `dmesg`",
}

// explained is an errno with the text of meanings. errors.Is still finds the errno.
type explained struct {
	errno unix.Errno
	text  string
}

func (e explained) Error() string { return e.text }
func (e explained) Unwrap() error { return e.errno }

// Explain replaces libc's text for an errno by what the errno means for links, addresses and
// routes. It returns other errors unchanged.
func Explain(err error) error {
	errno, ok := errors.AsType[unix.Errno](err)
	if text := meanings[errno]; ok && text != "" {
		return explained{errno, text}
	}
	return err
}
