// Package node is the init process of every namespace of a lab.
//
// A lab is a tree of nodes. The root owns the underlay's bridge. Hosts are its children, like the routers of
// hosts behind NAT, and containers are the children of their host:
//
//	underlay ── bridge, cut links
//	├── h1 ── hostname, mounts, eth0
//	│   ├── c1
//	│   └── c2
//	├── h2 …
//	└── nat-h2 ── NAT between the bridge and h2's switch
//
// Each node is pid 1 of a PID namespace. If a node dies, the kernel kills everything below it, so no
// clean-up code is needed after a crash. A node reaps orphans, such as daemons that a command
// started. It answers requests on a unix socket: run a command with the caller's file descriptors,
// start or end a child node, report its state.
//
// Nodes run commands themselves, since a multithreaded program cannot enter a user namespace with
// setns. So a lab works the same for an ordinary user and for root.
//
// A node trusts every process that can open its socket: keep sockets in a directory of mode 0700. The
// functions of this package are safe for concurrent use. The package never changes namespaces that it
// did not make.
package node
