// Package e2e proves Weft's promises on real hosts: with the real programs, in network namespaces,
// with real packets. It only has tests; their names state the invariant of the design that they
// prove. Each test owns its lab.
package e2e
