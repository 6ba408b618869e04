// Package uml tests that Weft behaves the same with the kernel's WireGuard as with its own datapath.
// go test uses the machine's datapath; make test-kernel runs the test in user-mode Linux, whose
// kernel has WireGuard. The test owns its lab, and changes nothing outside it.
package uml
