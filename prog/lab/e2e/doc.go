// Package e2e proves on real hosts what Weft promises: the real programs, real
// namespaces, real packets. It holds tests only; their names say which invariant of
// the design they are about.
package e2e
