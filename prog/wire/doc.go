// Package wire holds the bytes that agents in the field speak and keep, recorded version
// by version, and the tests that today's code reads them, writes them, and copes with
// those of a version that is yet to come. It has no code of its own: see corpus_test.go,
// and site/docs/decisions/0018-wire.md for the rules that it holds the code to.
package wire
