// Package uml holds Weft to the same behaviour on the kernel's WireGuard as on its own datapath: its test runs on
// whatever the machine has under go test, and in user-mode Linux, whose kernel has WireGuard, under make test-kernel.
package uml
