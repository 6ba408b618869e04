// Package node is the small init that every namespace of a lab runs.
//
// A lab is a tree of nodes. The root owns the underlay's bridge, hosts are its children, and containers are
// the children of their host:
//
//	underlay ── bridge, cut links
//	├── h1 ── hostname, mounts, eth0
//	│   ├── c1
//	│   └── c2
//	└── h2 …
//
// Each node is pid 1 of a PID namespace, so the kernel itself ends everything below a node that dies, however
// it dies: there is no clean-up code that a crash could skip. A node reaps orphans (daemons started by a
// command), and answers requests on a unix socket: run a command with the caller's own descriptors, start or
// end a child node, tell about itself.
//
// Nodes are asked to run commands, instead of entered with setns, because a multithreaded program cannot
// enter a user namespace: this way the lab of an ordinary user works exactly like root's.
//
// A node trusts whoever can open its socket: keep sockets in a directory of mode 0700. Functions of this
// package are safe for concurrent use. The package never touches a namespace other than those it made.
package node
