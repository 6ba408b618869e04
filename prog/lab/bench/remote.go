package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"weft/prog/lab"
)

// remote is a helper program on a lab's host. It reads commands, one per line, answers each command, and
// ends with its input.
type remote struct {
	commands *os.File
	answers  *bufio.Scanner
	done     chan error
}

// answer is the helper's answer to a command, as JSON.
type answer struct {
	Milliseconds float64
	Error        string `json:",omitempty"`
}

func (b *bench) startRemote(ctx context.Context, l *lab.Lab, host string, helper ...string) (*remote, error) {
	in, commands, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	answers, out, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	r := &remote{commands: commands, answers: bufio.NewScanner(answers), done: make(chan error, 1)}
	go func() { // the goroutine ends with the helper's input
		err := l.Attach(ctx, host, [3]*os.File{in, out, os.Stderr}, nil, append([]string{b.self}, helper...)...)
		r.done <- errors.Join(err, in.Close(), out.Close())
	}()
	return r, nil
}

func (r *remote) do(verb string) (float64, error) {
	if _, err := fmt.Fprintln(r.commands, verb); err != nil {
		return 0, err
	}
	if !r.answers.Scan() {
		ended := <-r.done
		r.done <- ended // stop reads the error too
		return 0, fmt.Errorf("%s: the helper ended without an answer: %w", verb, errors.Join(r.answers.Err(), ended))
	}
	var a answer
	if err := json.Unmarshal(r.answers.Bytes(), &a); err != nil {
		return 0, err
	}
	if a.Error != "" {
		return 0, fmt.Errorf("%s: %s", verb, a.Error)
	}
	return a.Milliseconds, nil
}

func (r *remote) measure(verb string, into *samples) error {
	ms, err := r.do(verb)
	into.add(ms)
	return err
}

func (r *remote) stop() error {
	return errors.Join(r.commands.Close(), <-r.done)
}
