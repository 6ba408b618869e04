//go:build !race

package soak

// few is the number of seeds under `go test`.
const few = 250
