// Package wire records the bytes that agents send and store, version by version. Its tests check
// that the current code reads and writes them, and ignores additions of later versions. It contains
// no other code. See corpus_test.go, and the rules in site/docs/decisions/0018-wire.md.
package wire
