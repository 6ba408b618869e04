//go:build race

package soak

// few is the number of seeds under `go test -race`, which is about ten times slower.
const few = 20
