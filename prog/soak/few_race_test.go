//go:build race

package soak

// few is how many seeds `go test -race` runs: it is some ten times slower.
const few = 20
