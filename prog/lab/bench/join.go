package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"weft/prog/lab"
)

const joinRounds = 10

// join measures how fast a peer joins a mesh of two, from the start of weft launch. There are two
// times: until a container on another host first replies to the joining host itself, and until it
// first replies to a container that is attached right after that.
func join(ctx context.Context, b *bench) (err error) {
	l, down, err := b.up(ctx, lab.Options{Name: "join", Hosts: 3, Containers: 1})
	if err != nil {
		return err
	}
	defer down(&err)
	token, err := l.Token()
	if err != nil {
		return err
	}
	to, err := l.Addrs(ctx, "h1/c1")
	if err != nil {
		return err
	}
	host := figure{what: "launch to the host's first ping across", atMost: 2}
	container := figure{what: "launch to the first container's first ping across", atMost: 2}
	for range joinRounds {
		if _, err := l.Exec(ctx, "h3", nil, "weft", "reset", "--force"); err != nil {
			return err
		}
		start := time.Now()
		if err := l.Launch(ctx, "h3", token, "h1"); err != nil {
			return err
		}
		if err := firstPing(ctx, l, "h3", to[0]); err != nil {
			return err
		}
		host.ours.add(time.Since(start).Seconds())
		if _, err := l.Plug(ctx, "h3/c1"); err != nil {
			return err
		}
		if err := firstPing(ctx, l, "h3/c1", to[0]); err != nil {
			return err
		}
		container.ours.add(time.Since(start).Seconds())
	}
	printFigures(os.Stdout, "One more peer joins a mesh of two", "seconds", host, container)
	return nil
}

// firstPing returns as soon as an address replies.
func firstPing(ctx context.Context, l *lab.Lab, from, to string) error {
	var err error
	for start := time.Now(); time.Since(start) < 20*time.Second && ctx.Err() == nil; {
		if _, err = l.Exec(ctx, from, nil, "weft", "probe", "icmp", "--count", "1", "--timeout", "100ms", to); err == nil {
			return nil
		}
	}
	return fmt.Errorf("no reply to any ping: %w", err)
}
