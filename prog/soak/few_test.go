//go:build !race

package soak

// few is how many seeds `go test` runs.
const few = 250
